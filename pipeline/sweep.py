"""Hundreds of trials on one cache: batches of lanes that train side by side, cut at rungs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from cache.table import FeatureTable
from kernels.heads import size
from pipeline.captured import capture_rounds
from pipeline.checkpoint import from_tensors, to_tensors
from pipeline.config import ConfigError, RunConfig
from pipeline.evaluate import Cached, mean
from pipeline.halving import rungs, survivors, trial_rounds
from pipeline.joint import common_key, join_plans, join_progress, split_progress
from pipeline.lanes import Plan, build_plan, steps_a_round
from pipeline.outcomes import outcomes
from pipeline.process import threads
from pipeline.rounds import Engine
from pipeline.run_folder import read_adapters, write_adapters
from pipeline.search import Search
from pipeline.sweep_spec import SweepSpec, batch_size, config_of
from pipeline.training import Progress, advance, begin, pick_plan_backend
from pipeline.trials import Record, SweepFolder, Trial, record

LANES = 96
"""Lanes side by side on a CPU: enough for threads to share, few enough that trials end one by one.
More gain nothing there; on a GPU memory alone is the limit."""


class Stopped(Exception):
    """The budget is used up or a signal came; the trials that ended are written."""


@dataclass
class Running:
    """A trial that trains: its config, its own plan, and how far it is between two rungs."""

    trial: Trial
    config: RunConfig
    plan: Plan
    progress: Progress | None = None  # None: not begun, in a joint one, or parked
    parked: Path | None = None
    seconds: float = 0.0
    val: float | None = None
    died: str | None = None  # why it diverged


@dataclass
class Floor:
    """Where trials train: what they share, what limits them, and who is told."""

    table: FeatureTable
    cached: Cached
    device: torch.device
    backend: str
    folder: SweepFolder
    memory: int
    deadline: float
    stop: list[int]
    bar: tqdm
    steps: int = field(default=0)  # lane-steps made


def train_all(search: Search, spec: SweepSpec, base: RunConfig, floor: Floor, batch: int) -> None:
    """Trains what the search asks for until it asks for nothing more, and tells it the ends.

    Every trial becomes one line of trials.jsonl as it ends. Raises Stopped between two rounds.
    """
    while asked := search.ask(batch):
        before = dict(floor.folder.records)
        _train(asked, spec, base, floor)
        search.tell([r for i, r in floor.folder.records.items() if before.get(i) is not r])


def lane_bytes(plan: Plan, device: torch.device) -> int:
    """Memory that a trial takes while it trains, over its lanes, servers and models."""
    lanes, servers, models = len(plan.lanes), len(plan.servers), len(plan.models)
    # A lane: where it starts and where it is; on a GPU Adam's two moments beside them. A server:
    # before and after its round. A model: the best so far.
    rows = lanes * (2 if device.type == "cpu" else 4) + 2 * servers + models
    return 4 * size(plan.work.kind) * max(rows, 1)


def _train(asked: Sequence[Trial], spec: SweepSpec, base: RunConfig, floor: Floor) -> None:
    live = []
    for trial in asked:
        try:
            config = config_of(trial, base)
            live.append(Running(trial, config, build_plan(floor.table, config)))
        except ConfigError as error:  # this trial cannot be; its neighbours can
            _end(floor, trial, "failed", error=str(error))
    rounds = live[0].config.rounds if live else base.rounds  # with halving they all agree
    marks = rungs(rounds, spec.halving) if spec.halving else ()
    _foresee(live, spec, rounds, floor)
    reached = 0
    for mark in (*marks, None):
        chunks = _chunks(live, floor)
        for chunk in chunks:
            _advance_to(chunk, mark, floor)
            for each in chunk:
                if each.died:
                    _end_running(floor, each, "diverged", each.died)
                elif mark is None:
                    _end_running(floor, each, "done")
            if mark is not None and len(chunks) > 1:
                _park(chunk, floor)
        live = [each for each in live if not each.died]
        if mark is None:
            return
        live = _cut(live, reached, mark, spec, floor)
        reached = mark


def _foresee(live: list[Running], spec: SweepSpec, rounds: int, floor: Floor) -> None:
    """Tells the bar how many lane-steps there will be, that it can tell the time left."""
    steps = [sum(map(steps_a_round, e.plan.lanes)) * e.config.rounds for e in live]
    share = 1.0
    if spec.halving and live:
        seeds = len(spec.seeds)
        planned = trial_rounds(len(live) // seeds * seeds, seeds, rounds, spec.halving)
        share = planned / max(1, len(live) * rounds)
    floor.bar.total = floor.steps + int(share * sum(steps))
    floor.bar.refresh()


def _chunks(live: Sequence[Running], floor: Floor) -> list[list[Running]]:
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


def _advance_to(chunk: list[Running], mark: int | None, floor: Floor) -> None:
    """Trains a chunk up to `mark` rounds, or to its end; what diverges leaves it at once."""
    going = list(chunk)
    while going:
        plans = [each.plan for each in going]
        joint, owners = join_plans(plans)
        backend = pick_plan_backend(joint, floor.backend, floor.device)
        graph = capture_rounds(joint, floor.cached, backend)
        named = floor.table.identity.get("model")
        engine = Engine(joint, floor.cached, backend, model=named, graph=graph)
        first = [_progress(each, floor) for each in going]
        progress = join_progress(first, owners)
        for each in going:
            each.progress = None  # its memory is the joint one's now
        rounds = mark or going[0].config.rounds
        with threads(floor.device, joint.work.kind.width, backend):
            progress = _rounds(engine, progress, rounds, going, floor)
        for each, own in zip(going, split_progress(progress, plans, owners), strict=True):
            each.progress = replace(own, diverged={})
            each.died = next(iter(own.diverged.values()), None)
            each.val = None if each.died else _val(own)
        if not any(each.died for each in going):
            return
        going = [each for each in going if not each.died]


def _park(chunk: list[Running], floor: Floor) -> None:
    """Puts on disk what waits for the next segment while other chunks have the memory."""
    folder = floor.folder.folder / "parked"
    folder.mkdir(exist_ok=True)
    for each in chunk:
        if not each.died:
            each.parked = folder / f"{each.trial.id}.safetensors"
            write_adapters(each.parked, *to_tensors(each.plan, each.progress))
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
    steps = sum(steps_a_round(lane) for lane in engine.plan.lanes)
    while progress.rounds_done < mark and not progress.diverged:
        if not engine.plan.lanes:
            return replace(progress, rounds_done=mark)  # zero-shot trains nothing
        if floor.stop or time.monotonic() > floor.deadline:
            raise Stopped
        started = time.perf_counter()
        progress, _ = advance(engine, progress)
        spent = time.perf_counter() - started
        for each in going:
            each.seconds += spent * len(each.plan.lanes) / len(engine.plan.lanes)
        floor.steps += steps
        floor.bar.update(steps)
    return progress


def _cut(
    live: list[Running], reached: int, mark: int, spec: SweepSpec, floor: Floor
) -> list[Running]:
    """The best 1/eta of the configurations that entered this segment; the others end as pruned.

    A sweep that was killed has some ends on record already: those of this segment are compared
    again, and where a later one is on record this cut was made, so all who live survived it.
    Only trials that were asked for together are compared: bayes asks many times.
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
    here = [each for each in others if each.rounds > reached or (not reached and not each.rounds)]
    scores = {e.id: e.val_accuracy if e.status == "pruned" else None for e in here}
    scores |= {each.trial.id: each.val for each in live}
    trials = [Trial(e.number, e.settings, e.seed, e.id) for e in here]
    trials = sorted([*trials, *(each.trial for each in live)], key=lambda trial: trial.number)
    going = {trial.id for trial in survivors(trials, scores, spec.halving.eta)}
    for each in live:
        if each.trial.id not in going:
            _end_running(floor, each, "pruned")
    return [each for each in live if each.trial.id in going]


def _val(progress: Progress) -> float | None:
    return mean([chosen.val_accuracy for chosen in progress.chosen if chosen])


def _end_running(floor: Floor, each: Running, status: str, error: str | None = None) -> None:
    progress, results = _progress(each, floor), []
    if status != "diverged":
        backend = pick_plan_backend(each.plan, floor.backend, floor.device)
        engine = Engine(each.plan, floor.cached, backend, model=floor.table.identity.get("model"))
        results = outcomes(engine, progress)
    if each.config.method == "zero-shot":
        each.val = mean([result["zero_shot"]["val_accuracy"] for result in results])
    _end(
        floor, each.trial, status, rounds=progress.rounds_done, results=results,
        val_accuracy=each.val, seconds=each.seconds, error=error,
    )  # fmt: skip
    each.progress = None


def _end(floor: Floor, trial: Trial, status: str, **facts) -> None:
    blank = {"rounds": 0, "results": [], "val_accuracy": None, "seconds": 0.0}
    ended: Record = record(trial, status=status, **{**blank, **facts})
    floor.folder.add(ended)
    floor.bar.set_postfix_str(f"{len(floor.folder.records)} trials ended", refresh=False)
