"""What a command takes of its computer: CPUs, threads and memory."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WIDE = 512
"""Below this width a step on the CPU is too short to share between threads: at 128 two threads took
11 s for the built-in job and one 12 s, but with another busy program beside them 320 s."""


def cores() -> int:
    """CPUs available to this process; a container's share can be less than all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(device: "torch.device", width: int, backend: str) -> Iterator[None]:
    """Uses one thread for narrow features on a CPU, as many as torch has for others.

    The numba kernels divide whole lanes among threads, so they use all threads at any width.
    """
    import torch

    if backend in ("numba", "numba-bf16"):
        from kernels.cpu.threads import kernels_alone

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


def free_memory(device: "torch.device") -> int:
    """Bytes that may be used: half of the computer's free memory, 0.8 of a GPU's."""
    import torch

    if device.type == "cuda":
        return int(0.8 * torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 4 << 30
