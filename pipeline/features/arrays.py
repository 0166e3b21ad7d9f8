"""Read arrays by name from one untrusted file; none of its code is run, no pickle unpickled."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from cache.container.plain_h5 import read_h5
from cache.npz_members import DAMAGED, check_header
from cache.table import CacheError
from pipeline.encoder.tensor_pickle import DamagedFile, UnsafePickle

if TYPE_CHECKING:
    import torch

ONE = ""
"""The name of the only array of a file without names."""
TENSORS = (".pt", ".pth", ".bin")
ARRAYS = (".npy", *TENSORS, ".safetensors", ".h5", ".hdf5", ".txt", ".json")
_MOST_TEXT = 1 << 26


def read_arrays(path: Path, wanted: dict[str, str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file of one of ARRAYS, by name; ONE for a single array without a name.

    wanted  {name of ours: name in the file} of those to read; None: all

    Text files have a line per row, JSON is a list. bfloat16 becomes float32. Raises CacheError for
    other and damaged files, Python objects and sizes that do not match the file's bytes.
    """
    if not path.is_file():
        what = "not a regular file" if path.exists() else "there is no such file"
        raise CacheError(f"{path}: {what}")
    suffix = path.suffix.lower()
    try:
        if suffix in (".h5", ".hdf5"):
            return read_h5(path, wanted)
        found = _read(path, suffix)
    except UnsafePickle as error:
        raise CacheError(f"{path} {error}") from error
    except OSError as error:
        raise CacheError(f"{path}: cannot be read: {error.strerror or error}") from error
    except CacheError:
        raise
    except (DamagedFile, *DAMAGED, Exception) as error:  # zipfile raises nearly anything
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CacheError(f"{path}: damaged, or not a {suffix} file: {reason}") from error
    if wanted is None:
        return found
    missing = [name for name in wanted.values() if name not in found]
    if missing:
        shown = ", ".join(f"{name} {array.shape}" for name, array in list(found.items())[:12])
        raise CacheError(f"{path}: has no {missing[0]!a}; it has {shown}")
    return {ours: found[name] for ours, name in wanted.items()}


def read_one(path: Path) -> np.ndarray:
    """The only array of a file. Raises CacheError if there are more."""
    found = read_arrays(path)
    if len(found) != 1:
        raise CacheError(f"{path}: holds {', '.join(found)[:200]}, expected one array")
    return next(iter(found.values()))


def _read(path: Path, suffix: str) -> dict[str, np.ndarray]:
    if suffix == ".npy":
        with path.open("rb") as file:
            check_header(file, path.stat().st_size, "the array", path)
            file.seek(0)
            return {ONE: np.lib.format.read_array(file, allow_pickle=False)}
    if suffix in TENSORS:
        from pipeline.encoder.tensor_files import read_stream, read_zip

        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        return _of_tensors(read_zip(path) if zipped else read_stream(path), path)
    if suffix == ".safetensors":
        return dict(safetensors.numpy.load_file(path))
    if suffix in (".txt", ".json"):
        return {ONE: _text(path, suffix)}
    raise CacheError(
        f"{path}: unsupported {suffix or 'file without suffix'}; supported are "
        f"{', '.join(ARRAYS)}, .npz"
    )


def _of_tensors(value: Any, path: Path) -> dict[str, np.ndarray]:
    import torch

    if isinstance(value, torch.Tensor):
        return {ONE: _numbers(value)}
    if (
        isinstance(value, list)
        and value
        and all(isinstance(one, int | float | str) for one in value)
    ):
        return {ONE: _listed(value, "its list", path)}
    if not isinstance(value, dict) or not value:
        raise CacheError(f"{path}: holds a {type(value).__name__}, not tensors")
    found = {}
    for name, one in value.items():
        if isinstance(one, torch.Tensor):
            found[str(name)] = _numbers(one)
        elif isinstance(one, list | tuple) and one:
            found[str(name)] = _listed(list(one), str(name), path)
        elif isinstance(one, str | int | float | bool):
            found[str(name)] = np.array(one)
    return found


def _numbers(tensor: "torch.Tensor") -> np.ndarray:
    if str(tensor.dtype) == "torch.bfloat16":  # numpy has none
        tensor = tensor.float()
    return np.ascontiguousarray(tensor.numpy())


def _listed(values: list[Any], name: str, path: Path) -> np.ndarray:
    kinds = {type(value) for value in values}
    if not (kinds == {str} or kinds <= {int, float}):
        shown = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise CacheError(f"{path}: {name} is a list of {shown}, expected text or numbers")
    return np.array(values)


def _text(path: Path, suffix: str) -> np.ndarray:
    if path.stat().st_size > _MOST_TEXT:
        raise CacheError(f"{path}: larger than {_MOST_TEXT:,} bytes of text; not read")
    text = path.read_bytes().decode("utf-8-sig")
    if suffix == ".txt":
        lines = [line.strip() for line in text.splitlines()]
        while lines and not lines[-1]:
            lines.pop()
        numbers = all(line.lstrip("-").isdecimal() for line in lines)
        return np.array([int(line) for line in lines] if numbers and lines else lines)
    found = json.loads(text)
    if not isinstance(found, list) or not found:
        raise CacheError(f"{path}: its JSON is not a list")
    return _listed(found, "its list", path)
