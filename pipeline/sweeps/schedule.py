"""Which trials of a sweep train how far, and what becomes a line of trials.jsonl when."""

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
    """The budget is used up or a signal came; finished trials are saved."""


@dataclass
class Floor:
    """A sweep while it trains: what its trials are of, where they end, what limits it."""

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
    first: float | None = None  # when the first of them had been made
    most: int | None = None  # trials in all, where that is known


def train_all(search: Search, floor: Floor) -> None:
    """Trains what the search asks for until it asks for nothing more, and reports the ends to it.

    Every trial becomes one line of trials.jsonl as it ends. Raises Stopped between two rounds.
    """
    while asked := search.ask(batch_size(floor.spec)):
        before = dict(floor.folder.records)
        _train(asked, floor)
        search.tell([r for i, r in floor.folder.records.items() if before.get(i) is not r])


def _train(asked: Sequence[Trial], floor: Floor) -> None:
    live = []
    for trial in asked:
        try:
            live.append(plan_trial(trial, floor.base, floor.table, floor.device, floor.backend))
        except (ConfigError, BackendUnavailable) as error:
            _end(floor, record(trial, status="failed", error=str(error)))
    spec = floor.spec
    rounds = live[0].config.rounds if live else floor.base.rounds  # with halving they all agree
    _foresee(live, rounds, floor)
    reached = 0
    for mark in rungs(rounds, spec.halving) if spec.halving else ():
        waiting = _record(floor.pool.train(live, mark), floor)
        live = [each for each in live if each.trial.id in waiting]
        going = _cut(waiting.values(), reached, mark, floor)
        _record(floor.pool.finish([each for each in live if each.trial.id not in going]), floor)
        live = [each for each in live if each.trial.id in going]
        reached = mark
    _record(floor.pool.train(live, None), floor)


def _foresee(live: Sequence[Running], rounds: int, floor: Floor) -> None:
    """Sets the number of lane-steps to come, from which the bar estimates the time left."""
    steps = [sum(map(steps_a_round, e.plan.lanes)) * rounds_of(e.config) for e in live]
    share, spec = 1.0, floor.spec
    if spec.halving and live:
        seeds = len(spec.seeds)
        planned = trial_rounds(len(live) // seeds * seeds, seeds, rounds, spec.halving)
        share = planned / max(1, len(live) * rounds)
    floor.bar.total = floor.steps + int(share * sum(steps))
    floor.bar.refresh()


def _record(events: Iterable[Event], floor: Floor) -> dict[str, Record]:
    """Records every trial that ends; returns those that wait for their next rung, by id.

    Before a batch goes on to its first round, what ended before it is on the disk.
    Raises Stopped where rounds are left, after a signal or when the budget is used up.
    """
    waiting: dict[str, Record] = {}
    fresh = False
    for event in events:
        if isinstance(event, Record):
            if event.status == REACHED:
                waiting[event.id] = event
            else:
                _end(floor, event)
                fresh = True
            continue
        if fresh:
            floor.folder.sync()
            fresh = False
        if event.made:
            floor.steps += event.made
            _show(floor, event.round, event.rounds)
            if floor.first is None:
                floor.first = time.monotonic()
                floor.bar.started(event.made)
            else:
                floor.bar.update(event.made)
        if event.left and (floor.stop or time.monotonic() > floor.deadline):
            raise Stopped
    floor.folder.sync()
    return waiting


def _cut(live: Iterable[Record], reached: int, mark: int, floor: Floor) -> set[str]:
    """Which trials are of the best 1/eta of the configurations that entered this segment, by id.

    A sweep that was killed has some ends on record already: those of this segment are compared
    again, and where a later one is on record this cut was made, so all who live survived it.
    Only trials that were asked for together are compared: bayes asks many times. A configuration
    of which no seed could be planned never entered.
    """
    alive = {each.id: each for each in live}
    if not alive:
        return set()
    spec = floor.spec
    by_loss, together = ranks_by_loss(spec, floor.base), batch_size(spec) * len(spec.seeds)
    batch = next(iter(alive.values())).number // together
    others = [
        each
        for each in floor.folder.records.values()
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
    trials = [Trial(e.number, e.settings, e.seed, e.id) for e in [*here, *alive.values()]]
    trials.sort(key=lambda trial: trial.number)
    return {trial.id for trial in survivors(trials, scores, spec.halving.eta)} & alive.keys()


def _end(floor: Floor, ended: Record) -> None:
    floor.folder.add(ended)
    LOG.debug("trial %s: %s after %d rounds", ended.id, ended.status, ended.rounds)
    _show(floor)


def _show(floor: Floor, round: int = 0, rounds: int = 0) -> None:
    """What the bar says: trials that ended, the round of those that train, the best so far."""
    records = floor.folder.records.values()
    ended = f"{len(records)} of {floor.most}" if floor.most else f"{len(records)}"
    known = [each.val_accuracy for each in records
             if each.status == "done" and each.val_accuracy is not None]  # fmt: skip
    said = [f"{ended} trials", *([f"round {round} of {rounds}"] if rounds else [])]
    said += [f"best validation {100 * max(known):.2f} %"] if known else []
    floor.bar.set_description_str(", ".join(said), refresh=False)
