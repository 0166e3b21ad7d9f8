"""The memory for decoding an image is bounded by its header, for every format and mode."""

import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from pipeline.encoder import pixels
from pipeline.encoder.pixels import IMAGE_LIMITS, MIB, Limits, UnreadableImage, load_pixels
from tests.conftest import MEASURES_PEAKS
from tests.packages import need_codec
from tests.processes import python

SIZE = (1000, 780)
ONE_STRIP = {"compression": "tiff_lzw", "strip_size": 1 << 30}
FORMS = {  # what is saved -> options, modes
    "plain.jpg": ({}, ("L", "RGB", "CMYK")),
    "progressive.jpg": ({"progressive": True, "subsampling": 0}, ("L", "RGB", "CMYK")),
    "plain.png": ({"compress_level": 1}, ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    "plain.webp": ({"method": 0}, ("RGB", "RGBA")),
    "lossless.webp": ({"lossless": True, "method": 0}, ("RGB", "RGBA")),
    "plain.avif": ({"speed": 10, "subsampling": "4:4:4"}, ("RGB", "RGBA")),
    "plain.jp2": ({}, ("L", "LA", "RGB", "RGBA", "I;16")),
    "tiles.jp2": ({"tile_size": (512, 512)}, ("RGB",)),
    "plain.tif": ({}, ("1", "L", "LA", "RGB", "RGBA", "CMYK", "I;16", "I")),
    "one-strip.tif": (ONE_STRIP, ("L", "RGB", "RGBA", "CMYK", "I;16")),
    "jpeg.tif": ({"compression": "jpeg", "strip_size": 1 << 30}, ("RGB",)),
    "plain.gif": ({}, ("L", "P")),
    "plain.bmp": ({}, ("L", "P", "RGB")),
    "plain.ppm": ({}, ("1", "L", "RGB", "I;16")),
}
CASES = [(form, mode) for form, (_, modes) in FORMS.items() for mode in modes]
PEAKS = """
import json, sys
from pathlib import Path
from pipeline.encoder.pixels import load_pixels

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

for path in map(Path, sys.argv[1:]):
    load_pixels(path.with_name(f"small-{path.name}"), 32)  # loads the codec
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    load_pixels(path, 32)
    print(json.dumps([path.name, status("VmHWM") - before]))
"""


def drawn(mode: str, size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (size[1] // 8, size[0] // 8, 4), np.uint8)
    image = Image.fromarray(coarse).resize(size)
    if mode in ("I;16", "I"):
        deep = np.asarray(image.convert("L")).astype(np.uint16 if mode == "I;16" else np.int32)
        return Image.fromarray(deep * 256)
    return image.convert(mode)


def save(path: Path, form: str, mode: str, size: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        drawn(mode, size).save(path, **FORMS[form][0])


@pytest.fixture(scope="module")
def peaks(tmp_path_factory) -> dict[str, tuple[Path, int]]:
    """{file name: (path, peak bytes added by decoding)}."""
    folder, paths = tmp_path_factory.mktemp("images"), []
    for form, mode in CASES:
        if form.endswith("avif") and not features.check("avif"):
            continue
        paths.append(folder / f"{mode.replace(';', '')}-{form}")
        save(paths[-1], form, mode, SIZE)
        save(paths[-1].with_name(f"small-{paths[-1].name}"), form, mode, (16, 16))
    # glibc returns every freed block of this size, so that a peak is only that image's.
    own = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "0"}
    told = python(PEAKS, *paths, env={**os.environ, **own})
    return {name: (folder / name, peak) for name, peak in map(json.loads, told.splitlines())}


@MEASURES_PEAKS
@pytest.mark.parametrize(("form", "mode"), CASES)
def test_the_bound_by_the_header_holds_and_is_near(peaks, form, mode):
    if form.endswith("avif"):
        need_codec("avif")
    path, peak = peaks[f"{mode.replace(';', '')}-{form}"]
    asked: list[int] = []

    def noted(what: str, size: int, limits: Limits) -> None:
        asked.append(size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "_refuse_bytes", noted)
        load_pixels(path, 32)
    slack = SIZE[0] * SIZE[1]  # a byte per pixel: blocks that are read, and Python's own memory
    assert peak <= asked[-1] + slack, (peak / slack, asked[-1] / slack)
    # Pillow's header does not show tiles; an uncompressed TIFF may be mapped.
    if form not in ("tiles.jp2", "plain.tif"):
        assert asked[-1] <= 3 * peak + 2 * slack, (peak / slack, asked[-1] / slack)


@pytest.mark.parametrize(("form", "mode"), CASES)
def test_more_memory_than_allowed_is_named_and_not_taken(tmp_path, form, mode, monkeypatch):
    if form.endswith("avif"):
        need_codec("avif")
    save(tmp_path / form, form, mode, (640, 480))
    load_pixels(tmp_path / form, 8)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # whoever decodes calls None
    with pytest.raises(UnreadableImage) as caught:
        load_pixels(tmp_path / form, 8, Limits(bytes=640 * 480))
    assert "of memory to decode, over --max-image-mib" in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "form", "megapixels"),
    [("RGB", "plain.jpg", 100), ("RGB", "plain.png", 100), ("RGBA", "plain.png", 100),
     ("RGB", "plain.tif", 100), ("RGB", "plain.jp2", 50), ("RGB", "plain.webp", 50)],
)  # fmt: skip
def test_ordinary_images_fit_the_default_limits(tmp_path, mode, form, megapixels):
    save(tmp_path / form, form, mode, (1000, 1000))
    with Image.open(tmp_path / form) as image:
        size = pixels._bytes_a_pixel(image) * megapixels * 1_000_000
    assert size <= IMAGE_LIMITS.bytes


@pytest.mark.parametrize("size", [(3, 30_000), (30_000, 3)])
def test_what_resizing_takes_is_counted(tmp_path, size):
    """Resizing few pixels to a shorter side of 224 can take half a gigabyte."""
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    (tmp_path / "thin.png").write_bytes(file.getvalue())
    least = 224 * 224 * 30_000 // 3 * 4
    with pytest.raises(UnreadableImage, match=f"{size[0]} x {size[1]} pixels of PNG .* MiB"):
        load_pixels(tmp_path / "thin.png", 224, Limits(bytes=least))
    assert load_pixels(tmp_path / "thin.png", 8, Limits(bytes=4 * MIB)).shape == (8, 8, 3)
