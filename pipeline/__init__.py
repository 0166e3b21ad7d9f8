"""FedCLIP from a feature cache: extract once, federate many times.

From Python (docs/python.md):

    from pipeline import extract, federate, load_cache, sweep

Each is imported on first use, so that `import pipeline` and a command's --help stay fast. Modules
log under their own names; nothing is shown by default.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cache.store import read_table as load_cache
    from pipeline.extraction.extract import extract
    from pipeline.runs.federate import federate
    from pipeline.sweeps.run import sweep

__all__ = ["extract", "federate", "load_cache", "sweep"]

logging.getLogger(__name__).addHandler(logging.NullHandler())

_HOMES = {
    "extract": ("pipeline.extraction.extract", "extract"),
    "federate": ("pipeline.runs.federate", "federate"),
    "load_cache": ("cache.store", "read_table"),
    "sweep": ("pipeline.sweeps.run", "sweep"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _HOMES[name]
    return getattr(import_module(module), function)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
