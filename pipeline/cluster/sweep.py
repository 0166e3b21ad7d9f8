"""Trains a sweep's trials on a Ray cluster: workers may come and go, and each trial ends once."""

import contextlib
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cache.table import FeatureTable
from pipeline.cluster.actor import Dealt, Facts, Job, Worker, pieces_of
from pipeline.cluster.connect import Node, Size, nodes, options, ray, refuse_without_nodes
from pipeline.errors import ConfigError
from pipeline.settings import RunConfig
from pipeline.sweeps.context import Event, Running, Steps, groups_of, next_batch
from pipeline.sweeps.trials import REACHED, Record, record

LOG = logging.getLogger(__name__)
SHARES = 2
"""One of several workers takes at most 1/(SHARES * workers) of the waiting trials, so that batches
get smaller towards the end and the wait for the last one is short."""
TICK = 0.5
"""Seconds within which a signal or the end of the budget is noticed."""
LOOK = 2.0
"""Seconds between two checks for nodes that joined or left."""
LIVES = 3
"""Workers that one trial may lose, and that one node may lose during their start."""


@dataclass(eq=False)
class Hand:
    """The driver's view of a worker.

    waits  the pending answer, or stream of answers; the stages of a start are "open", "receive" and
           "facts"; then work follows
    """

    actor: Any
    node: Node
    waits: Any
    stage: str = "open"
    facts: Facts | None = None
    batch: dict[str, Running] = field(default_factory=dict)
    reached: Record | None = None  # its state is the next answer


class OnRay:
    """Opens a pool of Ray workers; in `connected`."""

    def __init__(self, size: Size, device: str) -> None:
        """device: "auto" is cuda if the workers have GPUs; raises ConfigError without nodes."""
        self._size = size._replace(gpus=0.0) if device == "cpu" and size.gpus is None else size
        cards = any(node.gpus for node in refuse_without_nodes(self._size))
        if device == "cuda" and not cards:
            raise ConfigError(
                f"--device cuda: the workers of --ray-worker {size} have no GPU; pass gpus=1"
            )
        self.device = torch.device("cuda" if cards and device != "cpu" else "cpu")

    @contextlib.contextmanager
    def __call__(
        self, table: FeatureTable, base: RunConfig, backend: str, memory: int | None, folder: Path
    ) -> Iterator["RayPool"]:
        """See Opener; `memory` is each worker's."""
        file = str(Path(table.source).resolve())
        job = Job(base, self.device.type, backend, file, table.content_sha256)
        pool = RayPool(job, self._size, memory, table)
        try:
            yield pool
        finally:
            pool.close()


class RayPool:
    """One long-lived actor for each place on a node; this process assigns batches and collects
    results.

    If a worker is lost only its batch is affected: its trials are assigned again, from their last
    rung if the object store still has it, else from 0, which gives the same bits.
    """

    def __init__(self, job: Job, size: Size, memory: int | None, table: FeatureTable) -> None:
        self._job, self._size, self._memory, self._table = job, size, memory, table
        self._device = torch.device(job.device)
        self._hands: list[Hand] = []
        self._pieces: list[Any] = []  # of the cache, once a worker needs them
        self._states: dict[str, Any] = {}  # by trial: its state at its last rung
        self._homes: dict[str, str] = {}  # by trial: the node that has it
        self._losses: Counter[str] = (
            Counter()
        )  # by trial, and by node for workers that were starting
        self._why = ""  # reason of the last loss
        self._like: Facts | None = None  # all workers' backend and versions
        self._looked = -math.inf
        self._waiting: list[tuple[str | None, deque[Running]]] = []

    def train(self, live: Sequence[Running], mark: int | None) -> Iterator[Event]:
        """See Pool."""
        yield from self._run("train", live, mark)

    def finish(self, gone: Sequence[Running]) -> Iterator[Event]:
        """See Pool."""
        yield from self._run("finish", gone, None)

    def close(self) -> None:
        """Ends the workers."""
        self._end(list(self._hands))

    def _run(self, method: str, live: Sequence[Running], mark: int | None) -> Iterator[Event]:
        self._waiting = [
            (home, part) for group in groups_of(live) for home, part in self._by_home(group).items()
        ]
        try:
            while self._left() or any(hand.batch for hand in self._hands):
                self._hire()
                for hand in self._hands:
                    if hand.stage == "idle" and (batch := self._next(hand)):
                        self._deal(hand, method, mark, batch)
                yield from self._hear()
        finally:
            self._end(
                [hand for hand in self._hands if hand.batch]
            )  # after a stop: they would continue

    def _by_home(self, group: deque[Running]) -> dict[str | None, deque[Running]]:
        found: dict[str | None, deque[Running]] = {}
        for each in group:
            found.setdefault(self._homes.get(each.trial.id), deque()).append(each)
        return found

    def _left(self) -> int:
        return sum(len(group) for _, group in self._waiting)

    def _next(self, hand: Hand) -> list[Running]:
        """A worker's next batch: trials whose states are on its node, else of the longest group."""
        there = [(home, group) for home, group in self._waiting if group]
        if not there or hand.facts is None:
            return []
        near = [group for home, group in there if home in (None, hand.node.id)]
        group = near[0] if near else max((group for _, group in there), key=len)
        most = self._left()
        if len(self._hands) > 1:
            most = math.ceil(most / (SHARES * len(self._hands)))
        batch = next_batch(group, self._device, hand.facts.memory)
        # Trials that lost a worker, perhaps for lack of memory, get smaller batches.
        most = min(most, len(batch) >> max(self._losses[each.trial.id] for each in batch))
        group.extendleft(reversed(batch[max(1, most) :]))
        return batch[: max(1, most)]

    def _deal(self, hand: Hand, method: str, mark: int | None, batch: list[Running]) -> None:
        states = [self._states.get(each.trial.id) for each in batch]
        for each, state in zip(batch, states, strict=True):
            each.seconds = each.seconds if state is not None else 0.0
        dealt = [Dealt(each.trial, each.seconds, each.val, each.loss) for each in batch]
        call = getattr(hand.actor, method).options(num_returns="streaming")
        hand.waits, hand.stage = call.remote(mark, dealt, *states), "work"
        hand.batch = {each.trial.id: each for each in batch}

    def _hear(self) -> Iterator[Event]:
        """Yields the workers' pending events, or an empty one after TICK without any."""
        due = {hand.waits: hand for hand in self._hands if hand.waits is not None}
        if not due:
            time.sleep(TICK)
        ready = ray.wait(list(due), timeout=TICK, fetch_local=False)[0] if due else ()
        for waits in ready:
            hand = due[waits]
            try:
                yield from self._answer(hand) if hand.stage == "work" else self._begin(hand)
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, ray.exceptions.RayError):
                    raise error.cause from error
                yield from self._lose(hand, error)
            except ray.exceptions.RayError as error:
                yield from self._lose(hand, error)
        if not ready:
            yield Steps(0)

    def _answer(self, hand: Hand) -> Iterator[Event]:
        """Handles the next answer of a working hand."""
        answer = next(hand.waits, None)
        if answer is None:
            assert not hand.batch
            hand.stage, hand.waits = "idle", None
        elif hand.reached is not None:
            reached, hand.reached = hand.reached, None
            self._states[reached.id], self._homes[reached.id] = answer, hand.node.id
            each = hand.batch.pop(reached.id)
            each.seconds, each.val = reached.seconds, reached.val_accuracy
            each.loss = reached.val_loss
            yield reached
        else:
            for event in ray.get(answer):
                if isinstance(event, Record) and event.status == REACHED:
                    hand.reached = event
                    continue
                if isinstance(event, Record):
                    hand.batch.pop(event.id)
                    self._states.pop(event.id, None)
                yield event

    def _begin(self, hand: Hand) -> Iterator[Event]:
        """Takes the next step of a starting hand: its cache, then its facts."""
        answer = ray.get(hand.waits)
        if hand.stage == "open" and not answer:
            if not self._pieces:
                LOG.info("%s is not on %s: sending it", self._job.file, hand.node.name)
                self._pieces = [ray.put(piece) for piece in pieces_of(self._table)]
            hand.stage, hand.waits = "receive", hand.actor.receive.remote(*self._pieces)
        elif hand.stage in ("open", "receive"):
            hand.stage, hand.waits = "facts", hand.actor.facts.remote()
        else:
            self._greet(hand, answer)
        yield from ()

    def _greet(self, hand: Hand, facts: Facts) -> None:
        like = self._like = self._like or facts
        if facts[:2] != like[:2]:
            raise ConfigError(
                f"the worker on {hand.node.name} would train with {facts.backend} and "
                f"{', '.join(facts.versions)}, another with {like.backend} and "
                f"{', '.join(like.versions)}: numbers may differ; install the same everywhere"
            )
        share = min(1.0, hand.node.gpus) if hand.node.gpus else 1 / hand.node.workers
        memory = int(facts.memory * share) if self._memory is None else self._memory
        hand.facts = facts._replace(memory=memory)
        hand.stage, hand.waits = "idle", None
        self._losses[hand.node.id] = 0
        ready = sum(each.facts is not None for each in self._hands)
        LOG.info("worker %d is ready: process %d on %s", ready, facts.process, hand.node.name)

    def _hire(self) -> None:
        """Starts a worker for every free place on a node."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        there = nodes(self._size)
        for node in there:
            here = sum(hand.node.id == node.id for hand in self._hands)
            for _ in range(node.workers - here if self._losses[node.id] < LIVES else 0):
                actor = ray.remote(Worker).options(**options(node)).remote(self._job)
                self._hands.append(Hand(actor, node, actor.open.remote()))
        if there and not self._hands:
            raise ConfigError(f"no worker could be started on the Ray cluster: {self._why}")

    def _end(self, hands: Sequence[Hand]) -> None:
        for hand in hands:
            self._hands.remove(hand)
            with contextlib.suppress(Exception):  # it may be gone, and the cluster with it
                ray.kill(hand.actor)

    def _lose(self, hand: Hand, error: Exception) -> Iterator[Event]:
        """Returns a lost worker's batch to the queue; trials that lost LIVES workers fail."""
        self._why = " ".join(str(error).split())[:300]
        self._end([hand])
        if hand.facts is None:
            self._losses[hand.node.id] += 1
        LOG.warning(
            "the worker on %s was lost; training its %d trials again: %s",
            hand.node.name, len(hand.batch), self._why,
        )  # fmt: skip
        lost = isinstance(
            error, ray.exceptions.ActorDiedError | ray.exceptions.ActorUnavailableError
        )
        for id, each in hand.batch.items():
            self._losses[id] += 1
            if not lost:  # its state may be lost: start from 0
                self._states.pop(id, None)
                self._homes.pop(id, None)
            if self._losses[id] >= LIVES:
                why = f"{LIVES} workers were lost while they trained it; the last: {self._why}"
                yield record(each.trial, status="failed", error=why)
        again = [e for id, e in hand.batch.items() if self._losses[id] < LIVES]
        self._waiting += [(None, group) for group in groups_of(again)]
        self._looked = -math.inf
