"""Write a cache as files of other tools, which `cache import` can read."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.container.plain_h5 import write_h5
from cache.npz import arrays_of, whole_file, write_npz
from cache.table import CacheError, FeatureTable

FORMS = (".npz", ".pt", ".h5", ".npy")


def write_features(table: FeatureTable, path: str | PathLike[str], *, force: bool = False) -> Path:
    """Write the arrays of cache.npz.as_table in the format of path's suffix, one of FORMS.

    .npz  numpy's archive; also for a path without suffix
    .pt   a dict of tensors, numbers, text and lists of text (torch.load with weights_only)
    .h5   a plain HDF5 file with a dataset each
    .npy  a folder of that name without the suffix: features.npy, labels.npy, class_names.json, ...

    returns  the path written. Raises CacheError when it exists and not `force`, the features are
    damaged, or the disk refuses.
    """
    path = Path(path)
    form = path.suffix.lower() or ".npz"
    if form not in FORMS:
        raise CacheError(
            f"{path}: features cannot be written as {form}; choose from {', '.join(FORMS)}"
        )
    if form == ".npz":
        write_npz(table, path, force=force)
        return path
    arrays = arrays_of(table)
    if form == ".npy":
        return _folder(arrays, path.with_suffix(""), force)
    with whole_file(path, table.features.nbytes, force=force) as file:
        if form == ".h5":
            write_h5(file, arrays)
        else:
            torch.save({key: _for_torch(array) for key, array in arrays.items()}, file)
    return path


def _for_torch(array: Any) -> Any:
    array = np.asarray(array)
    if array.ndim == 0 or array.dtype.kind == "U":
        return array.tolist()
    return torch.from_numpy(np.array(array))  # a copy: memory-mapped features are read-only


def _folder(arrays: dict[str, Any], folder: Path, force: bool) -> Path:
    files: dict[str, bytes | np.ndarray] = {}
    for key, array in arrays.items():
        array = np.asarray(array)
        if array.dtype.kind == "U" and array.ndim:
            files[f"{key}.json"] = (json.dumps(array.tolist(), indent=0) + "\n").encode()
        else:
            files[f"{key}.npy"] = array
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"{folder}: cannot be created: {error.strerror}") from error
    for name, content in files.items():
        size = len(content) if isinstance(content, bytes) else content.nbytes
        with whole_file(folder / name, size, force=force) as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                np.save(file, content, allow_pickle=False)
    return folder
