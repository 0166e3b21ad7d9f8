"""Taking arrays out of an .npz that somebody else made."""

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from cache.table import CacheError

DAMAGED = (
    *(ValueError, TypeError, EOFError, zlib.error, lzma.LZMAError, struct.error),
    *(NotImplementedError, RuntimeError, MemoryError, ArithmeticError),
    tokenize.TokenError,  # of numpy's reading of a header
)
"""What zipfile and numpy raise for bytes that they cannot read, found by damaging files."""
_UNPACKED, _SLACK = 100, 1 << 26  # refused: above 100 times the file's size and 64 MiB unpacked


def read_members(
    path: Path, needed: tuple[str, ...], optional: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """The arrays of these keys, each looked at before it is unpacked; other keys are left alone.

    Raises CacheError when a needed one is missing, or a shape, a size or a pickle is not to be
    trusted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            missing = [key for key in needed if f"{key}.npy" not in names]
            if missing:
                there = ", ".join(repr(name.removesuffix(".npy")) for name in names)[:200]
                raise CacheError(f"{path}: it lacks {', '.join(missing)}; it has {there}")
            keys = [key for key in (*needed, *optional) if f"{key}.npy" in names]
            total = sum(archive.getinfo(f"{key}.npy").file_size for key in keys)
            if total > _UNPACKED * path.stat().st_size + _SLACK:
                raise CacheError(f"{path}: claims to unpack to {total:,} bytes; it is not read")
            for member in archive.infolist():
                # Compares its name in the directory with the one before its bytes: an optional key
                # whose name is damaged would pass for one that is not known.
                archive.open(member).close()
            for key in keys:
                _check_header(archive, key, path)
            return {key: _read(archive, key) for key in keys}
    except zipfile.BadZipFile as error:
        raise CacheError(f"{path}: not an .npz, or a damaged one: {error}") from error
    except FileNotFoundError as error:
        raise CacheError(f"{path}: there is no such file") from error
    except OSError as error:
        raise CacheError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DAMAGED as error:
        raise CacheError(f"{path}: a damaged .npz: {str(error)[:200]!r}") from error


def _read(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with archive.open(f"{key}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_header(archive: zipfile.ZipFile, key: str, path: Path) -> None:
    """Raises CacheError for Python objects, and for a shape that its bytes cannot fill."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with archive.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise CacheError(f"{path}: {key} is a .npy of version {version}, which is not read")
        shape, _, dtype = readers[version](file)
        held = archive.getinfo(f"{key}.npy").file_size - file.tell()
    if dtype.hasobject:
        raise CacheError(
            f"{path}: {key} holds Python objects, which are never read; save text as "
            "np.array(names, dtype=str) and numbers as numbers"
        )
    if math.prod(shape) * dtype.itemsize != held:
        raise CacheError(
            f"{path}: {key} claims {shape} {dtype} and has {held:,} bytes; it is not read"
        )
