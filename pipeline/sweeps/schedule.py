"""Schedules a sweep's trials between rungs, and records those that end."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from cache.table import FeatureTable
from kernels.backends import BackendUnavailable
from pipeline.errors import ConfigError
from pipeline.federation.plan import rounds_of, steps_a_round
from pipeline.progress import Bar
from pipeline.settings import RunConfig
from pipeline.sweeps.context import Event, Pool, Running, plan_trial
from pipeline.sweeps.halving import rungs, survivors, trial_rounds
from pipeline.sweeps.search import Search
from pipeline.sweeps.spec import SweepSpec, batch_size, rank_of, ranks_by_loss
from pipeline.sweeps.trials import REACHED, Record, SweepFolder, Trial, configuration_id, record

LOG = logging.getLogger(__name__)


class Stopped(Exception):
    """The budget is exhausted or a signal came; finished trials are saved."""


@dataclass
class TrainingContext:
    """A sweep while it trains: its cache and settings, its files, and its limits."""

    table: FeatureTable
    spec: SweepSpec
    base: RunConfig
    device: torch.device
    backend: str
    folder: SweepFolder
    pool: Pool
    deadline: float
    stop: list[int]
    bar: Bar
    steps: int = 0  # lane-steps made
    first: float | None = None  # when the first of them were finished
    most: int | None = None  # trials in all, if known


def train_all(search: Search, context: TrainingContext) -> None:
    """Trains what the search asks for until it asks for nothing more, and reports results to it.

    Every trial becomes one line of trials.jsonl when it ends. Raises Stopped between two rounds.
    """
    while asked := search.ask(batch_size(context.spec)):
        before = dict(context.folder.records)
        _train(asked, context)
        search.tell([r for i, r in context.folder.records.items() if before.get(i) is not r])


def _train(asked: Sequence[Trial], context: TrainingContext) -> None:
    live = []
    for trial in asked:
        try:
            live.append(
                plan_trial(trial, context.base, context.table, context.device, context.backend)
            )
        except (ConfigError, BackendUnavailable) as error:
            _end(context, record(trial, status="failed", error=str(error)))
    spec = context.spec
    rounds = live[0].config.rounds if live else context.base.rounds  # with halving they all agree
    _foresee(live, rounds, context)
    reached = 0
    for mark in rungs(rounds, spec.halving) if spec.halving else ():
        waiting = _record(context.pool.train(live, mark), context)
        live = [each for each in live if each.trial.id in waiting]
        going = _cut(waiting.values(), reached, mark, context)
        _record(context.pool.finish([each for each in live if each.trial.id not in going]), context)
        live = [each for each in live if each.trial.id in going]
        reached = mark
    _record(context.pool.train(live, None), context)


def _foresee(live: Sequence[Running], rounds: int, context: TrainingContext) -> None:
    """Sets the expected lane-steps, from which the bar estimates the time left."""
    steps = [sum(map(steps_a_round, e.plan.lanes)) * rounds_of(e.config) for e in live]
    share, spec = 1.0, context.spec
    if spec.halving and live:
        seeds = len(spec.seeds)
        planned = trial_rounds(len(live) // seeds * seeds, seeds, rounds, spec.halving)
        share = planned / max(1, len(live) * rounds)
    context.bar.total = context.steps + int(share * sum(steps))
    context.bar.refresh()


def _record(events: Iterable[Event], context: TrainingContext) -> dict[str, Record]:
    """Records every trial that ends; returns those that wait for their next rung, by id.

    Trials that ended are on the disk before the next batch starts. Raises Stopped if rounds are
    left after a signal or at the end of the budget.
    """
    waiting: dict[str, Record] = {}
    fresh = False
    for event in events:
        if isinstance(event, Record):
            if event.status == REACHED:
                waiting[event.id] = event
            else:
                _end(context, event)
                fresh = True
            continue
        if fresh:
            context.folder.sync()
            fresh = False
        if event.made:
            context.steps += event.made
            _show(context, event.round, event.rounds)
            if context.first is None:
                context.first = time.monotonic()
                context.bar.started(event.made)
            else:
                context.bar.update(event.made)
        if event.left and (context.stop or time.monotonic() > context.deadline):
            raise Stopped
    context.folder.sync()
    return waiting


def _cut(live: Iterable[Record], reached: int, mark: int, context: TrainingContext) -> set[str]:
    """The ids of trials in the best 1/eta of the configurations that entered this segment.

    A killed sweep has already recorded some ends: those of this segment are compared again; if a
    later one is recorded, this cut was made, and all remaining trials survived it. Only trials that
    were asked for together are compared: bayes asks many times. A configuration without a plannable
    seed never entered.
    """
    alive = {each.id: each for each in live}
    if not alive:
        return set()
    spec = context.spec
    by_loss, together = ranks_by_loss(spec, context.base), batch_size(spec) * len(spec.seeds)
    batch = next(iter(alive.values())).number // together
    others = [
        each
        for each in context.folder.records.values()
        if each.id not in alive and each.number // together == batch
    ]
    if any(each.status == "done" or each.rounds > mark for each in others):
        return set(alive)
    began = {configuration_id(each.settings) for each in others if each.status != "failed"}
    began |= {configuration_id(each.settings) for each in alive.values()}
    here = [each for each in others if each.rounds > reached or (not reached and not each.rounds)]
    here = [each for each in here if configuration_id(each.settings) in began]
    scores = {e.id: rank_of(e, by_loss) if e.status == "pruned" else None for e in here}
    scores |= {each.id: rank_of(each, by_loss) for each in alive.values()}
    entered = sorted([*here, *alive.values()], key=lambda each: each.number)
    return {each.id for each in survivors(entered, scores, spec.halving.eta)} & alive.keys()


def _end(context: TrainingContext, ended: Record) -> None:
    context.folder.add(ended)
    LOG.debug("trial %s: %s after %d rounds", ended.id, ended.status, ended.rounds)
    _show(context)


def _show(context: TrainingContext, round: int = 0, rounds: int = 0) -> None:
    """Updates the bar's text: trials that ended, the current round, the best so far."""
    records = context.folder.records.values()
    ended = f"{len(records)} of {context.most}" if context.most else f"{len(records)}"
    known = [each.val_accuracy for each in records
             if each.status == "done" and each.val_accuracy is not None]  # fmt: skip
    said = [f"{ended} trials", *([f"round {round} of {rounds}"] if rounds else [])]
    said += [f"best validation {100 * max(known):.2f} %"] if known else []
    context.bar.set_description_str(", ".join(said), refresh=False)
