"""Timing: cases take turns in one process, and quantiles are reported."""

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

QUICK = 3  # repeats with --quick
HURRY = 2.0
PAUSE = 0.1
"""Seconds between cases: idle threads of OpenBLAS and OpenMP spin that long."""


@dataclass
class Times:
    """Times of one case's calls: wall-clock seconds, and CPU seconds of all threads."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def quantiles(self, units: float = 1) -> dict[str, float]:
        """p20, p50 and p80 of seconds per unit, median CPU seconds per unit, number of samples."""
        found = {f"p{q}": float(np.quantile(self.seconds, q / 100)) / units for q in (20, 50, 80)}
        cpu = float(np.median(self.cpu)) / units if self.cpu else None
        return {**found, "cpu": cpu, "samples": len(self.seconds)}


def take_turns(
    cases: dict[str, Callable[[], object]],
    *,
    repeats: int,
    device: torch.device,
    warm: bool = False,
) -> dict[str, Times]:
    """Times of each case, in rotation, after one unmeasured call of each unless `warm`.

    With QUICK repeats or fewer, stop after one once HURRY seconds have passed: the machine is busy.
    """
    times = {name: Times() for name in cases}
    began = time.monotonic()
    for turn in range(warm, repeats + 1):
        if turn > 1 and repeats <= QUICK and time.monotonic() - began > HURRY:
            break
        for name, call in cases.items():
            gc.collect()
            time.sleep(PAUSE)
            _wait(device)
            started, cpu = time.perf_counter(), time.process_time()
            call()
            _wait(device)
            if turn:
                times[name].seconds.append(time.perf_counter() - started)
                times[name].cpu.append(time.process_time() - cpu)
    return times


def peak_extra_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Peak memory during one call beyond what was in use before; None if unknown.

    On CUDA, torch's own count; on Linux, the process's resident pages, whose high-water mark is
    reset first (man 5 proc, clear_refs).
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # otherwise the call reuses freed pages that malloc holds
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
