"""A long-lived worker of a sweep: opens the cache once, then trains batches assigned to it."""

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch

from cache.store import read_table
from cache.table import CacheError, FeatureTable
from kernels.backends import pick_backend, pick_device
from pipeline.federation.training import Progress
from pipeline.machine import free_memory
from pipeline.settings import RunConfig
from pipeline.sweeps.context import Event, Running, plan_trial
from pipeline.sweeps.curves import ByRound
from pipeline.sweeps.train import Trainer
from pipeline.sweeps.trials import REACHED, Record, Trial

DECIDE = ("torch", "numpy", "numba")  # packages whose versions may change results
SPEAK = 0.5  # seconds between two messages of a worker: each costs Ray about a millisecond
BLOCK = 64 << 20  # bytes of features that travel as one object


class Job(NamedTuple):
    """A sweep's facts that every worker gets once."""

    base: RunConfig
    device: str
    backend: str
    file: str
    content_sha256: str


class Dealt(NamedTuple):
    """A trial of a batch, and its state at its last rung; see Running."""

    trial: Trial
    seconds: float
    val: float | None
    loss: float | None


class Between(NamedTuple):
    """A trial between two rungs: its progress, `packed`, and its figures by round."""

    progress: Any
    by_round: ByRound


class Facts(NamedTuple):
    """A worker's backend, package versions, free memory and process id."""

    backend: str
    versions: tuple[str, ...]
    memory: int
    process: int


class Worker:
    """Trains on the one device of its process.

    A trial's state is None at the start, and Between two rungs; meanwhile it is in Ray's object
    store, on the node that made it.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._table: FeatureTable | None = None
        self._trainer: Trainer | None = None

    def open(self) -> bool:
        """Reads the cache from its path; returns False if it is missing here or has other
        content."""
        try:
            table = read_table(self._job.file)
        except (CacheError, OSError):
            return False
        if table.content_sha256 != self._job.content_sha256:
            return False
        self._load(table)
        return True

    def receive(self, table: FeatureTable, *blocks: np.ndarray) -> bool:
        """Takes the cache in the blocks of `pieces_of`, and verifies its checksums."""
        self._load(dataclasses.replace(table, features=np.concatenate(blocks)))
        return True

    def facts(self) -> Facts:
        """The worker's facts, once it has the cache."""
        device = pick_device(self._job.device)
        versions = tuple(f"{name} {version(name)}" for name in DECIDE)
        backend = pick_backend(self._job.backend, device)
        return Facts(backend, versions, free_memory(device), os.getpid())

    def train(
        self, mark: int | None, batch: Sequence[Dealt], *states: Between | None
    ) -> Iterator[list[Event] | Between]:
        """Yields lists of Trainer.train's events; after a list that ends with REACHED, the
        state."""
        live = {
            dealt.trial.id: self._running(dealt, state)
            for dealt, state in zip(batch, states, strict=True)
        }
        assert self._trainer is not None
        events: list[Event] = []
        spoke = time.monotonic()
        for event in self._trainer.train(list(live.values()), mark):
            events.append(event)
            reached = isinstance(event, Record) and event.status == REACHED
            if reached or time.monotonic() - spoke > SPEAK:
                yield events
                events, spoke = [], time.monotonic()
            if reached:
                each = live.pop(event.id)
                yield Between(packed(each.progress), each.by_round)
        yield events

    def finish(
        self, _: int | None, batch: Sequence[Dealt], *states: Between | None
    ) -> Iterator[list[Event]]:
        """Yields the records of trials that are cut at their states."""
        assert self._trainer is not None
        for dealt, state in zip(batch, states, strict=True):
            yield [self._trainer.end(self._running(dealt, state), "pruned")]

    def _running(self, dealt: Dealt, state: Between | None) -> Running:
        assert self._table is not None and self._trainer is not None
        job, device = self._job, self._trainer.device
        each = plan_trial(dealt.trial, job.base, self._table, device, job.backend)
        each.seconds, each.val, each.loss = dealt.seconds, dealt.val, dealt.loss
        if state is not None:
            each.progress, each.by_round = unpacked(state.progress, device), dict(state.by_round)
        return each

    def _load(self, table: FeatureTable) -> None:
        self._table = table
        self._trainer = Trainer(table, pick_device(self._job.device), self._job.backend)


def pieces_of(table: FeatureTable) -> Iterator[Any]:
    """Yields the table without its features, then these in blocks of about BLOCK bytes."""
    rows = max(1, BLOCK // table.features[0].nbytes)
    yield dataclasses.replace(table, features=table.features[:0])
    for start in range(0, len(table.features), rows):
        yield np.array(table.features[start : start + rows])


def packed(progress: Progress | None) -> Any:
    """The progress with numpy arrays in place of tensors, as it travels between machines."""
    assert progress is not None
    state = {name: value.cpu().numpy() for name, value in progress.state.items()}
    return dataclasses.replace(progress, state=state, best=progress.best.cpu().numpy())


def unpacked(progress: Any, device: torch.device) -> Progress:
    """The inverse of packed, in its own memory: arrays of the object store are read-only."""
    state = {
        name: torch.tensor(value, device="cpu" if name == "steps" else device)
        for name, value in progress.state.items()
    }
    best = torch.tensor(progress.best, device=device)
    return dataclasses.replace(progress, state=state, best=best)
