"""The file system around a cache: names, the lock against a second writer, errors of the disk."""

import contextlib
import errno
import os
import shutil
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from cache.table import CacheError

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def partial_of(path: Path) -> Path:
    """Where the cache of this name is written until it is complete."""
    return path.with_name(path.name + ".partial")


def lock(path: Path) -> FileLock:
    """The lock of the cache of this name, taken at once; CacheError says who has it otherwise."""
    name = path.with_name(path.name + ".lock")
    held = FileLock(name, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire()
        if (
            type(held) is FileLock
        ):  # its stand-in where a disk cannot lock keeps its own notes there
            with contextlib.suppress(OSError):  # Windows lets nobody write a locked file
                name.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    except Timeout as error:
        holder = ""
        with contextlib.suppress(OSError, UnicodeError):
            holder = name.read_text()[:200].strip()
        raise CacheError(
            f"{path}: another extraction is writing it ({holder or 'not known which'}); wait for "
            "it, or give another --out"
        ) from error
    except OSError as error:
        raise disk_error(path, error, 0) from error
    return held


def unlock(held: FileLock) -> None:
    """Remove the lock file and let the lock go."""
    # Unlinked while still held, so no other process can hold what is removed; the next one to take
    # the lock sees its file gone and opens a new one. Windows removes it on release.
    with contextlib.suppress(OSError):
        os.unlink(held.lock_file)
    held.release()


def disk_error(path: Path, error: OSError, need: int) -> CacheError:
    """What to say when writing failed: the file, what it needs, and the way out.

    need  bytes the file has when it is complete
    """
    folder = path.parent
    if error.errno in _FULL:
        free = shutil.disk_usage(folder).free
        return CacheError(
            f"{path}: no space left: it needs {need:,} bytes, {free:,} are free in {folder}; make "
            "room and run the command again, or give another --out"
        )
    reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
    return CacheError(
        f"{path}: cannot be written: {reason}; check the folder {folder}, or give another --out"
    )


def sync_folder(folder: Path) -> None:
    """Bring a rename onto the disk, where folders can be opened and synced at all.

    They cannot on Windows, without the right to list them, and on some shares (EINVAL).
    """
    if os.name == "posix":
        try:
            handle = os.open(folder, os.O_RDONLY)
        except PermissionError:
            return
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(handle)
