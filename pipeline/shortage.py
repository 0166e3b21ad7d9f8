"""What the system has too little of: address space, threads, open files; said before it is met."""

import contextlib
import ctypes
import errno
import os

from pipeline.cores import cores
from pipeline.errors import ConfigError

# Address space in kB of the commands that import torch: `federate` on the built-in data takes
# 1,250,000 on two cores, `sweep` 1,300,000, and each thread a stack and an arena. What is taken is
# VmPeak in /proc/self/status.
BASE_KB, THREAD_KB = 1_200_000, 100_000
LIGHT = ("cache", "download")  # commands without torch
M_ARENA_MAX = -8  # malloc.h
BLAS_THREADS = "OPENBLAS_NUM_THREADS"


def prepare_for_limit(command: str) -> None:
    """Refuse a limit of address space (`ulimit -v`) that the command's libraries cannot start in.

    OpenBLAS, which numpy and scipy bring, asks again for ever for a buffer that it is denied, with
    the interpreter's lock held: nothing could end that but SIGKILL. So its buffers are taken now,
    for one thread, before data takes the rest. Without a limit nothing is done.
    Raises ConfigError.
    """
    limit = _limit("AS")
    if limit is None:
        return
    os.environ.setdefault(BLAS_THREADS, "1")
    _share_arenas()
    if command in LIGHT:
        return
    threads = _threads()
    need = BASE_KB + THREAD_KB * threads
    if limit // 1024 < need:
        fewer = "" if threads == 1 else ", or set OMP_NUM_THREADS=1"
        raise ConfigError(
            f"ulimit -v is {limit // 1024} kB, and {command} needs at least {need} kB of address "
            f"space on {threads} threads; raise the limit{fewer}"
        )
    _take_buffers()


def shortage(error: BaseException) -> str | None:
    """One line for an error that means too little memory, threads or files; None for others."""
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE):
        return f"too many open files{_said('NOFILE', 'n')}: {text}"
    if "can't start new thread" in text or (number == errno.EAGAIN and "fork" in text):
        limits = _said("NPROC", "u") + _said("AS", "v", 1024, " kB")
        return f"no more threads or processes can be started{limits}"
    if (
        isinstance(error, MemoryError)
        or number == errno.ENOMEM
        or any(words in text for words in ("allocate memory", "bad_alloc", "bad allocation"))
        or (isinstance(error, ImportError) and "failed to map segment" in text)
    ):
        return f"out of memory{_said('AS', 'v', 1024, ' kB')}" + (f": {text}" if text else "")
    return None


def _threads() -> int:
    words = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(words)) if words.isdigit() and int(words) else cores()


def _share_arenas() -> None:
    """Let glibc's threads share two arenas: each of their own reserves 64 MB of address space."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


def _take_buffers() -> None:
    import numpy as np
    import scipy.linalg

    square = np.eye(256)
    scipy.linalg.eigh(square @ square)


def _said(name: str, letter: str, unit: int = 1, words: str = "") -> str:
    limit = _limit(name)
    return "" if limit is None else f" (ulimit -{letter} is {limit // unit}{words})"


def _limit(name: str) -> int | None:
    """The soft limit in its own unit; None where there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    found = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))[0]
    return None if found == resource.RLIM_INFINITY else int(found)
