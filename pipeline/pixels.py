"""An image file -> the square of 8-bit pixels that CLIP's own preprocessing makes of it.

Needs Pillow and numpy only: worker processes import this file and nothing heavier.
"""

import warnings
from pathlib import Path

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

# Without EPS, which Pillow hands to an outside program, and the kinds nobody keeps photos in.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
LARGEST = 2 * Image.MAX_IMAGE_PIXELS  # where Pillow itself refuses to decode (179 million pixels)
ORIENTATION = 0x0112  # EXIF tag; 1 is upright


class UnreadableImage(Exception):
    """An image file that cannot become pixels; carries `path` and a one-line `reason`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def load_pixels(path: Path, resolution: int) -> np.ndarray:
    """The image at `path` as CLIP sees it, before pixels are scaled and normalised.

    Equals numpy.asarray(CenterCrop(n)(Resize(n, BICUBIC)(Image.open(path).convert("RGB")))) with
    torchvision's transforms, bit for bit: the released code's loader followed by CLIP's own
    preprocessing. As there, the first frame counts, transparency is dropped, and the EXIF
    orientation is ignored. One difference: 16-bit greyscale keeps its high byte, where
    convert("RGB") would turn all but the 256 darkest greys white.

    path, resolution  the file, and n
    returns           (n, n, 3) uint8
    Raises UnreadableImage for whatever cannot be decoded.
    """
    return decode(path, resolution)[0]


def decode(path: Path, resolution: int) -> tuple[np.ndarray, bool]:
    """load_pixels, and whether the file carries an EXIF orientation other than upright."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
            with Image.open(path, formats=FORMATS) as image:
                turned = _turned(image)
                return np.array(_crop(_resize(_to_rgb(image), resolution), resolution)), turned
    except Exception as error:  # decoders raise nearly anything for a damaged file
        raise UnreadableImage(path, _reason(path, error)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(
                "32-bit greyscale, whose black and white are unknown; save it as 8-bit"
            )
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point greyscale, whose white is unknown; save it as 8-bit")
    return image.convert("RGB")


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
        start = path.read_bytes()[:12]
        return f"not an image (it starts with {start!r})" if start else "empty file, 0 bytes"
    return " ".join(str(error).split()) or type(error).__name__
