"""Shortages of address space, threads and open files, reported before they are hit."""

import contextlib
import ctypes
import errno
import faulthandler
import functools
import os
import signal
import threading
from typing import Any

from pipeline.errors import ConfigError
from pipeline.machine import cores

# Address space in kB of the commands that import torch: `federate` on the built-in data takes
# 1,250,000 on two cores, `sweep` 1,300,000 (VmPeak in /proc/self/status); each thread adds a stack
# and an arena.
BASE_KB, THREAD_KB = 1_200_000, 100_000
LIGHT = ("cache", "download")  # commands without torch
M_ARENA_MAX = -8  # malloc.h
BLAS_THREADS = "OPENBLAS_NUM_THREADS"
ABORTED = (
    "Error: a C++ library aborted, usually because memory ran out (ulimit -v, or the machine's); "
    "raise the limit or use fewer threads (OMP_NUM_THREADS=1), then run the command again\n"
)


def prepare_for_limit(command: str) -> None:
    """Refuses limits (`ulimit -v`, `ulimit -u`) in which the command's libraries cannot start.

    OpenBLAS, which numpy and scipy bring, retries a failed allocation forever while it holds the
    interpreter's lock: only SIGKILL ends that. Its buffers are therefore allocated now, for one
    thread, before data takes the rest. If it cannot start a thread it interrupts the process like
    Ctrl-C, and OpenMP exits without a message of ours. A later abort() is explained in one line.
    Raises ConfigError.
    """
    limit = _limit("AS")
    if limit is not None:
        os.environ.setdefault(BLAS_THREADS, "1")
        _share_arenas()
    if command in LIGHT:
        return
    _refuse_few_threads(command)
    _explain_abort()
    if limit is None:
        return
    threads = _threads()
    need = BASE_KB + THREAD_KB * threads
    if limit // 1024 < need:
        raise ConfigError(
            f"ulimit -v is {limit // 1024} kB, and {command} needs at least {need} kB of address "
            f"space on {threads} threads; raise the limit{_fewer()}"
        )
    _take_buffers()


def shortage(error: BaseException) -> str | None:
    """One line for an error that means too little memory, threads or files; None for others."""
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE):
        return f"too many open files{_limit_words('NOFILE', 'n')}: {text}"
    if "can't start new thread" in text or (number == errno.EAGAIN and error.filename is None):
        limits = _limit_words("NPROC", "u") + _limit_words("AS", "v", 1024, " kB")
        return f"no more threads or processes can be started{limits}; raise the limit{_fewer()}"
    if (
        isinstance(error, MemoryError)
        or number == errno.ENOMEM
        or any(words in text for words in ("allocate memory", "bad_alloc", "bad allocation"))
        or (isinstance(error, ImportError) and "failed to map segment" in text)
    ):
        return f"out of memory{_limit_words('AS', 'v', 1024, ' kB')}" + (
            f": {text}" if text else ""
        )
    return None


def _refuse_few_threads(command: str) -> None:
    threads = _threads()
    # OpenBLAS and OpenMP start threads - 1 each, the kernels' own pool as many as `threads`, and a
    # progress bar and the watch of signals one each; tests/cli/test_shortage.py runs with no more.
    need = 3 * threads + 1
    started = _startable(need)
    if started < need:
        raise ConfigError(
            f"{command} needs {need} threads, and only {started} can be started"
            f"{_limit_words('NPROC', 'u')}; raise the limit, or end other processes{_fewer()}"
        )


def _startable(count: int) -> int:
    """How many of `count` threads can run at once; all end before this returns."""
    over, started = threading.Event(), []
    usual = threading.stack_size(1 << 16)  # small, so that address space is not the limit
    try:
        for _ in range(count):
            thread = threading.Thread(target=over.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        pass
    finally:
        threading.stack_size(usual)
        over.set()
    for thread in started:
        thread.join()
    return len(started)


def _explain_abort() -> None:
    """Explains an abort() of a C++ library in one line; the exit code stays 134.

    Python never sees a std::bad_alloc that is not caught in a library's thread.
    """
    if not faulthandler.is_enabled():  # whoever enables it wants its traceback
        with contextlib.suppress(AttributeError, OSError, MemoryError):  # another C library
            ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort())


@functools.cache
def _on_abort() -> Any:
    """The handler as a C function; cached, because C keeps only its address."""

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def explain(_: int) -> None:
        os.write(2, ABORTED.encode())
        os._exit(128 + signal.SIGABRT)

    return explain


def _fewer() -> str:
    return "" if _threads() == 1 else ", or set OMP_NUM_THREADS=1"


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


def _limit_words(name: str, letter: str, unit: int = 1, words: str = "") -> str:
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
