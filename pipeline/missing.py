"""One-line refusals: a missing package, an old Python, a deleted current folder."""

import os
import sys

from pipeline.places import HOME

_OURS = ("benchmarks", "cache", "kernels", "pipeline")
OLDEST = (3, 11)


def refuse_missing_package(error: ModuleNotFoundError) -> None:
    """Exits with one line if `error` is about a third-party package; returns if about our own."""
    package = (error.name or "").split(".")[0]
    if package and package not in _OURS:
        sys.exit(
            f"Error: the package {package} is not installed for {sys.executable}; "
            f"{sys.executable} -m pip install -r {HOME / 'requirements.txt'}"
        )


def refuse_lost_folder() -> None:
    """Exits with one line if the current folder was deleted: torch would abort."""
    try:
        os.getcwd()
    except OSError as error:
        sys.exit(f"Error: the current folder cannot be used ({error.strerror}); cd to another one")


def refuse_old_python() -> None:
    """Exits with one line if this Python is older than OLDEST."""
    if sys.version_info < OLDEST:
        there, needed = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST))
        sys.exit(f"Error: Python {needed} or newer is needed; {sys.executable} is {there}")
