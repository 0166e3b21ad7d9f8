"""Runs a sweep: opens its folder, trains the missing trials, and reports."""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cache.table import FeatureTable
from kernels.backends import BackendUnavailable, pick_backend
from pipeline.errors import ConfigError, Interrupted
from pipeline.frames import frame
from pipeline.json_files import content_of, read_object, replace_file
from pipeline.progress import progress_bar
from pipeline.runs.federate import cache_facts
from pipeline.runs.labels import label_of, write_label
from pipeline.runs.notes import length_warning
from pipeline.settings import RunConfig, as_json, run_id
from pipeline.settings_used import possible, unused
from pipeline.signals import noted_signals
from pipeline.sweeps.best import check_selection, sweep_report
from pipeline.sweeps.context import Opener, plan_trial
from pipeline.sweeps.schedule import Stopped, TrainingContext, train_all
from pipeline.sweeps.search import Search, check_search, open_search, reasons
from pipeline.sweeps.space import ends_of
from pipeline.sweeps.spec import SweepSpec, describe
from pipeline.sweeps.train import Here
from pipeline.sweeps.trials import Record, Trial, open_sweep, read_all
from pipeline.terminal import counted

if TYPE_CHECKING:
    from pandas import DataFrame

LOG = logging.getLogger(__name__)
SHARED = "shared.json"
MEASURED = ("seed", "rounds", "seconds", "val_accuracy", "error")  # of a Record, in frames
BAR = "{l_bar}{bar}| [{elapsed}<{remaining}]"  # counts lane-steps, which are not shown


class Best(NamedTuple):
    """The selected configuration.

    score, std  mean and deviation over its seeds of the selecting score: validation or oracle
    accuracy
    tested      {figure: test accuracy, mean over seeds}, which did not select it
    command     that trains it again
    """

    settings: dict[str, Any]
    score: float | None
    std: float | None
    tested: dict[str, float | None]
    command: str


class SweepResult(dict[str, Any]):
    """The object of `sweep --json` as a dict, and its main parts by attribute.

    It equals, and is written as, that dict.
    """

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return Path(self["sweep"])

    @property
    def best(self) -> Best | None:
        """The selected configuration; None if none could be selected."""
        found = self["best"]
        if found is None:
            return None
        score = found["val_accuracy" if self["select"] == "validation" else "oracle_accuracy"]
        tested = {name: spread["mean"] for name, spread in found["tested"].items()}
        return Best(found["settings"], score["mean"], score["std"], tested, found["command"])

    @property
    def trials(self) -> tuple[Record, ...]:
        """All trials that ended, by number, read from the folder; see Record."""
        return tuple(sorted(read_all(self.folder).values(), key=lambda one: one.number))

    def to_frame(self) -> "DataFrame":
        """A row a trial: number, status, its settings, seed, rounds, seconds, val_accuracy, error.

        Test accuracies are left out, as trials must not be selected by them; for their means over
        seeds see pipeline.reports.tables.records. Raises ConfigError where pandas is not installed
        or a file of the
        folder is damaged.
        """
        return frame(
            {
                "number": one.number,
                "status": one.status,
                **one.settings,
                **{name: getattr(one, name) for name in MEASURED},
            }
            for one in self.trials
        )


def sweep(
    table: FeatureTable,
    spec: SweepSpec,
    base: RunConfig,
    *,
    runs: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    device: str = "auto",
    backend: str = "auto",
    memory: int | None = None,
    budget: float = math.inf,
    select: str = "validation",
    cache: Sequence[str] = (),
    force: bool = False,
    name: str | None = None,
    tags: Sequence[str] = (),
    pool: Opener | None = None,
) -> SweepResult:
    """Trains the trials of a spec as lanes side by side and returns what `sweep --json` prints.

    A trial that is listed in trials.jsonl in `out`, or in runs/sweep-<id>, is not trained again, so
    a killed sweep resumes. The same spec gives the same results however trials are batched, and
    wherever they train: a lane's result does not depend on its neighbours.

    base     settings that are not swept; its held_out is every trial's
    memory   bytes for trials that train at the same time; None: half of what is free (GPU: 0.8)
    budget   seconds after which no further round is started
    select   "validation", or "oracle", which uses test accuracy
    cache    words of a command line that name the cache, for the command in the report
    name, tags  labels of the sweep
    pool     trains in place of this process's `device`, such as pipeline.cluster.sweep.OnRay

    A trial whose settings conflict or do not fit the rows is recorded as failed with the reason.

    Raises ConfigError, CacheError, BackendUnavailable (if no trial can be trained, before a folder
    is created); Interrupted after SIGINT or SIGTERM.
    """
    check_selection(select)
    label = label_of(name, tags)
    opener = pool or Here(device)
    on = opener.device
    pick_backend(backend, on)  # refuses a wrong name before anything is trained
    _refuse_untrainable(table, check_search(spec, base), base, on, backend)
    described = {
        "spec": describe(spec),
        "base": as_json(base),
        "cache": cache_facts(table),
        "backend": backend,
        "device": on.type,
    }
    trials = possible(base, {name: ends_of(name, domain) for name, domain in spec.parameters})
    for note in unused(trials, table):
        LOG.warning("%s", note)
    if short := next(
        filter(None, (length_warning(table, each) for each in _heads(base, trials))), None
    ):
        LOG.warning("%s", short)
    folder = Path(out or Path(runs, f"sweep-{run_id(described)}"))
    with open_sweep(folder, described, force=force) as opened:
        write_label(folder, label)
        shared = {"cache": str(Path(table.source).resolve()), "words": tuple(cache)}
        replace_file(folder / SHARED, json.dumps(shared, indent=2).encode())
        # Not in spec.json: the selection does not affect trials, and may change next time.
        replace_file(folder / "selection.json", json.dumps({"select": select}).encode())
        search = open_search(spec, base, folder, opened.records)
        started = time.monotonic()
        LOG.info(
            "%s: %s, %d finished, each of %s, on %s; results in %s",
            table.source, counted(search.most(), "trial"), len(opened.records),
            counted(len(base.held_out), "training"), on.type, folder,
        )  # fmt: skip
        with (
            noted_signals() as stop,
            progress_bar(total=0, bar_format=BAR, smoothing=0.1) as bar,
            opener(table, base, backend, memory, folder) as trains,
        ):
            context = TrainingContext(
                table, spec, base, on, backend, opened, trains, started + budget, stop, bar,
                most=search.most(),
            )  # fmt: skip
            finished = _train(search, context)
        _refuse_stopped(search, context, finished)
        spent = time.monotonic() - started
        return SweepResult({
            **sweep_report(opened.records.values(), base, cache, select=select),
            "sweep": str(folder),
            "lane_steps": context.steps,
            "lane_steps_a_second": context.steps / spent if spent else 0.0,
            "wall_seconds": spent,
            "startup_seconds": (context.first or started) - started,
        })  # fmt: skip


def _train(search: Search, context: TrainingContext) -> bool:
    """Trains until every trial has ended; returns False if the budget or a signal came first."""
    try:
        train_all(search, context)
    except Stopped:
        return False
    finally:
        context.folder.sync()
    return True


def _refuse_stopped(search: Search, context: TrainingContext, finished: bool) -> None:
    """Warns of an exhausted budget.

    Raises Interrupted after a signal, ConfigError if no trial could be trained.
    """
    records, folder = context.folder.records, context.folder.folder
    left_over = 0 if finished else search.most() - len(records)
    if left_over:
        left = f"{left_over} trials are left; run the same command to resume"
        if context.stop:
            message = f"stopped; finished trials are saved in {folder}. {left}"
            raise Interrupted(message, context.stop[0])
        LOG.warning("the budget is exhausted: %s", left)
        return
    failed = [each.error or "" for each in records.values() if each.status == "failed"]
    if failed and len(failed) == len(records):
        raise ConfigError(f"{folder}: no trial could be trained: {reasons(failed)}")


def _heads(base: RunConfig, trials: dict[str, Any]) -> Iterator[RunConfig]:
    """The base with each valid combination of swept head, mode and method."""
    for head, mode, method in itertools.product(trials["head"], trials["mode"], trials["method"]):
        with contextlib.suppress(ConfigError):
            yield dataclasses.replace(base, head=head, mode=mode, method=method)


def read_shared(folder: Path) -> tuple[str, tuple[str, ...]]:
    """The path of a sweep's cache, and the words that name it on a command line.

    Raises ConfigError if they are missing.
    """
    file = folder / SHARED
    found = read_object(file)
    with content_of(file):
        return str(found.get("cache") or ""), tuple(map(str, found["words"]))


def _refuse_untrainable(
    table: FeatureTable, trials: Sequence[Trial], base: RunConfig, on: torch.device, backend: str
) -> None:
    """Raises an error of the first trial's kind, with all reasons, if no trial can be planned."""
    met: list[ConfigError | BackendUnavailable] = []
    for trial in trials:
        try:
            plan_trial(trial, base, table, on, backend)
            return
        except (ConfigError, BackendUnavailable) as error:
            met.append(error)
    if met:
        kind = BackendUnavailable if isinstance(met[0], BackendUnavailable) else ConfigError
        raise kind(f"no trial can be trained: {reasons(map(str, met))}")
