"""What a long command takes of its computer: threads and memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kernels.cpu.threads import kernels_alone

WIDE = 512
"""Below this width a step on the CPU is too short to share between threads: at 128 two threads took
11 s for the built-in job and one 12 s, but with another busy program beside them 320 s."""


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


def free_memory(device: torch.device) -> int:
    """Bytes that may be taken: half of what is free in the computer, 0.8 of what is on a GPU."""
    if device.type == "cuda":
        return int(0.8 * torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 4 << 30
