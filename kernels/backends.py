"""Which device and which code run, and what to say when they cannot."""

import functools
import importlib
import importlib.util
import os
from types import ModuleType

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's own switch: its kernels then run step by step in Python, on CPU tensors too."""

BACKENDS = {
    "cuda": ("triton", "torch"),
    "cpu": ("numba", "torch", "triton") if INTERPRETED else ("numba", "torch"),
}
"""For each kind of device the backends there are, the one that "auto" takes first."""


class BackendUnavailable(Exception):
    """A named device or backend that cannot run here."""

    exit_code = 5


def pick_device(name: str) -> torch.device:
    """The device called `name`: "cuda", "cpu", or "auto" for CUDA where there is one.

    Raises BackendUnavailable for "cuda" on a machine without it; only "auto" chooses.
    """
    found = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if found else "cpu")
    if name not in ("cuda", "cpu"):
        raise BackendUnavailable(f"device {name!r} is unknown; there are auto, cuda, cpu")
    if name == "cuda" and not found:
        raise BackendUnavailable(
            f"device 'cuda' was asked for, but torch {torch.__version__} sees no CUDA device here; "
            "install a CUDA build of torch and its driver, or pass --device cpu"
        )
    return torch.device(name)


def pick_backend(backend: str, device: torch.device) -> str:
    """The backend that runs on `device`: the named one, or for "auto" the first there is.

    Raises BackendUnavailable for a named one that cannot run here; it is never swapped.
    """
    names = BACKENDS.get(device.type, ("torch",))
    present = [name for name in names if importlib.util.find_spec(name)]
    if backend == "auto":
        return present[0]
    if backend not in names:
        raise BackendUnavailable(
            f"backend {backend!r}: no such code for {device.type}; there is {', '.join(names)}"
        )
    if backend not in present:
        raise BackendUnavailable(
            f"backend {backend!r} needs the package {backend}, which is not installed; install "
            f"requirements.txt, or pass --backend auto to use {present[0]!r}"
        )
    return backend


@functools.cache
def load(op: str, backend: str, device: torch.device) -> ModuleType:
    """The module kernels/<op>_<backend>.py that runs on `device`; see pick_backend."""
    return importlib.import_module(f"kernels.{op}_{pick_backend(backend, device)}")
