"""Where trials of a sweep train: what they share, which of them side by side, how they end."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cache.table import FeatureTable
from kernels.backends import BackendUnavailable
from kernels.heads.plain import size
from pipeline.errors import ConfigError
from pipeline.federation.closed_form import Known, with_closed_form
from pipeline.federation.evaluate import Cached
from pipeline.federation.joint import common_key
from pipeline.federation.plan import Plan, build_plan, rounds_of, steps_a_round
from pipeline.federation.training import Progress, pick_plan_backend
from pipeline.progress import Bar
from pipeline.settings import RunConfig
from pipeline.sweeps.folder import SweepFolder
from pipeline.sweeps.halving import trial_rounds
from pipeline.sweeps.spec import SweepSpec, config_of
from pipeline.sweeps.trials import Record, Trial, record

LOG = logging.getLogger(__name__)
LANES = 96
"""Lanes side by side on a CPU: enough for threads to share, few enough that trials end one by one.
More gain nothing there; on a GPU memory alone is the limit."""


class Stopped(Exception):
    """The budget is used up or a signal came; finished trials are saved."""


@dataclass
class Running:
    """A trial that trains: its config, its own plan, and its progress between two rungs."""

    trial: Trial
    config: RunConfig
    plan: Plan
    progress: Progress | None = None  # None: not begun, in a joint one, or parked
    parked: Path | None = None
    seconds: float = 0.0
    val: float | None = None
    loss: float | None = None
    died: str | None = None  # why it diverged


@dataclass
class Floor:
    """Where trials train: what they share, what limits them, and where progress is shown."""

    table: FeatureTable
    cached: Cached
    device: torch.device
    backend: str
    folder: SweepFolder
    memory: int
    deadline: float
    stop: list[int]
    bar: Bar
    steps: int = field(default=0)  # lane-steps made
    most: int | None = None  # trials in all, where that is known
    known: Known = field(default_factory=dict)  # closed-form heads that trials share


def planned(
    asked: Sequence[Trial], base: RunConfig, floor: Floor
) -> tuple[list[Running], list[tuple[Trial, str]]]:
    """The trials with their plans, and those that cannot be trained, with the reason."""
    live, broken = [], []
    for trial in asked:
        try:
            each = plan_trial(trial, base, floor.table, floor.device, floor.backend)
            started = time.perf_counter()
            each.plan = with_closed_form(each.plan, floor.cached, floor.known)
            each.seconds += time.perf_counter() - started
            live.append(each)
        except (ConfigError, BackendUnavailable) as error:
            broken.append((trial, str(error)))
    return live, broken


def plan_trial(
    trial: Trial, base: RunConfig, table: FeatureTable, device: torch.device, backend: str
) -> Running:
    """The trial with its plan.

    Raises ConfigError for settings that conflict or do not fit the rows, BackendUnavailable for a
    plan that the named backend cannot train.
    """
    config = config_of(trial, base)
    plan = build_plan(table, config)
    clients = [client for fold in plan.folds for client in fold.clients]
    if plan.method.learns and clients and not any(len(client.val) for client in clients):
        raise ConfigError(
            f"{table.source}: trials are compared on validation rows, but no client has any; train "
            "single runs with federate --choose last"
        )
    pick_plan_backend(plan, backend, device)
    return Running(trial, config, plan)


def foresee(live: list[Running], spec: SweepSpec, rounds: int, floor: Floor) -> None:
    """Sets the number of lane-steps to come, from which the bar estimates the time left."""
    steps = [sum(map(steps_a_round, e.plan.lanes)) * rounds_of(e.config) for e in live]
    share = 1.0
    if spec.halving and live:
        seeds = len(spec.seeds)
        planned = trial_rounds(len(live) // seeds * seeds, seeds, rounds, spec.halving)
        share = planned / max(1, len(live) * rounds)
    floor.bar.total = floor.steps + int(share * sum(steps))
    floor.bar.refresh()


def chunks_of(live: Sequence[Running], floor: Floor) -> list[list[Running]]:
    """Trials that train side by side: alike in shape, and together within the memory."""
    groups: dict[tuple, list[Running]] = {}
    for each in live:
        groups.setdefault((common_key(each.plan), each.config.rounds), []).append(each)
    most = LANES if floor.device.type == "cpu" else 1 << 30
    chunks = []
    for group in groups.values():
        lanes = room = 0
        for each in group:
            lanes, room = lanes + len(each.plan.lanes), room + lane_bytes(each.plan, floor.device)
            if not lanes - len(each.plan.lanes) or lanes > most or room > floor.memory:
                chunks.append([])
                lanes, room = len(each.plan.lanes), lane_bytes(each.plan, floor.device)
            chunks[-1].append(each)
    return chunks


def lane_bytes(plan: Plan, device: torch.device) -> int:
    """Memory that a trial takes while it trains, over its lanes, servers and models."""
    lanes, servers, models = len(plan.lanes), len(plan.servers), len(plan.models)
    # A lane: where it starts and where it is; on a GPU Adam's two moments beside them. A server:
    # before and after its round. A model: the best so far.
    rows = lanes * (2 if device.type == "cpu" else 4) + 2 * servers + models
    return 4 * size(plan.work.kind) * max(rows, 1)


def end_trial(floor: Floor, trial: Trial, status: str, **facts) -> None:
    """Records a trial; facts that are not given are those of one that never started."""
    blank = {"rounds": 0, "results": [], "val_accuracy": None, "seconds": 0.0}
    ended: Record = record(trial, status=status, **{**blank, **facts})
    floor.folder.add(ended)
    LOG.debug("trial %s: %s after %d rounds", trial.id, status, ended.rounds)
    show_progress(floor)


def show_progress(floor: Floor, round: int = 0, rounds: int = 0) -> None:
    """What the bar says: trials that ended, the round of those that train, the best so far."""
    records = floor.folder.records.values()
    ended = f"{len(records)} of {floor.most}" if floor.most else f"{len(records)}"
    known = [each.val_accuracy for each in records
             if each.status == "done" and each.val_accuracy is not None]  # fmt: skip
    said = [f"{ended} trials", *([f"round {round} of {rounds}"] if rounds else [])]
    said += [f"best validation {100 * max(known):.2f} %"] if known else []
    floor.bar.set_description_str(", ".join(said), refresh=False)
