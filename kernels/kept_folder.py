"""A folder for files that can be regenerated: the first candidate this process can write to."""

import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def first_writable(folders: Iterable[Callable[[], Path]]) -> Path | None:
    """The first folder in which a file can be created, itself created if missing; None if none.

    folders  each returns a path; one that raises OSError or RuntimeError (no home) is skipped
    """
    for folder in folders:
        try:
            path = folder()
            path.mkdir(parents=True, exist_ok=True)
            # os.access misses read-only file systems and reports everything writable for root.
            tempfile.TemporaryFile(dir=path).close()
            return path
        except (OSError, RuntimeError, ValueError):  # ValueError: a NUL in a configured name
            continue
    return None


def of_home(name: str) -> Path:
    """~/.cache/fedclip/<name>; raises RuntimeError if the user has no home."""
    return Path.home() / ".cache" / "fedclip" / name


def of_temporary(name: str) -> Path:
    """This user's private folder below the system's temporary folder.

    Its contents are loaded as code, and anyone can create a folder in /tmp, so this raises
    PermissionError if another user owns the folder or may write to it.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    path = Path(tempfile.gettempdir()) / f"fedclip-{user}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if os.name == "posix" and (
        not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o022
    ):
        raise PermissionError(f"{path} belongs to another user, or others may write to it")
    return path / name
