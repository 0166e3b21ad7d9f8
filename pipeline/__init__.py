"""FedCLIP from a feature cache: extract once, federate many times.

From Python (docs/python.md):

    from pipeline import extract, federate, load_cache, sweep

Each is imported when it is first asked for, so that `import pipeline` and a command's --help stay
quick. As attributes of the package these names are the functions, also where a module has the same
name; what else such a module holds is had by `from pipeline.extract import ...`.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cache.store import read_table as load_cache
    from pipeline.extract import extract
    from pipeline.federate import federate
    from pipeline.sweep_run import sweep

__all__ = ["extract", "federate", "load_cache", "sweep"]

_HOMES = {
    "extract": ("pipeline.extract", "extract"),
    "federate": ("pipeline.federate", "federate"),
    "load_cache": ("cache.store", "read_table"),
    "sweep": ("pipeline.sweep_run", "sweep"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _HOMES[name]
    return getattr(import_module(module), function)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        # Importing pipeline/extract.py puts that module here as "extract"; which of the two
        # `from pipeline import extract` gave would then depend on what was imported before.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
