"""One process at a time: a file's lock, also on disks that have no locks."""

import contextlib
import errno
import logging
import os
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

NO_LOCKS = {  # what flock answers where the file system, or its server, has no locks
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
}


def take(name: Path, patience: float = 0) -> BaseFileLock:
    """The lock of the file `name`, held until release or this process's end.

    patience  seconds to wait for another process that holds it; 0: it is taken at once

    Where the disk has no locks (many NFS, FUSE and Lustre mounts), the file's existence is the lock
    instead, and a warning is logged: it holds the process and its machine, and filelock removes it
    when that process is gone from this machine.

    Raises filelock.Timeout when another process holds it, OSError when the disk refuses.
    """
    held = FileLock(name, timeout=patience, fallback_to_soft=False)
    try:
        held.acquire()
        return held
    except Timeout:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        reason = os.strerror(error.errno)
    # An empty file is what the attempt above left; a holder's has its process in it.
    with contextlib.suppress(OSError):
        if name.stat().st_size == 0:
            name.unlink()
    soft = SoftFileLock(name, timeout=patience)
    soft.acquire()
    logging.getLogger(__name__).warning(
        "%s: this disk has no file locks (%s); while this process runs, the file %s stands for one",
        name.parent,
        reason,
        name.name,
    )
    return soft


def let_go(held: BaseFileLock) -> None:
    """Release the lock; what a disk refuses here, the process's end does."""
    with contextlib.suppress(OSError):
        held.release()


def holder(name: Path) -> str:
    """Who holds the lock, in one line, as the lock file says; "" where it says nothing."""
    with contextlib.suppress(OSError, UnicodeError):
        with name.open("rb") as file:
            words = file.read(200).decode().split()
        return "".join(c if c.isprintable() else "?" for c in " ".join(words))
    return ""


def on_lock_file(error: OSError) -> OSError:
    """The same error, its words saying that it was the lock file's."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OSError(error.errno, f"{reason}, on the lock file")
