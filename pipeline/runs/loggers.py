"""Sends a run's figures to TensorBoard, W&B or MLflow while it trains. Off by default; each is one
function here, the only importer of its package."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import ConfigError
from pipeline.federation.evaluate import mean
from pipeline.federation.record import RoundReport

LOG = logging.getLogger(__name__)
REQUIREMENTS = "requirements-loggers.txt"
PROJECT = "fedclip"


class Logger(NamedTuple):
    """An open logger: `log` after every round, `close` at the end, also after an error."""

    log: Callable[[int, Mapping[str, float]], None]
    """(round, figures by name)"""
    close: Callable[[], None]


def figures_of(report: RoundReport) -> dict[str, float]:
    """The figures of a round: validation/<held out>, and test/ and loss/ where known.

    Means over clients or domains; test: held-out domains, else participants. With several trainings
    also their means as validation, test and loss.
    """
    found: dict[str, float] = {}
    for fold in report.folds:
        tested = fold.test_accuracy or {}
        held_out = (fold.held_out or "").split(",")
        unseen = {n: v for n, v in tested.items() if n in held_out} or tested
        parts = {"validation": fold.val_accuracy, "test": unseen, "loss": fold.train_loss}
        for what, values in parts.items():
            value = mean(list(values.values()))
            if value is not None:
                found[f"{what}/{_plain(fold.held_out or 'none')}"] = value
    if len(report.folds) > 1:
        for what in ("validation", "test", "loss"):
            own = [value for name, value in found.items() if name.startswith(f"{what}/")]
            if len(own) == len(report.folds):
                found[what] = sum(own) / len(own)
    return found


@contextlib.contextmanager
def open_loggers(
    names: Sequence[str], folder: Path, name: str, settings: Mapping[str, Any]
) -> Iterator[Callable[[RoundReport], None]]:
    """Opens loggers and yields a function that logs a round; their files go below the run's folder.

    name      of the run;  settings  of the run, as they are shown there
    A logger that fails during training is dropped with a warning; training continues.

    Raises ConfigError for an unknown name, a missing package, and one that cannot start.
    """
    opened: dict[str, Logger] = {}
    for each in dict.fromkeys(names):
        if each not in LOGGERS:
            raise ConfigError(f"--log-to {each}: choose from {', '.join(LOGGERS)}")
        try:
            opened[each] = LOGGERS[each](folder, name, settings)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--log-to {each}: the package {error.name} is not installed; "
                f"pip install -r {REQUIREMENTS}"
            ) from error
        except Exception as error:
            raise ConfigError(f"--log-to {each}: cannot start ({_line(error)})") from error

    def take(report: RoundReport) -> None:
        figures = figures_of(report)
        for each, logger in list(opened.items()):
            if not _works(each, lambda logger=logger: logger.log(report.round, figures)):
                del opened[each]

    try:
        yield take
    finally:
        for each, logger in opened.items():
            _works(each, logger.close)


def _works(name: str, call: Callable[[], None]) -> bool:
    try:
        call()
    except Exception as error:
        LOG.warning("--log-to %s failed and is dropped: %s", name, _line(error))
        return False
    return True


def _tensorboard(folder: Path, name: str, settings: Mapping[str, Any]) -> Logger:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))
    writer.add_text("settings", f"```\n{json.dumps(dict(settings), indent=2)}\n```")

    def log(round: int, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            writer.add_scalar(key, value, round)
        writer.flush()

    return Logger(log, writer.close)


def _wandb(folder: Path, name: str, settings: Mapping[str, Any]) -> Logger:
    """WANDB_MODE=offline works without a network; W&B reads WANDB_PROJECT and others itself."""
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), name=name, dir=str(folder),
        config=dict(settings), settings=wandb.Settings(silent=True, console="off"),
    )  # fmt: skip
    return Logger(lambda round, figures: run.log({**figures, "round": round}), run.finish)


def _mlflow(folder: Path, name: str, settings: Mapping[str, Any]) -> Logger:
    """MLFLOW_TRACKING_URI names a server; without it the files go to the run's folder."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    where = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlflow").resolve().as_uri()
    client = mlflow.MlflowClient(where)
    there = client.get_experiment_by_name(PROJECT)
    experiment = there.experiment_id if there else client.create_experiment(PROJECT)
    run = client.create_run(experiment, run_name=name).info.run_id
    for key, value in settings.items():
        client.log_param(run, key, str(value)[:500])

    def log(round: int, figures: Mapping[str, float]) -> None:
        for key, value in figures.items():
            client.log_metric(run, key, value, step=round)

    return Logger(log, lambda: client.set_terminated(run))


LOGGERS: Mapping[str, Callable[[Path, str, Mapping[str, Any]], Logger]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def _plain(name: str) -> str:
    """The name as part of a key that all loggers accept."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_. ") else "_" for c in name)[:80]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
