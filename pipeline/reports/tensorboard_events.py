"""A run's curves as TensorBoard event files; the only importer of tensorboard."""

from os import PathLike
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.reports.data import RunData


def write_events(run: RunData, folder: str | PathLike[str]) -> Path:
    """Writes <folder>/<run>/<held out>/: scalars validation/<client>, test/ and loss/ by round.

    Numbers that were not finite are left out. Raises ConfigError where tensorboard is missing or
    the folder cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--tensorboard needs the package tensorboard ({error.name} is not installed); "
            "pip install -r requirements-tensorboard.txt"
        ) from error
    target = Path(folder) / _path(run.name)
    try:
        for at, fold in enumerate(run.folds):
            with SummaryWriter(str(target / _path(f"{at}-{fold.name}"))) as writer:
                for what in ("validation", "test", "loss"):
                    for name, curve in getattr(fold, what).items():
                        for round, value in zip(curve.rounds, curve.values, strict=True):
                            if value is not None:
                                writer.add_scalar(f"{what}/{name}", value, round)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or target}: cannot be written ({error.strerror or error})"
        ) from error
    return target


def _path(name: str) -> str:
    """The name as one part of a path: a domain may be called ../x."""
    return "".join(c if c.isalnum() or c in "-_ " else "_" for c in name)[:80] or "_"
