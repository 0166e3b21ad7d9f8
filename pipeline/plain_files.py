"""Opens what lies in a folder only if it is a regular file of a plausible size.

A pipe would be waited for without end, /dev/zero be read until the memory is full, and a folder is
not read at all; so is each refused in one line before anything is read from it.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ConfigError

OBJECT = 64 * 2**20
"""Bytes of one JSON object, at most; 20,000 classes and their prompts take 2 MB."""
LOG = 2 * 2**30
"""Bytes of a file of JSON lines, at most: 4 million rounds of three clients."""
ADAPTERS = 32 * 2**30
"""Bytes of an adapter file, at most; training holds its numbers in memory several times."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_plain(file: Path, largest: int) -> None:
    """Raises ConfigError unless this, or what it links to, is a regular file of `largest` bytes
    at most."""
    try:
        found = os.stat(file)
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error
    _refuse_odd(file, found, largest)


def open_plain(file: Path, largest: int) -> BinaryIO:
    """Opens a regular file of at most `largest` bytes for reading; ConfigError for all else."""
    check_plain(file, largest)  # before it is opened: opening alone rewinds tapes
    try:
        # Where it has become a pipe since, O_NONBLOCK keeps open from waiting for its writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        opened = os.fdopen(os.open(file, flags), "rb")
    except OSError as error:
        raise _unreadable(file, error) from error
    try:
        _refuse_odd(file, os.fstat(opened.fileno()), largest)
    except BaseException:
        opened.close()
        raise
    return opened


def read_plain(file: Path, largest: int) -> bytes:
    """The content of a regular file, as long as it is now; raises as open_plain."""
    with open_plain(file, largest) as opened:
        try:
            return opened.read(os.fstat(opened.fileno()).st_size)
        except OSError as error:
            raise _unreadable(file, error) from error


def _refuse_odd(file: Path, found: os.stat_result, largest: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS if test(found.st_mode)), "something else")
        raise ConfigError(f"{file}: is {kind}, not a regular file")
    if found.st_size > largest:
        raise ConfigError(
            f"{file}: has {found.st_size:,} bytes, and a file of this kind at most {largest:,}"
        )


def _unreadable(file: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})")
