"""Hundreds of trials on one cache: batches of lanes that train side by side, cut at rungs."""

import time
from collections.abc import Sequence
from dataclasses import replace

from pipeline.federation.cuda_graph import capture_rounds
from pipeline.federation.evaluate import mean
from pipeline.federation.joint import join_plans, join_progress, split_progress
from pipeline.federation.local import Engine
from pipeline.federation.plan import rounds_of, steps_a_round
from pipeline.federation.training import Progress, begin, pick_plan_backend, train
from pipeline.machine import threads
from pipeline.runs.checkpoint import from_tensors, to_tensors
from pipeline.runs.folder import read_adapters, write_adapters
from pipeline.runs.outcomes import outcomes
from pipeline.settings import RunConfig
from pipeline.sweeps.context import (
    Floor,
    Running,
    Stopped,
    chunks_of,
    end_trial,
    foresee,
    planned,
    show_progress,
)
from pipeline.sweeps.halving import rungs, survivors
from pipeline.sweeps.search import Search
from pipeline.sweeps.spec import SweepSpec, batch_size, rank_of, ranks_by_loss
from pipeline.sweeps.trials import Trial, configuration_id


def train_all(search: Search, spec: SweepSpec, base: RunConfig, floor: Floor, batch: int) -> None:
    """Trains what the search asks for until it asks for nothing more, and reports the ends to it.

    Every trial becomes one line of trials.jsonl as it ends. Raises Stopped between two rounds.
    """
    while asked := search.ask(batch):
        before = dict(floor.folder.records)
        _train(asked, spec, base, floor)
        search.tell([r for i, r in floor.folder.records.items() if before.get(i) is not r])


def _train(asked: Sequence[Trial], spec: SweepSpec, base: RunConfig, floor: Floor) -> None:
    live, broken = planned(asked, base, floor)
    for trial, why in broken:
        end_trial(floor, trial, "failed", error=why)
    rounds = live[0].config.rounds if live else base.rounds  # with halving they all agree
    marks = rungs(rounds, spec.halving) if spec.halving else ()
    foresee(live, spec, rounds, floor)
    reached = 0
    for mark in (*marks, None):
        chunks = chunks_of(live, floor)
        for chunk in chunks:
            advance_to(chunk, mark, floor)
            for each in chunk:
                if each.died:
                    end_running(floor, each, "diverged", each.died)
                elif mark is None:
                    end_running(floor, each, "done")
            floor.folder.sync()
            if mark is not None and len(chunks) > 1:
                _park(chunk, floor)
        live = [each for each in live if not each.died]
        if mark is None:
            return
        live = _cut(live, reached, mark, spec, floor, by_loss=ranks_by_loss(spec, base))
        floor.folder.sync()
        reached = mark


def advance_to(chunk: list[Running], mark: int | None, floor: Floor) -> None:
    """Trains a chunk up to `mark` rounds, or to its end; what diverges leaves it at once."""
    going = list(chunk)
    while going:
        plans = [each.plan for each in going]
        joint, owners = join_plans(plans)
        backend = pick_plan_backend(joint, floor.backend, floor.device)
        graph = capture_rounds(joint, floor.cached, backend)
        named = floor.table.identity.get("model")
        engine = Engine(joint, floor.cached, backend, model=named, graph=graph)
        last = rounds_of(going[0].config)
        rounds = min(mark or last, last)
        with threads(floor.device, joint.work.kind.width, backend):
            # No name here holds where they begin: 1.4 MB a lane at width 512 for all the rounds.
            progress = _rounds(engine, _joined(going, owners, floor), rounds, going, floor)
        for each, own in zip(going, split_progress(progress, plans, owners), strict=True):
            each.progress = replace(own, diverged={})
            each.died = next(iter(own.diverged.values()), None)
            each.val = None if each.died else _mean_of(own, "val_accuracy")
            each.loss = None if each.died else _mean_of(own, "val_loss")
            if not each.plan.models:
                each.val = _zero_shot_val(outcomes(engine._replace(plan=each.plan), own))
        if not any(each.died for each in going):
            return
        going = [each for each in going if not each.died]
        del engine, graph  # and the graph's memory, before the next one takes as much


def _joined(going: list[Running], owners: Sequence[tuple[int, int]], floor: Floor) -> Progress:
    """The joint progress of trials, which then have none of their own."""
    joint = join_progress([_progress(each, floor) for each in going], owners)
    for each in going:
        each.progress = None
    return joint


def _park(chunk: list[Running], floor: Floor) -> None:
    """Writes to disk what waits for the next segment while other chunks use the memory."""
    folder = floor.folder.folder / "parked"
    folder.mkdir(exist_ok=True)  # emptied by the next start: nothing in it need last
    for each in chunk:
        if not each.died and each.plan.models:  # zero-shot has nothing to put there
            each.parked = folder / f"{each.trial.id}.safetensors"
            write_adapters(each.parked, *to_tensors(each.plan, each.progress), lasting=False)
            each.progress = None


def _progress(each: Running, floor: Floor) -> Progress:
    if each.progress is not None:
        return each.progress
    first = begin(each.plan, floor.cached)
    if each.parked is None:
        return first
    tensors, facts = read_adapters(each.parked)
    each.parked.unlink()
    each.parked = None
    return from_tensors(each.plan, tensors, facts, first)


def _rounds(
    engine: Engine, progress: Progress, mark: int, going: list[Running], floor: Floor
) -> Progress:
    if not engine.plan.lanes:
        return replace(progress, rounds_done=mark)  # zero-shot trains nothing
    steps = sum(steps_a_round(lane) for lane in engine.plan.lanes)
    rounds = train(engine, progress, mark)
    _stop_if_asked(progress, mark, floor)
    started = time.perf_counter()
    for progress, _ in rounds:
        spent = time.perf_counter() - started
        for each in going:
            each.seconds += spent * len(each.plan.lanes) / len(engine.plan.lanes)
        first, floor.steps = not floor.steps, floor.steps + steps
        show_progress(floor, progress.rounds_done, rounds_of(going[0].config))
        floor.bar.started(steps) if first else floor.bar.update(steps)
        _stop_if_asked(progress, mark, floor)
        started = time.perf_counter()
    return progress


def _stop_if_asked(progress: Progress, mark: int, floor: Floor) -> None:
    """Raises Stopped where rounds are left, after a signal or when the budget is used up."""
    left = progress.rounds_done < mark and not progress.diverged
    if left and (floor.stop or time.monotonic() > floor.deadline):
        raise Stopped


def _cut(
    live: list[Running], reached: int, mark: int, spec: SweepSpec, floor: Floor, *, by_loss: bool
) -> list[Running]:
    """The best 1/eta of the configurations that entered this segment; the others end as pruned.

    A sweep that was killed has some ends on record already: those of this segment are compared
    again, and where a later one is on record this cut was made, so all who live survived it.
    Only trials that were asked for together are compared: bayes asks many times. A configuration
    of which no seed could be planned never entered.
    """
    if not live:
        return live
    together = batch_size(spec) * len(spec.seeds)
    batch = live[0].trial.number // together
    alive = {each.trial.id for each in live}
    others = [
        each
        for each in floor.folder.records.values()
        if each.id not in alive and each.number // together == batch
    ]
    if any(each.status == "done" or each.rounds > mark for each in others):
        return live
    began = {configuration_id(each.settings) for each in others if each.status != "failed"}
    began |= {configuration_id(each.trial.settings) for each in live}
    here = [each for each in others if each.rounds > reached or (not reached and not each.rounds)]
    here = [each for each in here if configuration_id(each.settings) in began]
    scores = {e.id: rank_of(e, by_loss) if e.status == "pruned" else None for e in here}
    scores |= {each.trial.id: -each.loss if by_loss and each.loss is not None
               else None if by_loss else each.val for each in live}  # fmt: skip
    trials = [Trial(e.number, e.settings, e.seed, e.id) for e in here]
    trials = sorted([*trials, *(each.trial for each in live)], key=lambda trial: trial.number)
    going = {trial.id for trial in survivors(trials, scores, spec.halving.eta)}
    for each in live:
        if each.trial.id not in going:
            end_running(floor, each, "pruned")
    return [each for each in live if each.trial.id in going]


def _mean_of(progress: Progress, name: str) -> float | None:
    found = [getattr(chosen, name) for chosen in progress.chosen if chosen]
    return None if None in found else mean(found)


def _zero_shot_val(results: Sequence[dict]) -> float | None:
    """Of zero-shot CLIP over the folds; None where one has no validation rows."""
    found = [result["zero_shot"]["val_accuracy"] for result in results]
    return None if None in found else mean(found)


def end_running(floor: Floor, each: Running, status: str, error: str | None = None) -> None:
    """Records a trial that trained, and what it reached."""
    progress, results = _progress(each, floor), []
    if status != "diverged":
        backend = pick_plan_backend(each.plan, floor.backend, floor.device)
        engine = Engine(each.plan, floor.cached, backend, model=floor.table.identity.get("model"))
        results = outcomes(engine, progress)
    if not each.plan.models:
        each.val = _zero_shot_val(results)
    end_trial(
        floor, each.trial, status, rounds=progress.rounds_done, results=results,
        val_accuracy=each.val, val_loss=each.loss, seconds=each.seconds, error=error,
    )  # fmt: skip
    each.progress = None
