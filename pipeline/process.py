"""What a long command does to its process: signals that end a round, threads, memory there is."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from kernels.cpu_threads import kernels_alone

WIDE = 512
"""Below this width a step on the CPU is too short to share between threads: at 128 two threads took
11 s for the built-in job and one 12 s, but with another busy program beside them 320 s."""


class Interrupted(Exception):
    """A signal asked a run to stop; what it had trained is written."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM add their number to; a second SIGINT breaks off at once."""
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: object) -> None:
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def threads(device: torch.device, width: int, backend: str) -> Iterator[None]:
    """One thread for narrow features on a CPU, as many as torch has for others.

    The numba kernels share out whole lanes, so they take all threads at any width.
    """
    if backend == "numba":
        with kernels_alone():
            yield
        return
    before = torch.get_num_threads()
    if device.type == "cpu" and width < WIDE:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def progress_bar(**settings) -> tqdm:
    """A bar on stderr: a living one in a terminal, a line every half minute elsewhere."""
    living = sys.stderr.isatty()
    return tqdm(mininterval=0.1 if living else 30, leave=False, **settings)


def free_memory(device: torch.device) -> int:
    """Bytes that may be taken: half of what is free in the computer, 0.8 of what is on a GPU."""
    if device.type == "cuda":
        return int(0.8 * torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 4 << 30
