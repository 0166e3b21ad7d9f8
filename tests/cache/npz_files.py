"""An .npz file of features, as other tools write one."""

from pathlib import Path

import numpy as np


def arrays(rows: int = 40, width: int = 5, classes: int = 3, dtype="float16") -> dict:
    random = np.random.default_rng(0)
    return {
        "features": random.standard_normal((rows, width)).astype(dtype),
        "labels": random.integers(0, classes, rows),
        "text_features": random.standard_normal((classes, width)).astype(np.float32),
    }


def save(folder: Path, **changes) -> Path:
    path = folder / "a.npz"
    kept = {name: value for name, value in (arrays() | changes).items() if value is not None}
    np.savez(path, **kept)
    return path
