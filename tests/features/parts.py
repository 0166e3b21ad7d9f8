"""The parts of one small table, and reading them from files that hold them."""

from pathlib import Path

import numpy as np
import torch

from cache.npz import as_table
from pipeline.features.read import Stated, read_features
from tests.conftest import logged

ROWS, WIDTH, CLASSES = 40, 6, 3
NAMES = ["cat", "dog", "owl"]


def parts() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {
        "features": random.standard_normal((ROWS, WIDTH)).astype(np.float32),
        "labels": np.arange(ROWS) % CLASSES,
        "text_features": random.standard_normal((CLASSES, WIDTH)).astype(np.float32),
        "class_names": np.array(NAMES),
    }


PARTS = parts()
SPLITS = {"train": slice(0, 20), "val": slice(20, 28), "test": slice(28, ROWS)}


def expected(**changes: object):
    return as_table(Path("x"), {**PARTS, **changes}, dataset="x")


def read(source: Path, stated: Stated | None = None, **settings: object):
    with logged() as said:
        return read_features(source, stated, dataset="x", **settings), "\n".join(said)


def named(folder: Path, **others: object) -> Stated:
    """Text features and names in separate files, beside a source without them."""
    np.save(folder / "t_e_x_t.npy", PARTS["text_features"])
    (folder / "n_a_m_e_s.txt").write_text("\n".join(NAMES) + "\n")
    files = {"text_features": folder / "t_e_x_t.npy", "class_names": folder / "n_a_m_e_s.txt"}
    return Stated(files={**files, **others.pop("files", {})}, **others)


ONE_HOT = np.eye(CLASSES, dtype=np.float16)[PARTS["labels"]]


def written(file: Path, content: object) -> Path:
    if isinstance(content, str):
        file.write_text(content)
    elif file.suffix == ".pt":
        torch.save(content, file)
    else:
        np.save(file, content)
    return file
