"""Trains batches of trials as lanes side by side on one device that holds the cache."""

import contextlib
import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cache.table import FeatureTable
from kernels.backends import BackendUnavailable, pick_device
from pipeline.errors import ConfigError
from pipeline.federation.closed_form import Known, with_closed_form
from pipeline.federation.cuda_graph import capture_rounds
from pipeline.federation.evaluate import mean_of_all
from pipeline.federation.joint import join_plans, join_progress, split_progress
from pipeline.federation.local import Engine
from pipeline.federation.plan import rounds_of, steps_a_round
from pipeline.federation.training import Progress, begin, pick_plan_backend, to_device, train
from pipeline.machine import free_memory, threads
from pipeline.runs.checkpoint import from_tensors, to_tensors
from pipeline.runs.folder import read_adapters, write_adapters
from pipeline.runs.outcomes import outcomes
from pipeline.settings import RunConfig
from pipeline.sweeps.context import Event, Running, Steps, groups_of, next_batch
from pipeline.sweeps.curves import curves_of, figures_of
from pipeline.sweeps.trials import REACHED, Record, record


class Trainer:
    """One device with the cache on it. A trial's progress is in its Running."""

    def __init__(self, table: FeatureTable, device: torch.device, backend: str) -> None:
        """Loads the features; raises CacheError for damaged ones."""
        self.device = device
        self._cached, self._backend = to_device(table, device), backend
        self._model = table.identity.get("model")
        self._known: Known = {}  # closed-form heads that trials share

    def train(self, batch: Sequence[Running], mark: int | None) -> Iterator[Event]:
        """Trains a group of trials up to `mark` rounds, or to their ends, and yields their records.

        A trial that diverges leaves the batch at once. A trial without the closed-form head that it
        starts from fails.
        """
        going = []
        for each in batch:
            try:
                self._start(each)
                going.append(each)
            except (ConfigError, BackendUnavailable) as error:
                yield record(each.trial, status="failed", error=str(error))
        batch = list(going)
        while going:
            yield from self._advance(going, mark)
            lost = [each for each in going if each.died]
            going = [each for each in going if not each.died] if lost else []
        for each in batch:
            if each.died or mark is None:
                yield self.end(each, "diverged" if each.died else "done")
            else:
                yield _reached(each)

    def end(self, each: Running, status: str) -> Record:
        """The record of a trial that trained, with its results unless it diverged."""
        progress, results = self._progress(each), []
        if status != "diverged":
            backend = pick_plan_backend(each.plan, self._backend, self.device)
            engine = Engine(each.plan, self._cached, backend, model=self._model)
            results = outcomes(engine, progress)
        if not each.plan.models:
            each.val = _zero_shot_val(results)
        each.progress = None
        return record(
            each.trial, status=status, rounds=progress.rounds_done, results=results,
            val_accuracy=each.val, val_loss=each.loss, seconds=each.seconds, error=each.died,
            curves=curves_of(each.by_round, progress.rounds_done),
        )  # fmt: skip

    def restore(self, each: Running, tensors: dict[str, torch.Tensor], facts: dict) -> None:
        """Restores a trial's progress from to_tensors."""
        each.progress = from_tensors(each.plan, tensors, facts, begin(each.plan, self._cached))

    def _start(self, each: Running) -> None:
        started = time.perf_counter()
        each.plan = with_closed_form(each.plan, self._cached, self._known)
        each.seconds += time.perf_counter() - started

    def _advance(self, going: list[Running], mark: int | None) -> Iterator[Event]:
        """Trains until all are at the mark, or one of them diverges."""
        plans = [each.plan for each in going]
        joint, owners = join_plans(plans)
        backend = pick_plan_backend(joint, self._backend, self.device)
        graph = capture_rounds(joint, self._cached, backend)
        engine = Engine(joint, self._cached, backend, model=self._model, graph=graph)
        last = rounds_of(going[0].config)
        rounds = min(mark or last, last)
        # No variable here may keep the first progress alive: 1.4 MB a lane at width 512.
        progress = yield from self._rounds(engine, self._joined(going, owners), rounds, going)
        for each, own in zip(going, split_progress(progress, plans, owners), strict=True):
            each.progress = replace(own, diverged={})
            each.died = next(iter(own.diverged.values()), None)
            each.val = None if each.died else _mean_of(own, "val_accuracy")
            each.loss = None if each.died else _mean_of(own, "val_loss")
            if not each.plan.models:
                each.val = _zero_shot_val(outcomes(engine._replace(plan=each.plan), own))

    def _rounds(
        self, engine: Engine, progress: Progress, mark: int, going: list[Running]
    ) -> Generator[Event, None, Progress]:
        if not engine.plan.lanes:
            return replace(progress, rounds_done=mark)  # zero-shot trains nothing
        steps = sum(steps_a_round(lane) for lane in engine.plan.lanes)
        width, rounds = engine.plan.work.kind.width, train(engine, progress, mark)
        left = progress.rounds_done < mark
        yield Steps(0, left)
        while left:
            started = time.perf_counter()
            with threads(self.device, width, engine.backend):
                progress, report = next(rounds)
            spent = time.perf_counter() - started
            folds = iter(report.folds)
            for each in going:
                each.seconds += spent * len(each.plan.lanes) / len(engine.plan.lanes)
                own = list(itertools.islice(folds, len(each.plan.folds)))
                each.by_round[report.round] = figures_of(own)
            left = progress.rounds_done < mark and not progress.diverged
            yield Steps(steps, left, progress.rounds_done, rounds_of(going[0].config))
        return progress

    def _joined(self, going: list[Running], owners: Sequence[tuple[int, int]]) -> Progress:
        """Joins trials' progress; they then have none of their own."""
        joint = join_progress([self._progress(each) for each in going], owners)
        for each in going:
            each.progress = None
        return joint

    def _progress(self, each: Running) -> Progress:
        if each.progress is None and each.parked is not None:
            self.restore(each, *read_adapters(each.parked))
            each.parked.unlink()
            each.parked = None
        return begin(each.plan, self._cached) if each.progress is None else each.progress


class Local:
    """The pool of one process: one device that trains batch after batch."""

    def __init__(self, trainer: Trainer, memory: int, parked: Path) -> None:
        self._trainer, self._memory, self._parked = trainer, memory, parked

    def train(self, live: Sequence[Running], mark: int | None) -> Iterator[Event]:
        """See Pool. Trials that wait while other batches use the memory are parked on the disk."""
        left = len(live)
        for group in groups_of(live):
            while group:
                batch = next_batch(group, self._trainer.device, self._memory)
                yield from self._trainer.train(batch, mark)
                if mark is not None and len(batch) < left:
                    self._park(batch)

    def finish(self, gone: Sequence[Running]) -> Iterator[Event]:
        """See Pool."""
        for each in gone:
            yield self._trainer.end(each, "pruned")

    def _park(self, batch: Sequence[Running]) -> None:
        self._parked.mkdir(exist_ok=True)  # the next start empties it: nothing need be synced
        for each in batch:
            if each.progress is not None and each.plan.models:  # zero-shot has nothing to park
                each.parked = self._parked / f"{each.trial.id}.safetensors"
                write_adapters(each.parked, *to_tensors(each.plan, each.progress), lasting=False)
                each.progress = None


class Here:
    """Opens a Local pool on a device of this process; raises BackendUnavailable without one."""

    def __init__(self, device: str) -> None:
        self.device = pick_device(device)

    @contextlib.contextmanager
    def __call__(
        self, table: FeatureTable, base: RunConfig, backend: str, memory: int | None, folder: Path
    ) -> Iterator[Local]:
        """See Opener."""
        trainer = Trainer(table, self.device, backend)
        room = free_memory(self.device) if memory is None else memory
        yield Local(trainer, room, folder / "parked")


def _reached(each: Running) -> Record:
    assert each.progress is not None
    return record(
        each.trial, status=REACHED, rounds=each.progress.rounds_done, val_accuracy=each.val,
        val_loss=each.loss, seconds=each.seconds,
    )  # fmt: skip


def _mean_of(progress: Progress, name: str) -> float | None:
    return mean_of_all(getattr(chosen, name) for chosen in progress.chosen if chosen)


def _zero_shot_val(results: Sequence[dict]) -> float | None:
    """Zero-shot CLIP's validation accuracy over the folds; None if one has no validation rows."""
    return mean_of_all(result["zero_shot"]["val_accuracy"] for result in results)
