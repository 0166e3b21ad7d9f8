"""The machine a figure was measured on, and its peak rates."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_info

from benchmarks.measure import take_turns
from kernels.backends import pick_backend

PACKAGES = ("torch", "numba", "numpy", "scipy", "triton", "clip-anytorch")


def describe(device: torch.device) -> dict:
    """Names, versions, thread counts, load and date."""
    gpu = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = {
            "name": properties.name,
            "bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return {
        "date": datetime.date.today().isoformat(),
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "gpu": gpu,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "blas": [
            {k: lib.get(k) for k in ("prefix", "version", "architecture", "num_threads")}
            for lib in threadpool_info()
            if lib["user_api"] == "blas"
        ],
    }


def name_of(machine: dict) -> str:
    """A name for files: the GPU's, or the CPU's with its number of cores."""
    words = (
        machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']} {machine['cores']} cores"
    )
    return "-".join("".join(c if c.isalnum() else " " for c in words.lower()).split())


def ceilings(
    device: torch.device, quick: bool, side: int | None = None, count: int | None = None
) -> dict[str, float]:
    """Measured rates: float32 matrix products in flop/s, copying in bytes read and written per s.

    On a CPU, products take the better of torch's and our own tile's rates on all threads: a kernel
    must not exceed its ceiling.

    side   size of the square product; None: large
    count  numbers copied; None: large
    """
    side = side or (4096 if device.type == "cuda" else 1024)
    count = count or ((1 << 28) if device.type == "cuda" else (1 << 25))
    a, b = torch.randn(2, side, side, device=device).unbind()
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    cases: dict[str, Callable[[], object]] = {
        "gemm": lambda: [a @ b for _ in range(4)],
        "copy": lambda: target.copy_(source),
    }
    flops = {"gemm": 4 * 2 * side**3}
    if device.type == "cpu" and pick_backend("auto", device) == "numba":
        cases["tile"], flops["tile"] = _tile()
    times = take_turns(cases, repeats=3 if quick else 9, device=device)
    best = {name: case.quantiles()["p20"] for name, case in times.items()}
    return {
        "gemm_flops_per_second": max(flops[name] / best[name] for name in flops),
        "copy_bytes_per_second": 2 * 4 * count / best["copy"],
    }


def _tile() -> tuple[Callable[[], object], int]:
    """A call that repeats a product of a training step's shape on every thread; and its flops."""
    from kernels.cpu.threads import run_all
    from kernels.cpu.tile import matmul

    width, columns, times, threads = 512, 32, 100, torch.get_num_threads()
    a, b = np.ones((width, width), np.float32), np.ones((width, columns), np.float32)

    def work(thread: int, out: np.ndarray) -> None:
        for _ in range(times):
            matmul(a, b, out)

    def call() -> None:
        run_all(work, range(threads), lambda: np.empty((width, columns), np.float32))

    return call, threads * times * 2 * width * width * columns


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
