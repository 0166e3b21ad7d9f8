"""Stage two: federated rounds on cached features, from a cache file to results."""

import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from cache.table import FeatureTable
from kernels.backends import pick_device
from kernels.heads import as_rows, named
from pipeline.config import ConfigError, RunConfig, as_json, run_id
from pipeline.evaluate import mean
from pipeline.lanes import Orders, Plan, build_plan, seeded_order
from pipeline.outcomes import outcomes
from pipeline.report import held_out_name, mean_results
from pipeline.rounds import Engine
from pipeline.run_folder import RunFolder, open_run
from pipeline.state import State, model_rows
from pipeline.training import Chosen, Progress, advance, begin, pick_plan_backend, to_device

WIDE = 512
"""Below this width a step on the CPU is too short to share between threads: at 128 two threads took
11 s for the built-in job and one 12 s, but with another busy program beside them 320 s."""


class Interrupted(Exception):
    """A signal asked a run to stop; what it had trained is written."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def federate(
    table: FeatureTable,
    config: RunConfig,
    *,
    runs: Path,
    out: Path | None = None,
    device: str = "auto",
    backend: str = "auto",
    first_adapter: torch.Tensor | None = None,
    orders: Orders = seeded_order,
    force: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> dict:
    """Trains what `config` says on a table and returns the object `federate --json` prints.

    Every fold of config.held_out trains at the same time. The run's files go to `out`, or to
    runs/<run_id>; a finished run there is returned as it is, an unfinished one goes on from its
    last round and ends with the bytes of an undisturbed one.

    first_adapter  (P,) where training starts (kernels/heads.py); None: the config's own start
    orders         the order of rows; another than the seeded one is for replaying recorded runs
    say            gets sentences for people

    Raises ConfigError, CacheError, BackendUnavailable; Interrupted after SIGINT or SIGTERM.
    """
    started = time.perf_counter()
    on = pick_device(device)
    plan = build_plan(table, [config])
    backend = pick_plan_backend(plan, backend, on)
    described = describe(table, config, on, backend, first_adapter)
    with open_run(out or runs / run_id(described)) as folder:
        folder.describe(described, force=force)
        if folder.summary is not None:
            say(f"{folder.folder} is done; these are its results (--force trains it again)")
            return folder.summary
        cached = to_device(table, on)
        engine = Engine(plan, cached, backend, orders, table.identity.get("model"))
        loaded = time.perf_counter()
        progress = _start(folder, plan, begin(plan, cached, first_adapter), say)
        say(_opening(table, plan, on, backend, folder.folder))
        with _signals() as stop, _threads(on, table.features.shape[1]):
            progress = _train(folder, engine, config, progress, stop)
        trained = time.perf_counter()
        results = outcomes(engine, progress)
        _say_what_got_worse(results, config, say)
        document = {
            "cache": _cache_facts(table),
            "config": {**as_json(config), "backend": backend, "device": on.type},
            "results": results,
            "mean": mean_results(results),
            "run": str(folder.folder),
            "seconds": {
                "load": loaded - started,
                "train": trained - loaded,
                "total": time.perf_counter() - started,
            },
        }
        _save(folder, engine, progress, now=True)
        folder.finish(document)
    return document


def describe(
    table: FeatureTable,
    config: RunConfig,
    device: torch.device,
    backend: str,
    first_adapter: torch.Tensor | None,
) -> dict:
    """All that decides a run's numbers, as config.json has it; its hash is the run_id."""
    start = None
    if first_adapter is not None:
        numbers = first_adapter.cpu().numpy().astype("<f4")
        start = hashlib.sha256(numbers.tobytes()).hexdigest()
    return {
        "settings": as_json(config),
        "cache": _cache_facts(table),
        "backend": backend,
        "device": device.type,
        "first_adapter_sha256": start,
    }


def _start(folder: RunFolder, plan: Plan, first: Progress, say: Callable[[str], None]) -> Progress:
    found = folder.resume()
    if found is None:
        return first
    tensors, facts = found
    device = first.best.device
    state = {
        name: tensors[f"state.{name}"].to(device if name != "steps" else "cpu")
        if f"state.{name}" in tensors
        else as_rows(plan.work.kind, _under(tensors, "last.")).to(device)
        for name in first.state
    }
    best = as_rows(plan.work.kind, _under(tensors, "best.")).to(device)
    chosen = tuple(Chosen(**each) if each else None for each in facts["chosen"])
    say(f"{folder.folder}: going on after round {facts['rounds_done'] - 1}")
    return Progress(facts["rounds_done"], state, best, chosen)


def _under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _train(
    folder: RunFolder, engine: Engine, config: RunConfig, progress: Progress, stop: list[int]
) -> Progress:
    if not engine.plan.lanes:
        return progress
    rounds = range(progress.rounds_done, config.rounds)
    bar = tqdm(rounds, initial=progress.rounds_done, total=config.rounds, unit="round", leave=False)
    for round in bar:
        progress, report = advance(engine, progress)
        for why in progress.diverged.values():
            bar.close()
            raise ConfigError(why)
        folder.add_round(report.to_json())
        stopping = bool(stop)  # read once: a signal during the saving waits for the next round
        _save(folder, engine, progress, now=stopping)
        bar.set_postfix(val=f"{mean([c.val_accuracy for c in progress.chosen]):.4f}", refresh=False)
        if stopping and progress.rounds_done < config.rounds:
            bar.close()
            raise Interrupted(
                f"stopped after round {round} of {config.rounds}; {folder.folder} holds it "
                "all, the same command goes on from there",
                stop[0],
            )
    return progress


def _say_what_got_worse(results: list[dict], config: RunConfig, say: Callable[[str], None]) -> None:
    for result in results:
        reached, start = result["val_accuracy"], result["zero_shot"]["val_accuracy"]
        if reached is not None and reached < start:
            say(
                f"held out {result['held_out'] or 'nothing'}: the best round reaches {reached:.2%} "
                f"on validation, zero-shot CLIP {start:.2%}: training made it worse at lr "
                f"{config.lr:g}. Try a smaller --lr"
            )


def _save(folder: RunFolder, engine: Engine, progress: Progress, *, now: bool) -> None:
    plan, kind = engine.plan, engine.plan.work.kind
    if not plan.models:
        return
    last = model_rows(plan, progress.state)
    tensors = {
        f"{when}.{name}": part
        for when, rows in (("best", progress.best), ("last", last))
        for name, part in named(kind, rows).items()
    }
    # Where the scored adapters are the servers', "last" holds the whole of "server".
    kept = progress.state if last is not progress.state["server"] else _but_server(progress.state)
    tensors |= {f"state.{name}": value for name, value in kept.items()}
    facts = {
        "rounds_done": progress.rounds_done,
        "chosen": [asdict(chosen) if chosen else None for chosen in progress.chosen],
        "adapters": [
            {
                "held_out": held_out_name(plan.folds[model.fold].held_out),
                "clients": [plan.folds[model.fold].clients[k].name for k in model.clients],
            }
            for model in plan.models
        ],
        "belongs_to": json.loads((folder.folder / "config.json").read_text("utf-8")),
    }
    folder.checkpoint(tensors, facts, now=now)


def _but_server(state: State) -> State:
    return {name: value for name, value in state.items() if name != "server"}


def _cache_facts(table: FeatureTable) -> dict:
    return {
        "rows": len(table.labels),
        "width": table.features.shape[1],
        "classes": len(table.class_names),
        "domains": list(table.domain_names),
        "dataset": table.identity.get("dataset"),
        "model": table.identity.get("model"),
        "fingerprint": table.fingerprint,
        "content_sha256": table.content_sha256,
    }


def _opening(table: FeatureTable, plan: Plan, device: torch.device, backend: str, out: Path) -> str:
    return (
        f"{table.source}: {len(table.labels)} rows, width {table.features.shape[1]}, "
        f"{len(table.class_names)} classes; {len(plan.folds)} training(s) with {len(plan.lanes)} "
        f"client(s) in all, on {device.type} ({backend}); results in {out}"
    )


@contextmanager
def _threads(device: torch.device, width: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if device.type == "cpu" and width < WIDE:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM add their number to; a second SIGINT breaks off at once."""
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: object) -> None:
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
