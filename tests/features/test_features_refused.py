"""Files of features that lack a part or attack: one line that says what to do."""

import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cache.table import CacheError
from pipeline.features.read import Stated
from tests.encoder.hostile_pickles import Trap
from tests.features.parts import PARTS, ROWS, WIDTH, named, read


def test_what_is_missing_is_said_with_its_option(tmp_path):
    np.save(tmp_path / "f.npy", PARTS["features"])
    np.save(tmp_path / "labels.npy", PARTS["labels"])
    with pytest.raises(CacheError, match=r"has no labels; pass --labels FILE.*labels\.npy"):
        read(tmp_path / "f.npy")
    only = Stated(files={"labels": tmp_path / "labels.npy"})
    with pytest.raises(CacheError, match="--text-features FILE.*--model NAME"):
        read(tmp_path / "f.npy", only)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheError, match="no features in it"):
        read(tmp_path / "empty")
    (tmp_path / "up" / "inner").mkdir(parents=True)
    np.save(tmp_path / "up" / "inner" / "features.npy", PARTS["features"])
    with pytest.raises(CacheError, match="the folder inner in it has them"):
        read(tmp_path / "up")
    for file in ("a.csv", "nothing.npy"):
        (tmp_path / "a.csv").write_text("1,2")
        with pytest.raises(CacheError, match=file):
            read(tmp_path / file)


def endless_npy(file: Path) -> None:
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 512), }"
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(64))


def endless_h5(file: Path) -> None:
    with h5py.File(file, "w") as opened:
        opened.create_dataset(
            "features", (1 << 40, 512), "f4", chunks=(1024, 512), compression="gzip"
        )


def linked_h5(file: Path) -> None:
    with h5py.File(file, "w") as opened:
        opened["features"] = h5py.ExternalLink("/etc/hostname", "/")


def outside_h5(file: Path) -> None:
    with h5py.File(file, "w") as opened:
        opened.create_dataset("features", (2, 4), "u1", external=[("/etc/hostname", 0, 8)])


def nested_h5(file: Path) -> None:
    with h5py.File(file, "w") as opened:
        opened.create_group("a")["loop"] = opened["/"]


def renamed(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02cos\nsystem\nq\x00.")


HOSTILE = {
    "pickle.npy": lambda file: np.save(file, np.array([Trap()], object), allow_pickle=True),
    "trap.pt": lambda file: torch.save(Trap(), file),
    "dict.pt": lambda file: torch.save({"features": Trap()}, file),
    "module.pt": lambda file: torch.save(torch.nn.Linear(2, 2), file),
    "system.pt": renamed,
    "endless.npy": endless_npy,
    "endless.h5": endless_h5,
    "linked.h5": linked_h5,
    "outside.h5": outside_h5,
    "nested.h5": nested_h5,
    "noise.npy": lambda file: file.write_bytes(bytes(range(256)) * 8),
    "noise.pt": lambda file: file.write_bytes(bytes(range(256)) * 8),
    "noise.h5": lambda file: file.write_bytes(bytes(range(256)) * 8),
    "noise.safetensors": lambda file: file.write_bytes(bytes(range(256)) * 8),
    "empty.npy": lambda file: file.write_bytes(b""),
    "empty.pt": lambda file: file.write_bytes(b""),
    "nan.npy": lambda file: np.save(file, np.full((ROWS, WIDTH), np.nan)),
    "none.npy": lambda file: np.save(file, np.zeros((0, WIDTH))),
    "flat.npy": lambda file: np.save(file, np.zeros(ROWS)),
    "whole.npy": lambda file: np.save(file, np.ones((ROWS, WIDTH), int)),
    "mixed.pt": lambda file: torch.save({"features": [1, "a"]}, file),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_to_be_trusted_is_refused_in_one_line(name, tmp_path, capfd):
    file = tmp_path / name
    HOSTILE[name](file)
    np.save(tmp_path / "y.npy", PARTS["labels"])
    with pytest.raises(CacheError) as caught:
        read(file, named(tmp_path, files={"labels": tmp_path / "y.npy"}))
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert "unpickled" not in "".join(capfd.readouterr())
