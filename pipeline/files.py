"""The files of runs and sweeps: a folder's lock, files replaced whole, and careful reading.

A file is read only if it is regular and of a plausible size: a pipe would block without end, and
/dev/zero would fill the memory.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import filelock

from cache.container.disk import sync_folder
from cache.container.locks import let_go, on_lock_file, take
from pipeline.errors import ConfigError

MISSING = object()
_TEMPORARY = re.compile(r".+\.([0-9]+)\.tmp")
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


@contextlib.contextmanager
def locked(
    folder: Path, doing: str, way_out: str = "wait for it, or pass another --out"
) -> Iterator[None]:
    """Creates the folder if missing and holds its lock, which the system frees if the process dies.

    Removes temporary files of killed processes. Raises ConfigError if another process holds the
    lock, or the folder cannot be written.
    """
    try:
        make_folder(folder)
    except OSError as error:
        raise ConfigError(cannot_write(folder, error)) from error
    try:
        lock = take(folder / ".lock")
    except filelock.Timeout:
        raise ConfigError(
            f"{folder}: another process is {doing} in this folder; {way_out}"
        ) from None
    except OSError as error:
        raise ConfigError(cannot_write(folder, on_lock_file(error))) from error
    try:
        remove_temporary(folder)
        yield
    finally:
        let_go(lock)


def cannot_write(folder: Path, error: OSError) -> str:
    """The message for a failed write in a folder, naming the file."""
    named = _inside(folder, error)
    return (
        f"{folder}: cannot write here ({error.strerror or error})"
        + (f": {named}" if named not in (None, Path(".")) else "")
        + "; free some space, change the permissions, or pass another --out"
    )


@contextlib.contextmanager
def errors_of(folder: Path) -> Iterator[None]:
    """Turns an OSError about a file in this folder into a ConfigError that names it.

    Other errors pass unchanged: another --out would not fix what the system refuses elsewhere.
    """
    try:
        yield
    except OSError as error:
        if _inside(folder, error) is None:
            raise
        raise ConfigError(cannot_write(folder, error)) from error


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """Adds `file` to an OSError that names no file, such as those of write, sync and close."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(file)
        raise


def _inside(folder: Path, error: OSError) -> Path | None:
    """The file that an error names, relative to the folder; None if it is elsewhere or not
    named."""
    if not isinstance(error.filename, str | os.PathLike):
        return None
    file, top = Path(os.path.abspath(error.filename)), Path(os.path.abspath(folder))
    return file.relative_to(top) if file.is_relative_to(top) else None


def make_folder(folder: Path) -> None:
    """Creates a folder and its missing parents; all are on the disk on return."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


def replace_whole(file: Path, content: bytes, *, lasting: bool = True) -> None:
    """Replaces a file atomically: after a kill or a power cut it is the old or the new one, whole.

    The file is on the disk on return (lasting=False: for files that the next start deletes).
    Several processes may write one file at the same time. Raises OSError, leaving nothing behind,
    if it cannot be written or the existing one is not a regular file.
    """
    if file.exists() and not file.is_file():  # or /dev/null would be replaced
        raise OSError(errno.EINVAL, f"{file.name} is not a regular file", str(file))
    fresh = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with naming(file):
            with fresh.open("xb") as opened:  # x: never writes through a link of this name
                opened.write(content)
                opened.flush()
                if lasting:
                    os.fsync(opened.fileno())
            os.replace(fresh, file)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    if lasting:
        sync_folder(file.parent)


def set_aside(folder: Path, names: Sequence[str]) -> Path:
    """Moves the folder's files of these names, in this order, into a new <folder>/old-<n>/.

    Nothing is deleted or read: the files may be of any kind.
    """
    number = 1
    while os.path.lexists(aside := folder / f"old-{number}"):
        number += 1
    make_folder(aside)
    for name in names:
        if os.path.lexists(folder / name):
            os.rename(folder / name, aside / name)
            sync_folder(aside)
            sync_folder(folder)
    return aside


def remove_temporary(folder: Path, name: str | None = None) -> None:
    """Removes temporary files of killed processes: those of one file's name, or all."""
    with contextlib.suppress(OSError):
        for file in os.listdir(folder):
            found = _TEMPORARY.fullmatch(file)
            if not found or (name is not None and file != f"{name}.{found[1]}.tmp"):
                continue
            if found[1] == str(os.getpid()) or not _runs(int(found[1])):
                with contextlib.suppress(OSError):
                    os.unlink(folder / file)


def _runs(pid: int) -> bool:
    """Whether this machine runs a process of that number; True if that is unknown."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


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
        # If it has become a pipe since, O_NONBLOCK keeps open from blocking.
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
    """Reads a regular file up to its present size; raises as open_plain."""
    with open_plain(file, largest) as opened:
        try:
            return opened.read(os.fstat(opened.fileno()).st_size)
        except OSError as error:
            raise _unreadable(file, error) from error


def first_difference(found: object, asked: object, path: str = "") -> tuple[str, str, str] | None:
    """The dotted name of the first difference, the value found there and the value requested.

    None if both are equal; a value that one side lacks is shown as "nothing".
    """
    if isinstance(found, dict) and isinstance(asked, dict):
        for name in sorted(found.keys() | asked.keys()):
            old, new = found.get(name, MISSING), asked.get(name, MISSING)
            differs = first_difference(old, new, f"{path}.{name}" if path else name)
            if differs:
                return differs
        return None
    if type(found) is type(asked) and found == asked:
        return None
    shown = ("nothing" if value is MISSING else repr(value) for value in (found, asked))
    return path, *shown


def refuse_other(folder: Path, kind: str, found: object, asked: object, way_out: str) -> None:
    """Raises ConfigError, naming the first field, if a folder holds another run or sweep."""
    differs = first_difference(found, asked)
    if differs:
        name, old, new = differs
        raise ConfigError(
            f"{folder}: holds a {kind} with {name or kind} = {old}, but {new} was requested; pass "
            f"another --out, or --force to {way_out}"
        )


def _refuse_odd(file: Path, found: os.stat_result, largest: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for test, name in _KINDS if test(found.st_mode)), "something else")
        raise ConfigError(f"{file}: is {kind}, not a regular file")
    if found.st_size > largest:
        raise ConfigError(
            f"{file}: has {found.st_size:,} bytes; files of this kind have at most {largest:,}"
        )


def _unreadable(file: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})")
