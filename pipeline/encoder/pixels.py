"""An image file -> the square of 8-bit pixels that CLIP's own preprocessing makes of it.

Needs Pillow and numpy only: worker processes import this file and nothing heavier.
"""

import errno
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError, features

# clip/clip.py, _transform: the numbers of its Normalize.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# What decides the pixels; it goes into a cache's identity. Lossless formats decode alike in any
# version, so JPEG's is the only decoder named.
PREPROCESSING = {
    "resize": "Pillow " + Image.__version__,
    "jpeg": f"libjpeg-turbo {features.version('libjpeg_turbo') or features.version('jpg')}",
    "interpolation": "bicubic, shorter side",
    "crop": "center",
    "exif_orientation": "ignored",
    "sixteen_bit_grey": "high byte",
    "mean": list(MEAN),
    "std": list(STD),
}
DECODERS = ("resize", "jpeg")
"""Of PREPROCESSING: versions of libraries, which move a pixel's last bit at most."""

# Without EPS, which Pillow hands to an outside program, and the kinds nobody keeps photos in.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
WHOLE = {b"RIFF", b"ftyp"}  # WebP and AVIF, which Pillow reads whole before it knows their size
# Resident memory that decoding takes at most, of 30 megapixels in Pillow 12: JPEG 2000 19.5, WebP
# 16.2, AVIF 9.4, RGBA and CMYK 8.3, JPEG 4.3, 16-bit PNG 3.4.
BYTES_A_PIXEL = 20
STRIP = 1 << 20  # pixels of 16-bit greyscale turned into 8-bit at a time
LARGEST = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow itself refuses to decode (179 million pixels)
ORIENTATION = 0x0112  # EXIF tag; 1 is upright


class Limits(NamedTuple):
    """What one image may cost: pixels, each of which takes up to BYTES_A_PIXEL, and seconds."""

    pixels: int = 100_000_000
    seconds: float = 60.0


IMAGE_LIMITS = Limits()


class UnreadableImage(Exception):
    """An image file that cannot become pixels; carries `path` and a one-line `reason`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def load_pixels(path: Path, resolution: int, most: int = IMAGE_LIMITS.pixels) -> np.ndarray:
    """The image at `path` as CLIP sees it, before pixels are scaled and normalised.

    Equals numpy.asarray(CenterCrop(n)(Resize(n, BICUBIC)(Image.open(path).convert("RGB")))) with
    torchvision's transforms, bit for bit: the released code's loader followed by CLIP's own
    preprocessing. As there, the first frame counts, transparency is dropped, and the EXIF
    orientation is ignored. One difference: 16-bit greyscale keeps its high byte, where
    convert("RGB") would turn all but the 256 darkest greys white.

    path, resolution  the file, and n
    most              pixels; an image that its header says has more is not decoded
    returns           (n, n, 3) uint8
    Raises UnreadableImage for whatever cannot be decoded, OSError when no file can be opened.
    """
    return decode(path, resolution, most)[0]


def decode(path: Path, resolution: int, most: int = IMAGE_LIMITS.pixels) -> tuple[np.ndarray, bool]:
    """load_pixels, and whether the file carries an EXIF orientation other than upright."""
    try:
        with warnings.catch_warnings(), _opened(path) as file:
            warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
            _refuse_large_file(file, most)
            with Image.open(file, formats=FORMATS) as image:
                _refuse_large(image.size, most)
                turned = _turned(image)
                small = _resize(_to_rgb(image), resolution).convert("RGB")
                return np.array(_crop(small, resolution)), turned
    except Exception as error:  # decoders raise nearly anything for a damaged file
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # that is not the image's fault
        raise UnreadableImage(path, _reason(path, error)) from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, if it is one: opening a pipe or a device would wait for whoever writes to it."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # changed meanwhile
            raise ValueError("not a regular file")
        yield file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _refuse_large_file(file: IO[bytes], most: int) -> None:
    start = file.read(12)
    file.seek(0)
    size = os.fstat(file.fileno()).st_size
    if {start[:4], start[4:8]} & WHOLE and size > BYTES_A_PIXEL * most:
        raise ValueError(
            f"{size / 1e6:,.0f} MB of file exceed what {_megapixels(most)} can take "
            "(--max-megapixels)"
        )


def _refuse_large(size: tuple[int, int], most: int) -> None:
    width, height = size
    if width * height > most:
        raise ValueError(
            f"{width} x {height} pixels ({_megapixels(width * height)}) exceed --max-megapixels "
            f"{most / 1e6:g}"
        )


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:,.{1 if pixels < 1e7 else 0}f} megapixels"


def _to_rgb(image: Image.Image) -> Image.Image:
    """As RGB; greyscale stays as it is, since each channel is resized by itself anyway."""
    if image.mode.startswith("I;16") or image.mode == "I":
        return _high_bytes(image)
    if image.mode == "F":
        raise ValueError("floating-point greyscale, whose white is unknown; save it as 8-bit")
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _high_bytes(image: Image.Image) -> Image.Image:
    """16-bit greyscale as 8-bit, a strip at a time to save memory."""
    width, height = image.size
    found = Image.new("L", image.size)
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        grey = np.asarray(image.crop((0, top, width, min(top + rows, height))))
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(
                "32-bit greyscale, whose black and white are unknown; save it as 8-bit"
            )
        found.paste(Image.fromarray((grey >> 8).astype(np.uint8)), (0, top))
    return found


def _resize(image: Image.Image, resolution: int) -> Image.Image:
    width, height = image.size
    short, long = min(width, height), resolution * max(width, height) // min(width, height)
    if resolution * long > LARGEST:
        raise ValueError(f"{width} x {height} pixels are too thin for a shorter side {resolution}")
    size = (resolution, long) if width == short else (long, resolution)
    return image.resize(size, Image.Resampling.BICUBIC)


def _crop(image: Image.Image, resolution: int) -> Image.Image:
    left, top = (round((side - resolution) / 2) for side in image.size)
    return image.crop((left, top, left + resolution, top + resolution))


def _turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # a damaged EXIF block does not make the pixels unreadable
        return False


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        with path.open("rb") as file:
            start = file.read(12)
        return f"not an image (it starts with {start!r})" if start else "empty file, 0 bytes"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return " ".join(str(error).split()) or type(error).__name__
