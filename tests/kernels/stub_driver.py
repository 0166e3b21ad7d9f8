"""A driver for Triton on which all of a launch is real except the launch.

Triton binds arguments, specialises on them, compiles for compute capability 9.0 and calls its
launcher as on a GPU; this driver counts the binaries it is asked to load and the launches, and runs
nothing. Ahead-of-time compilation (tests/kernels/aot.py) skips the binder, and the interpreter all
of it.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

DEVICES = count(1000)
"""Triton keeps kernels by device: numbers that no GPU has, each used once."""
LIMITS = {"max_shared_mem": 227 * 1024, "multiprocessor_count": 132, "max_num_regs": 65536}
MOST_PROGRAMS = 2**31 - 1


class StubDriver:
    """What triton.runtime asks of a driver."""

    def __init__(self) -> None:
        self.device = next(DEVICES)
        self.loaded: Counter[str] = Counter()  # binaries, by kernel
        self.launched: Counter[str] = Counter()
        self.overlapped: Counter[str] = Counter()  # launches that do not await the previous one
        self.utils = self

    def load_binary(self, name: str, code: bytes, shared: int, device: int) -> tuple:
        assert code[:4] == b"\x7fELF" and device == self.device
        self.loaded[name] += 1
        registers, spills, most_threads = 128, 0, 1024
        return "module", "function", registers, spills, most_threads

    def launcher_cls(self, source: object, metadata: object):
        def launch(x: int, y: int, z: int, stream: int, function: str, *_: object) -> None:
            assert 0 < x <= MOST_PROGRAMS and y == z == 1, f"{metadata.name}: grid {x}, {y}, {z}"
            self.launched[metadata.name] += 1
            self.overlapped[metadata.name] += metadata.launch_pdl

        return launch

    def get_device_properties(self, device: int) -> dict[str, int]:
        return LIMITS

    def unload_module(self, module: object) -> None: ...

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return 7

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def stub_driver() -> Iterator[StubDriver]:
    """Launches inside go to a new StubDriver."""
    stub = StubDriver()
    with mock.patch.object(driver, "_active", stub):
        yield stub
