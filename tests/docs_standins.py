"""Small data in the place of what the documentation's commands name; for docs-check."""

import shutil
from pathlib import Path

import numpy as np

from pipeline.datasets.demo.draw import draw_dataset

PICTURES = 240
PACS = {"cartoon": "cartoon", "painted": "art_painting", "shaded": "photo", "sketch": "sketch"}
PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
FIRST = (  # results that later commands name, made before the first of them
    "extract --dataset FOLDER --model demo",
    "federate cache/files/FOLDER-demo.h5 --held-out sketch --rounds 3 --out runs/0123456789ab",
    "cache import cars196.npz",
    "cache import pets24.npz",
    "sweep cache/files/cars196.h5 --grid lr=5e-5,1e-3 --rounds 3 --out runs/sweep-0123456789ab",
)


def make_standins(folder: Path) -> None:
    """Folders of images, photo.jpg, and .npz of features, under the names that the docs use."""
    draw_dataset(folder / "FOLDER", pictures=PICTURES)
    shutil.copytree(folder / "FOLDER", folder / "my_images")
    names = sorted(path.name for path in (folder / "FOLDER" / "sketch").iterdir() if path.is_dir())
    classes = dict(zip(names, PACS_CLASSES, strict=True))
    for style, domain in PACS.items():
        for name in names:
            shutil.copytree(
                folder / "FOLDER" / style / name, folder / "data" / "PACS" / domain / classes[name]
            )
    first = min((folder / "FOLDER").rglob("*.png"))
    shutil.copy(first, folder / "photo.jpg")  # the content says what it is, not the name
    shutil.copytree(first.parent, folder / "holiday")
    _embeddings(folder)
    for name, domains, split in (
        ("features.npz", ("photo", "sketch"), False),
        ("FILE.npz", ("photo", "sketch"), False),
        ("cars196.npz", ("cars",), True),
        ("pets24.npz", ("pets", "imagenet"), True),
    ):
        _features(folder / name, domains, split)


def _embeddings(folder: Path) -> None:
    """240 rows as wide as the built-in CLIP's, their labels and class names, a file each."""
    draw = np.random.default_rng(0)
    np.save(folder / "embeddings.npy", draw.standard_normal((240, 128)).astype(np.float32))
    np.save(folder / "y.npy", np.arange(240) % 8)
    (folder / "names.txt").write_text("\n".join(f"class {n}" for n in range(8)))


def _features(file: Path, domains: tuple[str, ...], split: bool) -> None:
    """240 rows a domain in 8 classes of width 16, each near its class's own prompt."""
    draw = np.random.default_rng(0)
    text = draw.standard_normal((8, 16)).astype(np.float32)
    labels = np.tile(np.arange(8), 30 * len(domains))
    features = (text[labels] + 2 * draw.standard_normal((len(labels), 16))).astype(np.float32)
    named = {"class_names": np.array([f"class {n}" for n in range(8)])}
    if split:
        named["split"] = draw.choice(3, len(labels), p=(0.7, 0.15, 0.15))
    np.savez(file, features=features, labels=labels, text_features=text,
             domains=np.repeat(np.arange(len(domains)), 240), domain_names=np.array(domains),
             **named)  # fmt: skip
