"""A folder that one process writes: its lock, files replaced whole, and what it must hold."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from cache.locks import let_go, on_lock_file, take
from pipeline.config import ConfigError

MISSING = object()


@contextlib.contextmanager
def locked(
    folder: Path, doing: str, way_out: str = "wait for it, or pass another --out"
) -> Iterator[None]:
    """Makes the folder when missing and holds its lock, which a dying process lets go of.

    Raises ConfigError when another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
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
        yield
    finally:
        let_go(lock)


def cannot_write(folder: Path, error: OSError) -> str:
    """What to tell when writing in a folder failed."""
    return (
        f"{folder}: cannot write here ({error.strerror or error}); free space or permissions, or "
        "pass another --out"
    )


def replace_whole(file: Path, content: bytes) -> None:
    """Writes the whole file or leaves the old one: a kill never leaves half of it.

    Several processes may write one file at the same time, as members of a sweep do its report.
    """
    fresh = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    fresh.write_bytes(content)
    os.replace(fresh, file)


def first_difference(found: object, asked: object, path: str = "") -> tuple[str, str, str] | None:
    """The dotted name of the first thing that differs, what was found and what is asked there.

    None when they are equal; the shown values are "nothing" where one side has none.
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
