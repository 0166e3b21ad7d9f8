"""What a federated method is: how reports become one adapter, and what is remembered.

Each file beside this one that has METHODS describes a family of them; nothing else compares names.
"""

import importlib
import pkgutil

from pipeline.federation.methods.method import Method

SHARED = (
    "aggregate",
    "closed_form",
    "closed_form_choice",
    "guard",
    "method",
    "privacy",
)
"""Files without a method. They may import torch, for which --help has no time: not read here."""


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
