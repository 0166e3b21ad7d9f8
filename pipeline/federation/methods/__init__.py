"""The registry of federated methods.

Each file beside this one that has METHODS describes a family of them; nothing else compares method
names.
"""

import importlib
import pkgutil

from pipeline.federation.methods.method import Method

SHARED = ("aggregate", "closed_form", "closed_form_choice", "guard", "method", "privacy")
"""Files without methods. They are not imported here, as they may import torch, which would slow
down --help."""


def _found() -> dict[str, Method]:
    files = [each.name for each in pkgutil.iter_modules(__path__) if each.name not in SHARED]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in files]
    methods: list[Method] = [one for module in modules for one in getattr(module, "METHODS", ())]
    methods.sort(key=lambda method: not method.averages)  # baselines last; else by file
    names = [method.name for method in methods]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"methods of one name: {', '.join(sorted(twice))}")
    return dict(zip(names, methods, strict=True))


METHODS = _found()
"""Every method by name."""
