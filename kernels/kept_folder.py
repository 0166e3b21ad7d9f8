"""A folder for what can be made again: the first of several that this process can really write."""

import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path


def first_writable(folders: Iterable[Callable[[], Path]]) -> Path | None:
    """The first folder in which a file can be created, made when missing; None when there is none.

    folders  each gives a path; one that raises OSError or RuntimeError (no home) is passed over
    """
    for folder in folders:
        try:
            path = folder()
            path.mkdir(parents=True, exist_ok=True)
            # os.access does not see a read-only file system, and lets root write anywhere.
            tempfile.TemporaryFile(dir=path).close()
            return path
        except (OSError, RuntimeError, ValueError):  # ValueError: a NUL in a name from outside
            continue
    return None


def of_home(name: str) -> Path:
    """~/.cache/fedclip/<name>; raises RuntimeError for a user without a home."""
    return Path.home() / ".cache" / "fedclip" / name


def of_temporary(name: str) -> Path:
    """A folder of this user alone below the system's temporary one.

    What lies there is loaded as code, and anyone can make a folder in /tmp: raises PermissionError
    for one that another user owns or may write to.
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
