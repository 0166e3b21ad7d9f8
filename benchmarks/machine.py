"""What a figure was measured on, and what that machine can do at most."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from threadpoolctl import threadpool_info

from benchmarks.measure import quantiles, take_turns

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
    """A word for file names: the GPU's or the CPU's, with its cores."""
    words = (
        machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']} {machine['cores']} cores"
    )
    return "-".join("".join(c if c.isalnum() else " " for c in words.lower()).split())


def ceilings(device: torch.device, quick: bool) -> dict[str, float]:
    """Measured now: float32 matrix products in flop/s, and copying in bytes read and written/s."""
    side = 4096 if device.type == "cuda" else 1024
    count = (1 << 28) if device.type == "cuda" else (1 << 25)
    a, b = torch.randn(2, side, side, device=device).unbind()
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    cases: dict[str, Callable[[], object]] = {
        "gemm": lambda: [a @ b for _ in range(4)],
        "copy": lambda: target.copy_(source),
    }
    seconds = take_turns(cases, repeats=3 if quick else 9, device=device)
    best = {name: quantiles(values)["p20"] for name, values in seconds.items()}
    return {
        "gemm_flops_per_second": 4 * 2 * side**3 / best["gemm"],
        "copy_bytes_per_second": 2 * 4 * count / best["copy"],
    }


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
