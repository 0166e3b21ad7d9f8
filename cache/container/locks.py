"""File locks for one process at a time, also on disks without locks."""

import contextlib
import errno
import logging
import os
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

NO_LOCKS = {  # from flock where the file system, or its server, has no locks
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOTSUP,
}


def take(name: Path, patience: float = 0) -> BaseFileLock:
    """Take the lock of the file `name`, held until release or the end of this process.

    patience  seconds to wait while another process holds it

    On disks without locks (many NFS, FUSE and Lustre mounts) the file's existence is the lock
    instead, and a warning is logged: it names the process and its machine, and filelock removes it
    when that process has left this machine. filelock's own fallback only knows ENOSYS.

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
    # An empty file is left by the attempt above; a holder's names its process.
    with contextlib.suppress(OSError):
        if name.stat().st_size == 0:
            name.unlink()
    soft = SoftFileLock(name, timeout=patience)
    soft.acquire()
    logging.getLogger(__name__).warning(
        "%s: this disk has no file locks (%s); while this process runs, the file %s is the lock",
        name.parent,
        reason,
        name.name,
    )
    return soft


def let_go(held: BaseFileLock) -> None:
    """Release the lock; if the disk refuses, the end of the process releases it."""
    with contextlib.suppress(OSError):
        held.release()


def holder(name: Path) -> str:
    """Who holds the lock, in one line from the lock file; "" if it does not say."""
    with contextlib.suppress(OSError, UnicodeError):
        with name.open("rb") as file:
            words = file.read(200).decode().split()
        return "".join(c if c.isprintable() else "?" for c in " ".join(words))
    return ""


def on_lock_file(error: OSError) -> OSError:
    """The same error, with words that name the lock file as its cause."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OSError(error.errno, f"{reason}, on the lock file")
