"""Damaged caches and features from elsewhere, and what reads them."""

import contextlib
import io
import zipfile
from pathlib import Path

import numpy as np

from cache import store
from cache.container.disk import partial_of
from cache.npz import read_npz
from tests.cache import caches
from tests.cache.forging import seal
from tests.reliability.taken import taken

DRAWN = caches.draw(60, 6)


def make_cache(place: Path) -> list[bytes]:
    """A complete cache, and one with unreadable rows and a split."""
    one = caches.make(place / "one.h5", DRAWN)
    split = np.arange(60).astype(np.int8) % 3
    other = caches.make(place / "two.h5", DRAWN, unreadable=(3, 7), split=split)
    return [one.read_bytes(), other.read_bytes()]


def read_cache(place: Path, data: bytes) -> dict[str, str]:
    path = place / "a.h5"
    path.write_bytes(data)
    return taken(
        {
            "read_table": lambda: (t := store.read_table(path), store.load_features(t)),
            "read_paths": lambda: store.read_paths(path),
            "info": lambda: store.info(path),
            "verify": lambda: store.verify(path),
        }
    )


def read_forged_cache(place: Path, data: bytes) -> dict[str, str]:
    path = place / "a.h5"
    path.write_bytes(data)
    with contextlib.suppress(Exception):  # what cannot be sealed is read as it is
        seal(path)
    return read_cache(place, path.read_bytes())


def make_partial(place: Path) -> list[bytes]:
    """A cache that was begun, half filled; and the whole that it becomes."""
    (place / "whole.h5").unlink(missing_ok=True)
    caches.make(place / "whole.h5", DRAWN)
    with caches.begin(place / "a.h5", DRAWN) as writer:
        some = writer.todo[:30]
        writer.put(some, DRAWN["features"][some], np.ones(30))
    return [partial_of(place / "a.h5").read_bytes()]


def read_partial(place: Path, data: bytes) -> dict[str, str]:
    """Gone on with: refused, or it ends with the bytes of an undisturbed one."""
    path = place / "a.h5"
    path.unlink(missing_ok=True)
    partial_of(path).write_bytes(data)

    def resume() -> bytes:
        with caches.begin(path, DRAWN) as writer:
            caches.fill(writer, DRAWN)
            writer.publish()
        return path.read_bytes()

    return taken({"open_writer": resume})


def arrays() -> dict[str, np.ndarray]:
    """Every key that an .npz may have."""
    draw = np.random.default_rng(0)
    return {
        "features": draw.standard_normal((40, 5)).astype(np.float16),
        "labels": draw.integers(0, 3, 40),
        "text_features": draw.standard_normal((3, 5)).astype(np.float32),
        "domains": np.arange(40) % 2,
        "class_names": np.array(["cat", "dog", "Größe"]),
        "domain_names": np.array(["photo", "sketch"]),
        "split": (np.arange(40) % 3).astype(np.int8),
        "logit_scale": np.float64(50),
        "model": np.array("ViT-B/32"),
        "normalised": np.bool_(False),
        "dataset": np.array("drawn"),
    }


def make_npz(place: Path) -> list[bytes]:
    """Stored and deflated."""
    found = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, **arrays())
        found.append(buffer.getvalue())
    return found


def read_imported(place: Path, data: bytes) -> dict[str, str]:
    path = place / "a.npz"
    path.write_bytes(data)
    return taken({"read_npz": lambda: read_npz(path)})


def make_members(place: Path) -> list[bytes]:
    """Each member alone, its name's number in front."""
    found = []
    for number, value in enumerate(arrays().values()):
        buffer = io.BytesIO()
        np.save(buffer, value)
        found.append(bytes([number]) + buffer.getvalue())
    return found


def read_member(place: Path, data: bytes) -> dict[str, str]:
    """A damaged .npy under a right checksum of the archive."""
    names = list(arrays())
    damaged = names[(data or b"\0")[0] % len(names)]
    with zipfile.ZipFile(place / "a.npz", "w") as archive:
        for name, value in arrays().items():
            buffer = io.BytesIO()
            np.save(buffer, value)
            archive.writestr(f"{name}.npy", data[1:] if name == damaged else buffer.getvalue())
    return taken({"read_npz": lambda: read_npz(place / "a.npz")})
