"""Read and write arrays by name in HDF5 files of other tools."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from cache.container.userblock import MAGIC
from cache.table import CacheError

_DEEPEST, _MOST = 8, 10_000
_UNPACKED, _SLACK = 100, 1 << 26  # as in npz_members: declared bytes over those in the file


def read_h5(path: Path, wanted: dict[str, str] | None = None) -> dict[str, np.ndarray]:
    """The datasets of a file as arrays, text as text; those in groups as "group/name".

    wanted  {name of ours: name in the file}; None: all, by their own names

    Links to other files, external and virtual storage, references and compound types are not
    read, nor are datasets that declare over 100 times the bytes they have. Raises CacheError.
    """
    try:
        with path.open("rb") as start:
            if start.read(len(MAGIC)) == MAGIC:
                raise CacheError(f"{path}: is a cache already; no import is needed")
        with h5py.File(path, "r", locking=False) as file:
            there = dict(_datasets(file, ""))
            names = {name: name for name in there} if wanted is None else wanted
            missing = [name for name in names.values() if name not in there]
            if missing:
                shown = ", ".join(f"{n} {d.shape}" for n, d in list(there.items())[:12])
                raise CacheError(f"{path}: no dataset {missing[0]!a}; it has {shown or 'none'}")
            return {ours: _array(there[name], name, path) for ours, name in names.items()}
    except CacheError:
        raise
    except Exception as error:  # h5py raises nearly anything for a damaged file
        reason = " ".join(str(error).split())[:160]
        raise CacheError(f"{path}: cannot be read as HDF5: {reason}") from error


def write_h5(file: BinaryIO, arrays: dict[str, Any]) -> None:
    """Write arrays as contiguous datasets of those names; text as variable-length UTF-8."""
    with h5py.File(file, "w") as target:
        for name, array in arrays.items():
            array = np.asarray(array)
            if array.dtype.kind == "U":
                target.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
            else:
                target.create_dataset(name, data=array)


def _datasets(group: h5py.Group, prefix: str, depth: int = 0) -> Iterator[tuple[str, h5py.Dataset]]:
    for count, name in enumerate(group):
        if depth > _DEEPEST or count > _MOST:
            raise CacheError(f"{group.file.filename}: too many or too deep groups; not read")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            continue
        one = group[name]
        if isinstance(one, h5py.Dataset):
            yield prefix + name, one
        elif isinstance(one, h5py.Group):
            yield from _datasets(one, f"{prefix}{name}/", depth + 1)


def _array(dataset: h5py.Dataset, name: str, path: Path) -> np.ndarray:
    if dataset.external or dataset.is_virtual:
        raise CacheError(f"{path}: {name} keeps its numbers in other files; not read")
    held = dataset.id.get_storage_size()
    if dataset.nbytes > _UNPACKED * held + _SLACK or held > path.stat().st_size:
        raise CacheError(
            f"{path}: {name} declares {dataset.nbytes:,} bytes but has {held:,}; not read"
        )
    if h5py.check_string_dtype(dataset.dtype):
        return np.array(dataset.asstr()[...], dtype=str)
    if dataset.dtype.kind not in "biuf":
        raise CacheError(f"{path}: {name} is {dataset.dtype}, neither numbers nor text")
    return np.asarray(dataset[...])
