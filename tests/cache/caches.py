"""Small caches for tests; run as a program it writes one slowly, to be killed."""

import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cache import store  # noqa: E402
from cache.table import FeatureTable  # noqa: E402

OPTIONS = ("paths", "image_digests", "force")  # of open_writer


def draw(rows: int = 50, width: int = 6, classes: int = 3, seed: int = 0, dtype="float16") -> dict:
    """The fields of a table of random numbers, and its paths."""
    random = np.random.default_rng(seed)
    return {
        "features": random.standard_normal((rows, width)).astype(dtype),
        "identity": {
            "model": "demo",
            "preprocessing": {"version": "1.0", "size": 32},
            "seed": seed,
        },
        "class_names": [f"class {number}" for number in range(classes)],
        "domain_names": ["photo", "sketch"],
        "labels": random.integers(0, classes, rows),
        "domains": random.integers(0, 2, rows),
        "paths": [f"photo/class/{number:03d}.jpg" for number in range(rows)],
        "text_features": random.standard_normal((classes, width)).astype(np.float32),
        "logit_scale": 100.0,
    }


def begin(path: Path, drawn: dict, **changes) -> store.Writer:
    """open_writer for `drawn`, with some fields and arguments changed."""
    values = {"split": None, **drawn, **changes}
    options = {name: values.pop(name) for name in OPTIONS if name in values}
    width, dtype = (values.pop(name, None) for name in ("width", "dtype"))
    features = values.pop("features")
    width = features.shape[1] if width is None else width
    table = FeatureTable(
        source="",
        features=store.no_features(len(features), width, dtype or features.dtype),
        labels=np.asarray(values.pop("labels"), np.int64),
        domains=np.asarray(values.pop("domains"), np.int64),
        text_features=np.asarray(values.pop("text_features"), np.float32),
        split=None if (split := values.pop("split")) is None else np.asarray(split, np.int8),
        **values,
    )
    return store.open_writer(path, table, **options)


def make(path: Path, drawn: dict, unreadable: tuple[int, ...] = (), **changes) -> Path:
    """A complete cache of `drawn`."""
    with begin(path, drawn, **changes) as writer:
        fill(writer, drawn, unreadable)
        writer.publish()
    return path


def fill(writer: store.Writer, drawn: dict, unreadable: tuple[int, ...] = ()) -> None:
    todo = writer.todo
    writer.put(todo, drawn["features"][todo], np.where(np.isin(todo, unreadable), 2, 1))


def write_slowly(path: Path, rows: int, pause: float) -> None:
    """Fill and publish a cache five rows at a time; says "begun" once the .partial is there."""
    drawn = draw(rows)
    with begin(path, drawn) as writer:
        print("begun", flush=True)
        while len(writer.todo):
            some = writer.todo[:5]
            writer.put(some, drawn["features"][some], np.where(some == 7, 2, 1))
            writer.flush()
            time.sleep(pause)
        writer.publish()


if __name__ == "__main__":
    target, count, wait, last_sync = sys.argv[1:]
    syncs, fsync = [0], os.fsync

    def counted(handle: int) -> None:
        syncs[0] += 1
        if syncs[0] == int(last_sync):
            os._exit(9)
        fsync(handle)

    os.fsync = counted
    write_slowly(Path(target), int(count), float(wait))
