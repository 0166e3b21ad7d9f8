"""Pixels against torchvision and published pixels; damaged and odd files."""

import errno
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from pipeline.encoder import pixels
from pipeline.encoder.model import import_clip
from pipeline.encoder.pixels import MEAN, STD, Limits, UnreadableImage, decode, load_pixels
from tests.conftest import on_posix
from tests.packages import need
from tests.processes import python


def draw(width: int, height: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return noise[..., 0] if channels == 1 else noise


@pytest.fixture(scope="module")
def torchvision_pixels() -> Callable[[Path, int], np.ndarray]:
    need("clip", "torchvision")
    import_clip()  # torchvision may need the repair before it can be imported
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    def pixels_of(path: Path, resolution: int) -> np.ndarray:
        with Image.open(path) as file:
            image = file.convert("RGB")
        image = Resize(resolution, interpolation=InterpolationMode.BICUBIC)(image)
        return np.asarray(CenterCrop(resolution)(image))

    return pixels_of


SIZES = [
    (1, 1),
    (1, 3),
    (3, 1),
    (2, 2),
    (31, 32),
    (32, 32),
    (33, 32),
    (227, 227),
    (640, 7),
    (7, 640),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resolution", [1, 32, 33, 224])
def test_equals_torchvision_bit_for_bit(tmp_path, size, resolution, torchvision_pixels):
    Image.fromarray(draw(*size)).save(tmp_path / "image.png")
    comp = load_pixels(tmp_path / "image.png", resolution)
    assert comp.dtype == np.uint8
    assert np.array_equal(comp, torchvision_pixels(tmp_path / "image.png", resolution))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([7, 32, 64, 75]))
def test_equals_torchvision_at_any_size(tmp_path, torchvision_pixels, width, height, resolution):
    Image.fromarray(draw(width, height)).save(tmp_path / "image.bmp")
    ref = torchvision_pixels(tmp_path / "image.bmp", resolution)
    assert np.array_equal(load_pixels(tmp_path / "image.bmp", resolution), ref)


def test_equals_the_pixels_others_published(shared):
    folder = shared / "data" / "preprocess"
    published = np.load(folder / "expected.npz")
    for name, ref in zip(published["names"], published["pixels"].astype(np.float32), strict=True):
        found = load_pixels(folder / f"{name}.jpg", 224).astype(np.float32) / 255
        comp = ((found - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1)
        # float16 keeps 11 bits; a JPEG decoder of another build may differ by one grey level.
        assert abs(comp - ref).max() <= 2**-11 * abs(ref).max() + 1.01 / 255 / min(STD)
        assert np.mean(abs(comp - ref) <= 2**-11 * abs(ref) + 1e-6) > 0.999


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def odd_images(folder: Path) -> dict[str, Path]:
    colour = Image.fromarray(draw(50, 40))
    grey = Image.fromarray(draw(50, 40, channels=1))
    later = [Image.fromarray(draw(50, 40, seed)) for seed in (1, 2)]
    rgba = Image.fromarray(draw(50, 40, channels=4), "RGBA")
    clear = {"transparency": bytes(range(256)), "optimize": False}
    return {
        "palette": save(colour.quantize(64), folder / "palette.png"),
        "clear palette": save(colour.quantize(256), folder / "clear.png", **clear),
        "cmyk": save(colour.convert("CMYK"), folder / "cmyk.jpg"),
        "grey": save(grey, folder / "grey.jpg"),
        "grey and alpha": save(rgba.convert("LA"), folder / "la.png"),
        "alpha": save(rgba, folder / "rgba.png"),
        "one bit": save(grey.convert("1"), folder / "bit.png"),
        "gif": save(colour, folder / "moving.gif", save_all=True, append_images=later),
        "webp": save(
            colour, folder / "moving.webp", save_all=True, append_images=later, lossless=True
        ),
        "jpeg 2000": save(colour, folder / "image.jp2"),
        "misnamed": save(colour, folder / "misnamed.jpg", format="PNG"),
    }


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_every_mode_becomes_the_rgb_of_its_first_frame(tmp_path, torchvision_pixels):
    for name, path in odd_images(tmp_path).items():
        assert np.array_equal(load_pixels(path, 32), torchvision_pixels(path, 32)), name


def test_an_animation_shows_its_first_frame(tmp_path):
    frames = [Image.fromarray(draw(32, 32, seed)) for seed in (0, 1)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(load_pixels(tmp_path / "a.webp", 32), draw(32, 32))


@pytest.mark.parametrize(
    ("name", "dtype"), [("deep.png", np.uint16), ("deep.tif", np.uint16), ("wide.tif", np.int32)]
)
def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, name, dtype):
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(ramp.astype(dtype)).save(tmp_path / name)
    comp = load_pixels(tmp_path / name, 32)
    assert np.array_equal(comp, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_exif_orientation_is_told_and_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(draw(50, 40))
    image.save(tmp_path / "upright.jpg")
    image.save(tmp_path / "turned.jpg", exif=exif)
    (upright, was_turned), (turned, is_turned) = (
        decode(tmp_path / name, 32) for name in ("upright.jpg", "turned.jpg")
    )
    assert (was_turned, is_turned) == (False, True)
    assert np.array_equal(upright, turned)


def png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(b"\0" * ((width + 7) // 8 + 1) * height)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(draw(90, 90)).save(file, "JPEG")
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(draw(90, 90)).save(file, "PNG")
    return file.getvalue()


def float_tiff() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.float32(draw(9, 9, channels=1))).save(file, "TIFF")
    return file.getvalue()


BAD = {
    "empty.jpg": (lambda: b"", "0 bytes"),
    "text.jpg": (lambda: b"<html>404 not found</html>", "<html>"),
    "half.jpg": (lambda: jpeg()[:2000], "truncated"),
    "half.png": (lambda: png()[: len(png()) // 2], "truncated"),
    "header.jpg": (lambda: jpeg()[:20], ""),
    "bomb.png": (lambda: png_of_size(20_000, 20_000), "400000000 pixels"),
    "thread.png": (lambda: png_of_size(6000, 1), "6000 x 1"),
    "float.tif": (float_tiff, "floating-point"),
    "program.eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named_with_the_reason_on_one_line(tmp_path, name):
    make, reason = BAD[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(UnreadableImage) as caught:
        load_pixels(tmp_path / name, 224)
    assert name in str(caught.value) and reason in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.reason


def large(kind: str) -> bytes:
    """A small file of many pixels: of one colour, or with a false header."""
    size = (6000, 2000)
    if kind == "header.bmp":
        file = io.BytesIO()
        Image.new("L", (1, 1)).save(file, "BMP")
        return file.getvalue()[:18] + struct.pack("<ii", *size) + file.getvalue()[26:]
    if kind == "header.ppm":
        return b"P6 6000 2000 255\n"
    name, mode = kind.split(".")[::-1]
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        Image.new(mode, size).save(file, {"tif": "TIFF", "jpg": "JPEG"}.get(name, name))
    return file.getvalue()


LARGE = ["L.png", "I;16.png", "RGBA.png", "1.png", "P.png", "RGB.jpg", "CMYK.jpg", "RGB.webp",
         "RGBA.webp", "P.gif", "I;16.tif", "RGB.bmp", "header.bmp", "header.ppm"]  # fmt: skip


@pytest.mark.parametrize("kind", LARGE)
def test_more_pixels_than_allowed_are_named_and_not_decoded(tmp_path, kind, monkeypatch):
    (tmp_path / kind).write_bytes(large(kind))
    if not kind.startswith("header"):
        assert load_pixels(tmp_path / kind, 8, Limits(12_000_000)).shape == (8, 8, 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # whoever decodes calls None
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(UnreadableImage) as caught:
        load_pixels(tmp_path / kind, 8, Limits(11_999_999))
    assert "6000 x 2000 pixels (12 megapixels) exceed --max-megapixels 12" in str(caught.value)


@pytest.mark.parametrize("start", [b"RIFF\0\0\0\0WEBPVP8L", b"\0\0\0\x20ftypavif"])
def test_a_file_larger_than_its_pixels_could_be_is_not_read(tmp_path, start):
    with (tmp_path / "x.webp").open("wb") as file:
        file.write(start)
        file.truncate(1 << 40)  # a hole; nothing is on the disk
    with pytest.raises(
        UnreadableImage,
        match="would take 1,048,576 MiB of memory to decode, over --max-image-mib 1024",
    ):
        load_pixels(tmp_path / "x.webp", 8)


@on_posix("makes pipes")
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_device_is_not_opened(tmp_path, make):
    make(tmp_path / "x.png")
    with pytest.raises(UnreadableImage, match="not a regular file"):
        load_pixels(tmp_path / "x.png", 8)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_no_more_open_files_is_not_the_images_fault(tmp_path, monkeypatch, number):
    def stat(*words, **more):
        raise OSError(number, os.strerror(number))

    (tmp_path / "x.png").write_bytes(png())
    monkeypatch.setattr(pixels.os, "stat", stat)
    with pytest.raises(OSError, match=os.strerror(number)):
        load_pixels(tmp_path / "x.png", 8)


@pytest.mark.parametrize("there", [False, True])
def test_a_missing_file_and_a_folder_are_unreadable(tmp_path, there):
    if there:
        (tmp_path / "image.png").mkdir()
    with pytest.raises(UnreadableImage, match=r"image\.png: .+"):
        load_pixels(tmp_path / "image.png", 32)


def test_workers_import_nothing_heavy():
    code = (
        "import sys, pipeline.encoder.blocks; "
        "print({'torch', 'clip', 'torchvision'} & set(sys.modules))"
    )
    assert python(code).strip() == "set()"
