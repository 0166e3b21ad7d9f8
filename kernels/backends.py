"""Choice of device and backend, and the errors raised when one cannot run."""

import functools
import importlib
import importlib.util
import os
import warnings
from pathlib import Path
from types import ModuleType

import torch

from kernels.kept_folder import first_writable, of_home, of_temporary

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's own switch: its kernels are then interpreted in Python, on CPU tensors too."""

BACKENDS = {
    "cuda": ("triton", "torch"),
    "cpu": ("numba", "torch", "triton") if INTERPRETED else ("numba", "torch"),
}
"""The backends for each kind of device, in the order in which "auto" tries them."""
BF16 = "numba-bf16"
"""numba, with adapter_steps' products in bfloat16 on the CPU's matrix unit. "auto" never picks
it: its results differ from the other backends' by more than float32's rounding."""
FILES = {"torch": "plain", "numba": "cpu", "triton": "gpu", BF16: "cpu_bf16"}


class BackendUnavailable(Exception):
    """The named device or backend cannot run here."""

    exit_code = 5


def pick_device(name: str) -> torch.device:
    """The device called `name`: "cuda", "cpu", or "auto" for CUDA if available.

    Raises BackendUnavailable for "cuda" on a machine without it: only "auto" falls back.
    """
    found = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if found else "cpu")
    if name not in ("cuda", "cpu"):
        raise BackendUnavailable(f"device {name!r} is unknown; there are auto, cuda, cpu")
    if name == "cuda" and not found:
        raise BackendUnavailable(
            f"device 'cuda' was requested, but torch {torch.__version__} sees no CUDA device; "
            "install a CUDA build of torch and the driver, or pass --device cpu"
        )
    return torch.device(name)


def pick_backend(backend: str, device: torch.device) -> str:
    """The backend to run on `device`: the named one, or the first available for "auto".

    Raises BackendUnavailable if the named one cannot run here; it is never swapped for another.
    """
    names = BACKENDS.get(device.type, ("torch",))
    if backend == "auto":
        return _first_that_runs(names)
    named = (*names, BF16) if "numba" in names else names
    if backend not in named:
        raise BackendUnavailable(
            f"backend {backend!r} is not available on {device.type}; choose from {', '.join(named)}"
        )
    why, way_out = _why_not(backend)
    if why:
        other = next(name for name in names if not _why_not(name)[0])
        raise BackendUnavailable(
            f"backend {backend!r} {why}; {way_out}, or pass --backend auto to use {other!r}"
        )
    return backend


def _first_that_runs(names: tuple[str, ...]) -> str:
    for name in names:
        why, _ = _why_not(name)
        if not why:
            return name
        if importlib.util.find_spec(name):  # no warning if it is not installed
            warnings.warn(f"backend {name!r} {why}; using 'torch'", RuntimeWarning, stacklevel=3)
    return "torch"


def _why_not(name: str) -> tuple[str, str]:
    """Why a backend cannot run here, and the remedy; two empty strings if it can."""
    if name == BF16:
        why, way_out = _why_not("numba")
        if not why:
            why, way_out = (
                importlib.import_module("kernels.cpu.amx").why_not(),
                "run it on such a machine",
            )
        return why, way_out
    if not importlib.util.find_spec(name):
        return f"needs the package {name}, which is not installed", "install requirements.txt"
    if name != "numba":  # torch is already imported; triton reports what it lacks when it compiles
        return "", ""
    try:
        config = importlib.import_module("numba.core.config")
    except Exception as error:  # an incompatible numpy or llvmlite raises almost anything
        named = sorted(name for name in os.environ if name.startswith("NUMBA_"))
        return f"cannot be imported ({error})", (
            f"unset {', '.join(named)}" if named else "install requirements.txt"
        )
    if config.DISABLE_JIT:
        return "cannot run with NUMBA_DISABLE_JIT set", "unset it"
    return "", ""


@functools.cache
def load(op: str, backend: str, device: torch.device) -> ModuleType:
    """The module kernels/<op>/<plain, cpu or gpu>.py that runs on `device`; see pick_backend."""
    picked = pick_backend(backend, device)
    if picked == "triton":
        _keep_triton_kernels()
    if picked == BF16 and op != "step":
        picked = "numba"
    return importlib.import_module(f"kernels.{op}.{FILES[picked]}")


def _keep_triton_kernels() -> None:
    """Make Triton cache compiled kernels in the first writable folder of several.

    Triton reads TRITON_CACHE_DIR at every compilation and raises OSError if it cannot write.
    """
    named = os.environ.get("TRITON_CACHE_DIR")
    usual = (lambda: Path(named)) if named else (lambda: Path.home() / ".triton" / "cache")
    found = first_writable([usual, lambda: of_home("triton"), lambda: of_temporary("triton")])
    if found is not None:
        os.environ["TRITON_CACHE_DIR"] = str(found)
