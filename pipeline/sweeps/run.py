"""A sweep from its spec to its report: opens the folder, trains what is missing, reports."""

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from cache.table import FeatureTable
from kernels.backends import BackendUnavailable, pick_backend, pick_device
from pipeline.errors import ConfigError, Interrupted
from pipeline.federation.training import to_device
from pipeline.json_files import replace_file
from pipeline.machine import free_memory
from pipeline.plain_files import OBJECT, read_plain
from pipeline.progress import progress_bar
from pipeline.runs.federate import cache_facts
from pipeline.settings import RunConfig, as_json, run_id
from pipeline.settings_used import length_warning, possible, unused
from pipeline.signals import noted_signals
from pipeline.sweeps.best import check_selection, sweep_report
from pipeline.sweeps.claims import Claims, joined
from pipeline.sweeps.context import Floor, Stopped, plan_trial
from pipeline.sweeps.folder import SweepFolder, open_sweep
from pipeline.sweeps.search import Search, check_search, open_search, reasons
from pipeline.sweeps.share import train_shared
from pipeline.sweeps.space import ends_of
from pipeline.sweeps.spec import SweepSpec, batch_size, describe
from pipeline.sweeps.sweep_result import SweepResult
from pipeline.sweeps.train import train_all
from pipeline.sweeps.trials import Record, Trial

LOG = logging.getLogger(__name__)
SHARED = "shared.json"


@dataclass(frozen=True)
class Shared:
    """What who joins a sweep needs beside its spec.json.

    cache    where the first member found the cache;  words  that name it on a command line
    backend  that trains: the spec may say auto, and another machine's auto may be another
    """

    cache: str
    words: tuple[str, ...]
    backend: str


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
) -> SweepResult:
    """Trains the trials of a spec as lanes side by side and returns what `sweep --json` prints.

    A trial that is listed in trials.jsonl in `out`, or in runs/sweep-<id>, is not trained again, so
    a killed sweep resumes where it was. The same spec gives the same results however trials are
    batched: what a lane computes does not depend on its neighbours. Without halving, other
    processes can help meanwhile: pipeline.sweeps.join.join.

    base     settings that are not swept; its held_out is every trial's
    memory   bytes for trials that train at the same time; None: half of what is free (GPU: 0.8)
    budget   seconds after which no further round is started
    select   "validation", or "oracle", which uses test accuracy
    cache    words of a command line that name the cache, for the command that is shown

    A trial whose settings conflict or do not fit the rows is recorded as failed with the reason.

    Raises ConfigError, CacheError, BackendUnavailable, before a folder is made where no trial can
    be trained; Interrupted after SIGINT or SIGTERM.
    """
    check_selection(select)
    on = pick_device(device)
    trains = pick_backend(backend, on)  # refuses a wrong name before anything is trained
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
    with open_sweep(folder, described, force=force) as opened, joined(folder) as claims:
        _write_shared(folder, Shared(str(Path(table.source).resolve()), tuple(cache), trains))
        # Beside spec.json: by what is chosen decides no trial, and may be another next time.
        replace_file(folder / "selection.json", json.dumps({"select": select}).encode())
        told = train_and_tell(
            table, spec, base, opened, claims, open_search(spec, base, folder, opened.records),
            on=on, backend=backend, memory=memory, budget=budget, select=select, cache=cache,
            again={i: r for i, r in opened.records.items() if r.status == "failed"},
        )  # fmt: skip
        return SweepResult(told)


def train_and_tell(
    table: FeatureTable,
    spec: SweepSpec,
    base: RunConfig,
    opened: SweepFolder,
    claims: Claims,
    search: Search,
    *,
    on: torch.device,
    backend: str,
    memory: int | None,
    budget: float,
    select: str,
    cache: Sequence[str],
    again: dict[str, Record],
) -> dict[str, Any]:
    """Trains until every trial has ended, here or elsewhere, and returns the report; see sweep.

    again  failed trials that are tried again
    """
    started = time.monotonic()
    state, folder = search.state(), opened.folder
    LOG.info(
        "%s: %d trials, %d of them finished, with %d training(s) each, on %s; results in %s",
        table.source, state.most, len(opened.records), len(base.held_out), on.type, folder,
    )  # fmt: skip
    left_over = None
    with (
        noted_signals() as stop,
        progress_bar(total=0, unit="lane-step", unit_scale=True, smoothing=0.1) as bar,
    ):
        floor = Floor(
            table, to_device(table, on), on, backend, opened,
            free_memory(on) if memory is None else memory, started + budget, stop, bar,
        )  # fmt: skip
        try:
            if spec.halving:
                train_all(search, spec, base, floor, batch_size(spec))
            else:
                train_shared(search, spec, base, floor, batch_size(spec), claims, again)
        except Stopped:
            left_over = search.state().most - len(opened.records)
        opened.sync()
    spent = time.monotonic() - started
    if left_over:
        left = f"{left_over} trials are left; run the same command to resume"
        if stop:
            raise Interrupted(f"stopped; finished trials are saved in {folder}. {left}", stop[0])
        LOG.warning("the budget is used up: %s", left)
    else:
        opened.gather()
        claims.clear()
        failed = [each.error or "" for each in opened.records.values() if each.status == "failed"]
        if failed and len(failed) == len(opened.records):
            raise ConfigError(f"{folder}: no trial could be trained: {reasons(failed)}")
    report = sweep_report(opened.records.values(), base, cache, select=select)
    speed = floor.steps / spent if spent else 0.0
    return {
        **report,
        "sweep": str(folder),
        "lane_steps": floor.steps,
        "lane_steps_a_second": speed,
        "wall_seconds": spent,
    }


def _heads(base: RunConfig, trials: dict[str, Any]) -> Iterator[RunConfig]:
    """The base with each head, mode and method that is tried, as far as they go together."""
    for head, mode, method in itertools.product(trials["head"], trials["mode"], trials["method"]):
        with contextlib.suppress(ConfigError):
            yield dataclasses.replace(base, head=head, mode=mode, method=method)


def read_shared(folder: Path) -> Shared:
    """What the first member left for those who join; raises ConfigError when it is missing."""
    file = folder / SHARED
    try:
        found = json.loads(read_plain(file, OBJECT))
        words = tuple(map(str, found["words"]))
        return Shared(str(found["cache"]), words, str(found["backend"]))
    except (ConfigError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{file}: does not name the sweep's cache ({error!r}); run the sweep's own command "
            "again before joining it"
        ) from error


def _refuse_untrainable(
    table: FeatureTable, trials: Sequence[Trial], base: RunConfig, on: torch.device, backend: str
) -> None:
    """Raises what the first trial meets, with all reasons, where no trial can be planned."""
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


def _write_shared(folder: Path, shared: Shared) -> None:
    content = json.dumps(dataclasses.asdict(shared), indent=2) + "\n"
    replace_file(folder / SHARED, content.encode())
