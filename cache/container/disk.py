"""File system matters of a cache: names, the lock against a second writer, disk errors."""

import contextlib
import errno
import os
import re
import shutil
import socket
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from cache.container.locks import holder, let_go, on_lock_file, take
from cache.table import CacheError

AnyPath = str | os.PathLike[str]
HDF5_LOCK = "unable to lock file"  # part of HDF5's message when flock fails
_QUOTA = getattr(errno, "EDQUOT", -1)  # Windows has none
_FULL = {errno.ENOSPC, errno.EFBIG, _QUOTA}
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR}
_HDF5_BYTES = 1 << 20  # more than the structure around the numbers takes
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EBADF, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP}


def partial_of(path: AnyPath) -> Path:
    """The file that is the cache of this name until it is complete."""
    path = Path(path)
    return path.with_name(path.name + ".partial")


def refuse_folder(path: Path) -> None:
    """Raises CacheError when the file to write is a folder."""
    if path.is_dir():
        raise CacheError(f"{path} is a folder; name a file in it")


def lock(path: Path) -> BaseFileLock:
    """Take the lock of the cache of this name without waiting; a missing folder is created.

    Raises CacheError naming the process that holds it, or why the disk refuses.
    """
    name = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path, error, 0) from error
    try:
        held = take(name)
    except Timeout as error:
        raise CacheError(
            f"{path}: another extraction is writing it ({holder(name) or 'holder unknown'}); wait "
            "for it, or give another --out"
        ) from error
    except OSError as error:
        raise disk_error(path, on_lock_file(error), 0) from error
    if type(held) is FileLock:  # a SoftFileLock writes its own notes there
        with contextlib.suppress(OSError):  # Windows forbids writing to a locked file
            name.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    return held


def unlock(held: BaseFileLock) -> None:
    """Remove the lock file and release the lock."""
    # Unlinked while held, so that no other process can hold what is removed; the next one to take
    # the lock sees that its file is gone and opens a new one. Windows removes it on release.
    if type(held) is FileLock:
        with contextlib.suppress(OSError):
            os.unlink(held.lock_file)
    let_go(held)


def disk_error(path: Path, error: OSError, need: int) -> CacheError:
    """The error for a failed write: the file, which limit was hit, and what to do.

    need  bytes of the complete file
    """
    folder = _nearest_folder(path)
    # HDF5 gives the number only in words.
    named = re.search(r"errno = (\d+)", str(error))
    number = error.errno or (int(named[1]) if named else None)
    if HDF5_LOCK in str(error):
        return CacheError(
            f"{path}: HDF5 cannot lock it on this disk ({_strerror(number, error)}), as "
            "HDF5_USE_FILE_LOCKING in the environment demands; set that to FALSE"
        )
    if number in _FULL:
        return CacheError(f"{path}: {_full(number, folder, need)}")
    if number in _IN_THE_WAY and folder != path.absolute().parent:
        there = next(above for above in path.absolute().parents if os.path.lexists(above))
        return CacheError(
            f"{path}: cannot be written: {there} is not a folder; move it away, or give "
            "another --out"
        )
    return CacheError(
        f"{path}: cannot be written: {_strerror(number, error)}; check the folder {path.parent}, "
        "or give another --out"
    )


def _strerror(number: int | None, error: OSError) -> str:
    return error.strerror or (os.strerror(number) if number else str(error).splitlines()[0])


def _full(number: int | None, folder: Path, need: int) -> str:
    """Which limit was hit, and what to do."""
    needs = f"it needs {need:,} bytes"
    if number == errno.EFBIG:
        limit = _size_limit()
        if limit is not None and limit < need + _HDF5_BYTES:
            return (
                f"too large for this process's file size limit: {needs}, the limit is "
                f"{limit:,}; raise it (ulimit -f) and run the command again"
            )
        return (
            f"too large a file for the file system of {folder}: {needs}; give another --out, on "
            "one that supports files of that size"
        )
    if number == _QUOTA:
        return (
            f"your disk quota in {folder} is used up: {needs}; remove other files of yours and run "
            "the command again, or give another --out"
        )
    way_out = "free some space and run the command again, or give another --out"
    free = shutil.disk_usage(folder).free
    if free < need:
        return f"no space left: {needs}, {free:,} are free in {folder}; {way_out}"
    if hasattr(os, "statvfs"):
        inodes = os.statvfs(folder)
        if inodes.f_files and not inodes.f_favail:
            return (
                f"no space left for another file: {folder} has {free:,} bytes free but all of its "
                f"{inodes.f_files:,} inodes in use; remove files and run the command again, or "
                "give another --out"
            )
    return (
        f"no space left: {needs}, and the disk refuses them although {free:,} are free in {folder} "
        f"(a quota, or space reserved on the volume?); {way_out}"
    )


def _size_limit() -> int | None:
    """This process's limit on the size of a file (RLIMIT_FSIZE), None without one."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _nearest_folder(path: Path) -> Path:
    """The file's folder, or the nearest parent that exists."""
    return next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))


def sync_folder(folder: Path) -> None:
    """Sync a rename to the disk, where folders can be opened and synced."""
    if os.name == "posix":
        try:
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:  # some network disks and FUSE sync files, but not folders
            if error.errno not in _NO_FOLDER_SYNC:
                error.filename = str(folder)
                raise
