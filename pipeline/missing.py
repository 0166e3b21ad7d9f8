"""What to say when a package, a new enough Python or the current folder is not there."""

import os
import sys

from pipeline.places import HOME

_OURS = ("benchmarks", "cache", "kernels", "pipeline")
OLDEST = (3, 11)


def refuse_missing_package(error: ModuleNotFoundError) -> None:
    """Ends with one line when `error` is about a package of others; returns when about ours."""
    package = (error.name or "").split(".")[0]
    if package and package not in _OURS:
        sys.exit(
            f"Error: the package {package} is not installed for {sys.executable}; "
            f"{sys.executable} -m pip install -r {HOME / 'requirements.txt'}"
        )


def refuse_lost_folder() -> None:
    """Ends with one line when the current folder was deleted: torch would end the process."""
    try:
        os.getcwd()
    except OSError as error:
        sys.exit(f"Error: the current folder cannot be used ({error.strerror}); cd to another one")


def refuse_old_python() -> None:
    """Ends with one line when this Python is older than OLDEST."""
    if sys.version_info < OLDEST:
        there, needed = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST))
        sys.exit(f"Error: Python {needed} or newer is needed; {sys.executable} is {there}")
