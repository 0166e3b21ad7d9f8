"""Stage two: federated rounds on cached features, from a cache file to results."""

import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from cache.checksums import load_features
from cache.table import FeatureTable
from kernels.adapter import AdapterState
from kernels.backends import pick_backend, pick_device
from pipeline.config import RunConfig, as_json, run_id
from pipeline.evaluate import (
    Cached,
    gate_figures,
    mean,
    score,
    summarise,
    zero_shot_accuracy,
    zero_shot_top1,
)
from pipeline.lanes import Orders, Plan, build_plan, seeded_order
from pipeline.report import FoldRound, RoundReport, held_out_name, mean_results
from pipeline.rounds import Engine, first_state, run_round
from pipeline.run_folder import RunFolder, open_run

WIDE = 512
"""Below this width a step on the CPU is too short to share between threads: at 128 two threads took
11 s for the built-in job and one 12 s, but with another busy program beside them 320 s."""


class Interrupted(Exception):
    """A signal asked a run to stop; what it had trained is written."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass(frozen=True)
class Chosen:
    """The round of one fold that is kept so far: the earliest of those best on validation."""

    round: int
    val_accuracy: float
    test_accuracy: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """A run between two rounds; adapters are one a server."""

    rounds_done: int
    last: AdapterState
    best: AdapterState
    chosen: tuple[Chosen | None, ...]


def federate(
    table: FeatureTable,
    config: RunConfig,
    *,
    runs: Path,
    out: Path | None = None,
    device: str = "auto",
    backend: str = "auto",
    first_adapter: AdapterState | None = None,
    orders: Orders = seeded_order,
    force: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> dict:
    """Trains what `config` says on a table and returns the object `federate --json` prints.

    Every fold of config.held_out trains at the same time. The run's files go to `out`, or to
    runs/<run_id>; a finished run there is returned as it is, an unfinished one goes on from its
    last round and ends with the bytes of an undisturbed one.

    first_adapter  where training starts; None for PyTorch's default start from config.seed
    orders         the order of rows; another than the seeded one is for replaying recorded runs
    say            gets sentences for people

    Raises ConfigError, CacheError, BackendUnavailable; Interrupted after SIGINT or SIGTERM.
    """
    started = time.perf_counter()
    on = pick_device(device)
    backend = pick_backend(backend, on)
    plan = build_plan(table, [config])
    described = describe(table, config, on, backend, first_adapter)
    with open_run(out or runs / run_id(described)) as folder:
        folder.describe(described, force=force)
        if folder.summary is not None:
            say(f"{folder.folder} is done; these are its results (--force trains it again)")
            return folder.summary
        cached = to_device(table, on)
        engine = Engine(plan, cached, backend, orders)
        loaded = time.perf_counter()
        progress = _start(
            folder, plan, first_state(plan, table.features.shape[1], first_adapter, on), say
        )
        say(_opening(table, plan, on, backend, folder.folder))
        with _signals() as stop, _threads(on, table.features.shape[1]):
            progress = _train(folder, engine, config, progress, stop)
        trained = time.perf_counter()
        results = _results(engine, progress)
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
    first_adapter: AdapterState | None,
) -> dict:
    """All that decides a run's numbers, as config.json has it; its hash is the run_id."""
    start = None
    if first_adapter is not None:
        weights = b"".join(w.cpu().numpy().astype("<f4").tobytes() for w in first_adapter)
        start = hashlib.sha256(weights).hexdigest()
    return {
        "settings": as_json(config),
        "cache": _cache_facts(table),
        "backend": backend,
        "device": device.type,
        "first_adapter_sha256": start,
    }


def to_device(table: FeatureTable, device: torch.device) -> Cached:
    """The table's numbers as tensors: features float32 with their checksums looked at."""
    return Cached(
        features=torch.from_numpy(load_features(table)).to(device),
        labels=torch.from_numpy(table.labels).to(device),
        unit_text=normalize(torch.from_numpy(table.text_features).to(device), dim=1),
        logit_scale=table.logit_scale,
    )


def _start(
    folder: RunFolder, plan: Plan, first: AdapterState, say: Callable[[str], None]
) -> Progress:
    found = folder.resume()
    if found is None:
        return Progress(0, first, first, (None,) * len(plan.folds))
    states, facts = found
    device = first.w1.device
    last, best = (AdapterState(*(w.to(device) for w in states[n])) for n in ("last", "best"))
    chosen = tuple(Chosen(**each) if each else None for each in facts["chosen"])
    say(f"{folder.folder}: going on after round {facts['rounds_done'] - 1}")
    return Progress(facts["rounds_done"], last, best, chosen)


def _train(
    folder: RunFolder, engine: Engine, config: RunConfig, progress: Progress, stop: list[int]
) -> Progress:
    if not engine.plan.lanes:
        return progress
    rounds = range(progress.rounds_done, config.rounds)
    bar = tqdm(rounds, initial=progress.rounds_done, total=config.rounds, unit="round", leave=False)
    for round in bar:
        progress, report = advance(engine, config, progress, round)
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


def advance(
    engine: Engine, config: RunConfig, progress: Progress, round: int
) -> tuple[Progress, RoundReport]:
    """One round, scored: validation always, test when a fold's validation got strictly better."""
    plan, cached, backend = engine.plan, engine.cached, engine.backend
    last, losses = run_round(progress.last, engine, round)
    val = score(plan, last, cached, "val", backend)
    better = [
        chosen is None or mean(list(v.values())) > chosen.val_accuracy
        for chosen, v in zip(progress.chosen, val, strict=True)
    ]
    every = config.eval == "every"
    tested = [f for f, yes in enumerate(better) if yes or every]
    test = score(plan, last, cached, "test", backend, folds=tested)
    train = score(plan, last, cached, "train", backend, folds=tested if every else [])
    chosen = tuple(
        Chosen(round, mean(list(val[f].values())), test[f]) if better[f] else progress.chosen[f]
        for f in range(len(plan.folds))
    )
    taken = torch.tensor([better[server.fold] for server in plan.servers])
    best = AdapterState(*(_take(taken, a, b) for a, b in zip(last, progress.best, strict=True)))
    folds = tuple(
        FoldRound(
            held_out_name(fold.held_out),
            losses[f],
            val[f],
            better[f],
            test[f] or None,
            train[f] or None,
        )
        for f, fold in enumerate(plan.folds)
    )
    return Progress(round + 1, last, best, chosen), RoundReport(round, folds)


def _take(which: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    if not which.any():
        return old
    return torch.where(which.to(new.device).view(-1, *(1,) * (new.ndim - 1)), new, old)


def _results(engine: Engine, progress: Progress) -> list[dict]:
    plan, cached = engine.plan, engine.cached
    answers = zero_shot_top1(cached)
    right = (answers == cached.labels).cpu().numpy()
    results = []
    for f, fold in enumerate(plan.folds):
        zero_shot = zero_shot_accuracy(fold, right)
        chosen = progress.chosen[f]
        per_domain = chosen.test_accuracy if chosen else zero_shot
        gate = None
        if fold.servers:
            gate = gate_figures(plan, fold, progress.best, cached, answers, engine.backend)
        results.append(
            {
                "held_out": held_out_name(fold.held_out),
                "best_round": chosen.round if chosen else None,
                "val_accuracy": chosen.val_accuracy if chosen else None,
                "zero_shot": {
                    **summarise(zero_shot, fold.held_out),
                    "per_domain": zero_shot,
                    "val_accuracy": mean(
                        [float(right[c.val].mean()) for c in fold.clients if len(c.val)]
                    ),
                },
                **summarise(per_domain, fold.held_out),
                "per_domain": per_domain,
                "gate": gate._asdict() if gate else None,
            }
        )
    return results


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
    if not engine.plan.servers:
        return
    facts = {
        "rounds_done": progress.rounds_done,
        "chosen": [asdict(chosen) if chosen else None for chosen in progress.chosen],
        "adapters": [
            {
                "held_out": held_out_name(engine.plan.folds[server.fold].held_out),
                "clients": [engine.plan.folds[server.fold].clients[k].name for k in server.clients],
            }
            for server in engine.plan.servers
        ],
        "belongs_to": json.loads((folder.folder / "config.json").read_text("utf-8")),
    }
    folder.checkpoint({"best": progress.best, "last": progress.last}, facts, now=now)


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
