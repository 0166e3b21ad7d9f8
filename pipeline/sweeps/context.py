"""Running trials: their plans, batches that train side by side, and the pools that train them."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from cache.table import FeatureTable
from kernels.heads.plain import size
from pipeline.errors import ConfigError
from pipeline.federation.joint import common_key
from pipeline.federation.plan import Plan, build_plan
from pipeline.federation.training import Progress, pick_plan_backend
from pipeline.settings import RunConfig
from pipeline.sweeps.curves import ByRound
from pipeline.sweeps.spec import config_of
from pipeline.sweeps.trials import Record, Trial

LANES = 96
"""Most lanes side by side on a CPU: enough to occupy all threads, few enough that trials end one by
one. More are not faster; on a GPU only memory limits them."""


@dataclass
class Running:
    """A running trial: its config, its own plan, and its progress between two rungs."""

    trial: Trial
    config: RunConfig
    plan: Plan
    progress: Progress | None = None  # None: not begun, part of a joint one, parked, or elsewhere
    parked: Path | None = None
    seconds: float = 0.0
    val: float | None = None
    loss: float | None = None
    by_round: ByRound = field(default_factory=dict)
    died: str | None = None  # why it diverged


class Steps(NamedTuple):
    """Lane-steps made since the last event; `left` if rounds are left.

    round, rounds  the current round, and how many there are
    """

    made: int
    left: bool = True
    round: int = 0
    rounds: int = 0


Event = Steps | Record
"""A trial that ended or waits for its next rung (status REACHED), or progress on the way."""


class Pool(Protocol):
    """Trains trials: one device of this process, or many workers. Calls do not overlap."""

    def train(self, live: Sequence[Running], mark: int | None) -> Iterator[Event]:
        """Trains every trial up to `mark` rounds, or to its end; yields a Record each, in any
        order."""

    def finish(self, gone: Sequence[Running]) -> Iterator[Event]:
        """Yields the records, with status pruned, of trials that are cut where `train` left
        them."""


class Opener(Protocol):
    """Opens a sweep's pool."""

    @property
    def device(self) -> torch.device:
        """The device that trains; this process need not have one."""

    def __call__(
        self, table: FeatureTable, base: RunConfig, backend: str, memory: int | None, folder: Path
    ) -> AbstractContextManager[Pool]:
        """Opens the pool; memory: bytes for trials side by side, None: as much as is free."""


def plan_trial(
    trial: Trial, base: RunConfig, table: FeatureTable, device: torch.device, backend: str
) -> Running:
    """Plans a trial.

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


def groups_of(live: Iterable[Running]) -> list[deque[Running]]:
    """Groups trials that can train side by side."""
    groups: dict[tuple, deque[Running]] = {}
    for each in live:
        groups.setdefault((common_key(each.plan), each.config.rounds), deque()).append(each)
    return list(groups.values())


def next_batch(group: deque[Running], device: torch.device, memory: int) -> list[Running]:
    """Takes from a group the trials that fit in the memory side by side, at least one."""
    most = LANES if device.type == "cpu" else 1 << 30
    batch: list[Running] = []
    lanes = room = 0
    while group:
        lanes += len(group[0].plan.lanes)
        room += lane_bytes(group[0].plan, device)
        if batch and (lanes > most or room > memory):
            break
        batch.append(group.popleft())
    return batch


def lane_bytes(plan: Plan, device: torch.device) -> int:
    """Bytes that a trial takes while it trains, over its lanes, servers and models."""
    lanes, servers, models = len(plan.lanes), len(plan.servers), len(plan.models)
    # A lane: where it starts and where it is; on a GPU Adam's two moments beside them. A server:
    # before and after its round. A model: the best so far.
    rows = lanes * (2 if device.type == "cpu" else 4) + 2 * servers + models
    return 4 * size(plan.work.kind) * max(rows, 1)
