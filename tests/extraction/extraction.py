"""Helpers for tests of extraction: a small tree of images, and a run with its messages."""

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.extraction.extract import ExtractReport, extract
from tests.conftest import logged


def draw_tree(folder: Path) -> Path:
    """Two domains of two classes, 23 images, in several formats and sizes."""
    rng = np.random.default_rng(0)
    for number in range(23):
        domain, name = ("art", "photo")[number % 2], ("cat", "dog")[number // 2 % 2]
        inner = folder / "images" / domain / name
        inner.mkdir(parents=True, exist_ok=True)
        size = rng.integers(20, 60, 2)
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        image.save(inner / f"{number:02}.{('png', 'jpg', 'bmp')[number % 3]}")
    return folder / "images"


class Said(list):
    """Collects lines for the user."""

    def __call__(self, line: str) -> None:
        assert "\n" not in line
        self.append(line)


def run(dataset: Path, model: Path, out: Path, **settings) -> tuple[ExtractReport, list[str]]:
    """extract() on the CPU, decoding in this process unless `workers` is given."""
    settings = {"workers": 0, "device": "cpu"} | settings
    with logged() as said:
        report = extract(str(dataset), model=str(model), out=out, **settings)
    assert not any("\n" in line for line in said)
    return report, said


def spoil(tree: Path) -> dict[str, str]:
    """Put four bad images into the tree; {path: part of the reason}."""
    jpeg = (tree / "photo" / "cat" / "01.jpg").read_bytes()
    bad = {
        "art/cat/empty.jpg": (b"", "0 bytes"),
        "art/dog/text.png": (b"no image at all", "not an image"),
        "photo/cat/half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "photo/dog/dead.png": (None, "No such file"),
    }
    for path, (content, _) in bad.items():
        if content is None:
            (tree / path).symlink_to(tree / "nowhere")
        else:
            (tree / path).write_bytes(content)
    return {path: reason for path, (_, reason) in bad.items()}
