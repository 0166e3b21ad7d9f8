"""What a reader made of a file, as a digest; and what a kind of file is."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache.table import CacheError, FeatureTable
from kernels.backends import BackendUnavailable
from pipeline.errors import ConfigError

EXPECTED = (CacheError, ConfigError, BackendUnavailable)
"""The product's own errors, each with an exit code."""


class Kind(NamedTuple):
    """One sort of file.

    `read` puts damaged bytes where the file belongs and returns what each reader made of them, by
    reader; one that refused with one of the product's own errors is not in it. strict: whatever was
    made must be what the undamaged file gives.
    """

    prepare: Callable[[Path], list[bytes]]  # makes what stands around it; sound files of the kind
    read: Callable[[Path, bytes], dict[str, str]]  # reader -> digest of what it made of the bytes
    strict: bool = True


def taken(readers: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """What each reader returns, as a digest; those that refuse are left out."""
    found = {}
    for name, reader in readers.items():
        try:
            found[name] = digest(reader())
        except EXPECTED as error:
            assert "\n" not in str(error).strip() and isinstance(error.exit_code, int), error
    return found


def digest(value: Any) -> str:
    """The same for the same content, arrays by their bytes."""
    if isinstance(value, FeatureTable):
        value = {k: v for k, v in vars(value).items() if k != "source"}
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        value = (value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest())
    if isinstance(value, dict):
        value = sorted((str(k), digest(v)) for k, v in value.items())
    elif isinstance(value, list | tuple):
        value = [digest(v) for v in value]
    return hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()[:16]
