"""Packages that only some tests need: a test without one is skipped, and says what to install."""

import importlib.util

import pytest
from PIL import features

BRINGS = {  # a module's package -> the requirement that brings it, the file that lists this one
    "atheris": ("atheris", "requirements-fuzz.txt"),
    "clip": ("clip-anytorch", "requirements.txt"),
    "cryptography": ("flwr", "requirements-flower.txt"),
    "dp_accounting": ("dp-accounting", "requirements-dp.txt"),
    "flwr": ("flwr", "requirements-flower.txt"),
    "huggingface_hub": ("huggingface_hub", "requirements-hub.txt"),
    "ipykernel": ("ipykernel", "requirements-notebook.txt"),
    "jax": ("jax", "requirements-bench.txt"),
    "matplotlib": ("matplotlib", "requirements-figures.txt"),
    "mlflow": ("mlflow-skinny", "requirements-loggers.txt"),
    "mypy": ("mypy", "requirements-dev.txt"),
    "nbclient": ("nbclient", "requirements-notebook.txt"),
    "nbformat": ("nbclient", "requirements-notebook.txt"),
    "open_clip": ("open-clip-torch", "requirements-dev.txt"),
    "optuna": ("optuna", "requirements-sweep.txt"),
    "pandas": ("pandas", "requirements-notebook.txt"),
    "pyarrow": ("pyarrow", "requirements-parquet.txt"),
    "ray": ("ray", "requirements-ray.txt"),
    "sklearn": ("scikit-learn", "requirements-dev.txt"),
    "tensorboard": ("tensorboard", "requirements-tensorboard.txt"),
    "torchvision": ("torchvision", "requirements.txt"),
    "transformers": ("transformers", "requirements-dev.txt"),
    "triton": ("triton", "requirements-dev.txt"),
    "wandb": ("wandb", "requirements-loggers.txt"),
}
LINUX_ALONE = ("atheris", "triton")  # neither has a wheel for another system


def need(*packages: str) -> None:
    """Skips a test, or the file being imported, where one of the packages is not installed.

    One that is installed and cannot be imported is left to fail where it is imported.
    """
    __tracebackhide__ = True  # the skip is reported where this is called
    for package in packages:
        _, file = BRINGS[package]
        if importlib.util.find_spec(package) is None:
            where = ", on Linux" if package in LINUX_ALONE else ""
            pytest.skip(
                f"{package} is not installed: pip install -r {file}{where}",
                allow_module_level=True,
            )


def need_codec(name: str) -> None:
    """Skips a test where Pillow was built without this codec."""
    __tracebackhide__ = True
    if not features.check(name):
        pytest.skip(f"this Pillow has no {name}, its wheels have: pip install -r requirements.txt")
