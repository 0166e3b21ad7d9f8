"""Read arrays from an untrusted .npz."""

import logging
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np

from cache.npz_keys import misnamed
from cache.npz_values import shown
from cache.table import CacheError

LOG = logging.getLogger(__name__)

DAMAGED = (
    *(ValueError, TypeError, EOFError, zlib.error, lzma.LZMAError, struct.error),
    *(NotImplementedError, RuntimeError, MemoryError, ArithmeticError),
    tokenize.TokenError,  # from numpy's parsing of a header
)
"""What zipfile and numpy raise for damaged bytes, found by damaging files."""
_WAYS = {"labels": "--labels FILE", "text_features": "--text-features FILE or --model NAME"}
_MOST_KEYS, _SHOWN = 10_000, 4
_UNPACKED, _SLACK = 100, 1 << 26  # at most 100 times the file's size and 64 MiB when unpacked


def read_members(
    path: Path,
    needed: tuple[str, ...],
    optional: tuple[str, ...],
    ignore: Collection[str],
    given: Collection[str],
) -> dict[str, np.ndarray]:
    """The arrays of these keys, each checked before it is unpacked; a warning names the others.

    ignore  keys to skip even if they resemble a missing one
    given   known keys that are not needed because an option has their value

    Raises CacheError when a needed key is missing, a key is probably a misspelled known one, or a
    shape, a size or a pickle cannot be trusted.
    """
    try:
        if path.exists() and not path.is_file():
            raise CacheError(f"{path}: cannot be read: not a regular file")
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            _check_keys(names, path, needed, optional, ignore, given)
            keys = [key for key in (*needed, *optional) if f"{key}.npy" in names]
            total = sum(archive.getinfo(f"{key}.npy").file_size for key in keys)
            if total > _UNPACKED * path.stat().st_size + _SLACK:
                raise CacheError(f"{path}: would unpack to {total:,} bytes; refusing to read it")
            for member in archive.infolist():
                # Compares its name in the directory with that before its bytes: an optional key
                # with a damaged name would pass for an unknown one.
                archive.open(member).close()
            for key in keys:
                with archive.open(f"{key}.npy") as file:
                    check_header(file, archive.getinfo(f"{key}.npy").file_size, key, path)
            return {key: _read(archive, key) for key in keys}
    except zipfile.BadZipFile as error:
        raise CacheError(f"{path}: not an .npz, or a damaged one: {error}") from error
    except FileNotFoundError as error:
        raise CacheError(f"{path}: there is no such file") from error
    except OSError as error:
        raise CacheError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DAMAGED as error:
        raise CacheError(f"{path}: a damaged .npz: {str(error)[:200]!r}") from error


def _check_keys(
    names: list[str],
    path: Path,
    needed: tuple[str, ...],
    optional: tuple[str, ...],
    ignore: Collection[str],
    given: Collection[str],
) -> None:
    """Raises CacheError for missing, misspelled, repeated or too many keys."""
    if len(names) > _MOST_KEYS:
        raise CacheError(f"{path}: has {len(names):,} keys; at most {_MOST_KEYS:,} are allowed")
    keys = [name.removesuffix(".npy") for name in names]
    twice = next((key for key in (*needed, *optional) if names.count(f"{key}.npy") > 1), None)
    if twice:
        raise CacheError(f"{path}: has the key {twice} more than once; refusing to read it")
    odd = misnamed([*keys, *given], ignore)
    missing = [key for key in needed if f"{key}.npy" not in names]
    if missing:
        there = ", ".join(map(repr, keys))[:200]
        hint = f"; {'; '.join(odd[:_SHOWN])}: rename it" if odd else ""
        ways = [_WAYS[key] for key in missing if key in _WAYS]
        way = f"; or pass {' and '.join(ways)}" if ways else ""
        raise CacheError(f"{path}: has no {', '.join(missing)}; it has {there}{hint}{way}")
    if odd:
        raise CacheError(
            f"{path}: {'; '.join(odd[:_SHOWN])}; rename the key, or pass --ignore KEY to import "
            "without it"
        )
    others = sorted(key for key in set(keys) if key not in (*needed, *optional))
    if others:
        LOG.warning(f"ignored keys: {shown([ascii(key)[1:-1] for key in others])}")


def _read(archive: zipfile.ZipFile, key: str) -> np.ndarray:
    with archive.open(f"{key}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def check_header(file: IO[bytes], size: int, key: str, path: Path) -> None:
    """Raises CacheError for Python objects, and for a shape that does not match its bytes.

    file  a .npy of `size` bytes, at its start
    """
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise CacheError(f"{path}: {key} is a .npy of unsupported version {version}")
    shape, _, dtype = readers[version](file)
    held = size - file.tell()
    if dtype.hasobject:
        raise CacheError(
            f"{path}: {key} holds Python objects, which are never read; save text as "
            "np.array(names, dtype=str) and numbers as numbers"
        )
    if math.prod(shape) * dtype.itemsize != held:
        raise CacheError(
            f"{path}: {key} declares {shape} {dtype} but has {held:,} bytes; refusing to read it"
        )
