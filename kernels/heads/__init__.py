"""Adapter heads: shapes, initial weights, forward and backward.

Each file in this folder that defines a HEAD describes one head; nothing else compares names.
"""

import importlib
import pkgutil

from kernels.heads.head import Head

SHARED = ("cpu", "head", "plain")
"""Files without a head; not imported here, because they import torch and numba."""


def _found() -> dict[str, Head]:
    files = [each.name for each in pkgutil.iter_modules(__path__) if each.name not in SHARED]
    heads: list[Head] = [importlib.import_module(f"{__name__}.{name}").HEAD for name in files]
    names = [head.name for head in heads]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"several heads are named {', '.join(sorted(twice))}")
    return dict(zip(names, heads, strict=True))


HEADS = _found()
"""Every head by name."""
