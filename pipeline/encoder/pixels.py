"""Image file -> square of 8-bit pixels, as in CLIP's own preprocessing.

Needs only Pillow and numpy: worker processes import this file and nothing heavier.
"""

import errno
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from pipeline.contained import is_contained, read_contained
from pipeline.errors import ConfigError

# clip/clip.py, _transform: the numbers of its Normalize.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

# What determines the pixels; part of a cache's identity. Lossless formats decode the same in every
# version, so only JPEG's decoder is named.
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
"""Fields of PREPROCESSING with library versions, which change a pixel's last bit at most."""

# Without EPS, which Pillow hands to an external program, and formats not used for photos.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
# Bytes 0 to 3 or 4 to 7 of WebP and AVIF, which Pillow reads completely before it knows the size
# of the image, and of JPEG 2000, of which OpenJPEG holds a tile, often the whole image.
WHOLE = {b"RIFF", b"ftyp", b"jP  ", b"\xff\x4f\xff\x51"}
MIB = 1 << 20
STRIP = 1 << 17  # pixels of 16-bit greyscale converted to 8-bit at a time
LARGEST = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow itself refuses to decode (179 million pixels)
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
TIFF_BITS, STRIP_BYTES, TILE_BYTES = 258, 279, 325  # TIFF tags: BitsPerSample, ...ByteCounts


class Limits(NamedTuple):
    """What one image may take: pixels, seconds, and bytes of memory while decoding."""

    pixels: int = 100_000_000
    seconds: float = 60.0
    bytes: int = 1024 * MIB  # 100 megapixels of any JPEG but CMYK


IMAGE_LIMITS = Limits()
MOST_SECONDS, MOST_MIB = 1e6, 1e9


def image_limits(megapixels: float, seconds: float, mib: float) -> Limits:
    """The limits of --max-megapixels, --max-image-seconds and --max-image-mib; ConfigError."""
    if not 0 < megapixels * 1e6 <= LARGEST:
        raise ConfigError(
            f"--max-megapixels {megapixels:g}: must be above 0, at most {LARGEST // 10**6}, where "
            "Pillow refuses to decode"
        )
    if not 0 < seconds < MOST_SECONDS:
        raise ConfigError(
            f"--max-image-seconds {seconds:g}: must be above 0, below {MOST_SECONDS:g}"
        )
    if not 1 <= mib < MOST_MIB:
        raise ConfigError(f"--max-image-mib {mib:g}: must be at least 1 and below {MOST_MIB:g}")
    return Limits(int(megapixels * 1e6), seconds, int(mib * MIB))


class UnreadableImage(Exception):
    """An image file that cannot be decoded; has `path` and a one-line `reason`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def load_pixels(path: Path, resolution: int, limits: Limits = IMAGE_LIMITS) -> np.ndarray:
    """The image at `path` as CLIP gets it, before pixels are scaled and normalised.

    Equals numpy.asarray(CenterCrop(n)(Resize(n, BICUBIC)(Image.open(path).convert("RGB")))) with
    torchvision's transforms, bit for bit: the released code's loader followed by CLIP's own
    preprocessing. As there, only the first frame is used, transparency is dropped, and the EXIF
    orientation is ignored. One difference: 16-bit greyscale keeps its high byte, where
    convert("RGB") would turn all but the 256 darkest greys white.

    path, resolution  the file, and n
    limits            an image whose header exceeds pixels or bytes is not decoded
    returns           (n, n, 3) uint8
    Raises UnreadableImage for anything that cannot be decoded, OSError if no file can be opened.
    """
    return decode(path, resolution, limits)[0]


def decode(path: Path, resolution: int, limits: Limits = IMAGE_LIMITS) -> tuple[np.ndarray, bool]:
    """load_pixels, and whether the file has an EXIF orientation other than upright."""
    try:
        with warnings.catch_warnings(), _opened(path, limits) as file:
            warnings.simplefilter("ignore")  # Pillow's warnings about odd but readable files
            whole = _read_whole(file, limits)
            with Image.open(file, formats=FORMATS) as image:
                _refuse_large(image, whole, resolution, limits)
                turned = _turned(image)
                size = _resized(image.size, resolution)
                small = _to_rgb(image).resize(size, Image.Resampling.BICUBIC)
                left, top = (round((side - resolution) / 2) for side in size)
                square = small.crop((left, top, left + resolution, top + resolution))
                return np.array(square.convert("RGB")), turned
    except Exception as error:  # decoders raise nearly anything for a damaged file
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # not the image's fault
        raise UnreadableImage(path, _reason(path, error)) from error


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[IO[bytes]]:
    """Open the file if it is regular: opening a pipe or a device would wait for its writer."""
    if is_contained(str(path)):
        yield BytesIO(read_contained(str(path), limits.bytes))
        return
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # replaced meanwhile
            raise ValueError("not a regular file")
        yield file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_whole(file: IO[bytes], limits: Limits) -> int:
    """Compressed bytes of the file that are in memory at once; 0 if it is read in blocks."""
    start = file.read(12)
    size = file.seek(0, os.SEEK_END) if {start[:4], start[4:8]} & WHOLE else 0
    file.seek(0)
    _refuse_bytes("this file", size, limits)
    return size


def _refuse_large(image: Image.Image, whole: int, resolution: int, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.pixels:
        raise ValueError(
            f"{width} x {height} pixels ({_megapixels(width * height)}) exceed --max-megapixels "
            f"{limits.pixels / 1e6:g}"
        )
    if image.format == "TIFF":
        whole = max(
            (*image.tag_v2.get(STRIP_BYTES, ()), *image.tag_v2.get(TILE_BYTES, ())), default=0
        )
    size = whole + width * height * _bytes_a_pixel(image) + _bytes_resized(image, resolution)
    _refuse_bytes(f"{width} x {height} pixels of {image.format} ({image.mode})", size, limits)


def _refuse_bytes(what: str, size: int, limits: Limits) -> None:
    if size > limits.bytes:
        raise ValueError(
            f"{what} would take {size / MIB:,.0f} MiB of memory to decode, over --max-image-mib "
            f"{limits.bytes / MIB:g}"
        )


def _bytes_a_pixel(image: Image.Image) -> int:
    """Memory per pixel while decoding: the codec's samples, Pillow's image, its copy as RGB.

    An upper bound; tests/encoder/test_image_memory.py measures each format and mode.
    """
    bands, wide = len(image.getbands()), 2 if image.mode.startswith("I;16") else 1
    pillow = {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if wide == 2 else 4)
    copy = 0 if image.mode in ("RGB", "L") else 1 if image.mode[0] in "IF" else 4
    if image.format == "JPEG2000":  # OpenJPEG: 32 bits a sample, then a buffer of them as stored
        codec = bands * (4 + wide)
    elif image.format == "WEBP":  # two canvases of RGBA, and the frame as bytes
        codec = 12
    elif image.format == "AVIF":  # up to 16 bits for each of Y, U, V and alpha; RGBA as bytes
        codec = 12
    elif image.format == "JPEG":  # coefficients of several scans, 16 bits each
        codec = 2 * bands
    elif image.format == "TIFF":  # a strip may be the whole image; JPEG in it becomes RGBA
        codec = max(4, -(-sum(image.tag_v2.get(TIFF_BITS, (8,))) // 8))
    elif image.format in ("PPM", "BMP"):  # all samples as bytes, twice
        codec = 2 * (4 if image.mode == "I" else bands)
    else:
        codec = 1
    return codec + pillow + copy


def _bytes_resized(image: Image.Image, resolution: int) -> int:
    """Memory of the two passes of Pillow's resize, which is large for a long thin image."""
    width, height = _resized(image.size, resolution)
    bytes_a_pixel = 1 if image.mode[0] in "LI" and image.mode != "LA" else 4
    return width * (image.size[1] + height) * bytes_a_pixel


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:,.{1 if pixels < 1e7 else 0}f} megapixels"


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; greyscale is kept, since each channel is resized separately anyway."""
    if image.mode.startswith("I;16") or image.mode == "I":
        return _high_bytes(image)
    if image.mode == "F":
        raise ValueError("floating-point greyscale, whose white is unknown; save it as 8-bit")
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _high_bytes(image: Image.Image) -> Image.Image:
    """Convert 16-bit greyscale to 8-bit, a strip at a time to save memory."""
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


def _resized(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    width, height = size
    long = resolution * max(size) // min(size)
    return (resolution, long) if width <= height else (long, resolution)


def _turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # a damaged EXIF block does not make the pixels unreadable
        return False


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnidentifiedImageError):
        with _opened(path, IMAGE_LIMITS) as file:
            start = file.read(12)
        return f"not an image (it starts with {start!r})" if start else "empty file, 0 bytes"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    return " ".join(str(error).split()) or type(error).__name__
