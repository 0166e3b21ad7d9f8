"""Stage two: federated rounds on cached features, from a cache file to results."""

import hashlib
import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from cache.table import FeatureTable
from kernels.backends import pick_device
from pipeline.encoder.towers import towers_fact
from pipeline.errors import ConfigError, Interrupted
from pipeline.federation.cuda_graph import capture_rounds
from pipeline.federation.evaluate import mean
from pipeline.federation.local import Engine
from pipeline.federation.methods.privacy import epsilon, not_covered
from pipeline.federation.methods.rules import trimmed_of
from pipeline.federation.plan import Orders, Plan, build_plan, seeded_order
from pipeline.federation.record import RoundReport
from pipeline.federation.training import Progress, advance, begin, pick_plan_backend, to_device
from pipeline.json_files import read_object
from pipeline.machine import threads
from pipeline.progress import progress_bar
from pipeline.runs.advice import said_of_worse
from pipeline.runs.checkpoint import from_tensors, to_tensors
from pipeline.runs.folder import RunFolder, open_run
from pipeline.runs.notes import row_notes
from pipeline.runs.outcomes import outcomes
from pipeline.runs.results import mean_results, round_line
from pipeline.settings import RunConfig, as_json, run_id
from pipeline.settings_used import length_warning, possible, unused
from pipeline.signals import noted_signals

DELTA = 1e-5  # at which epsilon is told
ENCODED_BY = ("templates", "weights_sha256", "preprocessing")
"""Of a cache's identity: what turns another image and class name into such features."""


def federate(
    table: FeatureTable,
    config: RunConfig,
    *,
    runs: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    device: str = "auto",
    backend: str = "auto",
    first_adapter: torch.Tensor | None = None,
    orders: Orders = seeded_order,
    file: str | PathLike[str] | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Trains what `config` says on a table and returns the object `federate --json` prints.

    Every fold of config.held_out trains at the same time. The run's files go to `out`, or to
    runs/<run_id>; a finished run there is returned as it is, an unfinished one goes on from its
    last round and ends with the bytes of an undisturbed one.

    first_adapter  (P,) where training starts (kernels/heads/plain.py); None: the config's own start
    orders         the order of rows; another than the seeded one is for replaying recorded runs
    file           where the table lies, for the report to find it again
    say            gets sentences for people

    Raises ConfigError, CacheError, BackendUnavailable; Interrupted after SIGINT or SIGTERM.
    """
    started = time.perf_counter()
    on = pick_device(device)
    plan = build_plan(table, config)
    backend = pick_plan_backend(plan, backend, on)
    if first_adapter is not None and not first_adapter.isfinite().all():
        raise ConfigError("the adapter to start from holds numbers that are not finite")
    described = describe(table, config, on, backend, first_adapter)
    with open_run(Path(out or Path(runs, run_id(described)))) as folder:
        folder.describe(described, force=force)
        if folder.summary is not None:
            say(f"{folder.folder} is done; these are its results (--force trains it again)")
            return folder.summary
        cached = to_device(table, on)
        graph = capture_rounds(plan, cached, backend)
        engine = Engine(plan, cached, backend, orders, table.identity.get("model"), graph)
        loaded = time.perf_counter()
        progress = _start(folder, plan, begin(plan, cached, first_adapter), say)
        say(_opening(table, plan, on, backend, folder.folder))
        _say_what_is_doubtful(table, plan, say)
        for note in unused(possible(config), table):
            say(note)
        if first_adapter is not None and config.start != RunConfig.start:
            say("start has no effect with --init-adapter, which says where training starts")
        if short := length_warning(table, config):
            say(short)
        with noted_signals() as stop, threads(on, table.features.shape[1], backend):
            progress = _train(folder, engine, config, progress, stop, say)
        trained = time.perf_counter()
        results = outcomes(engine, progress)
        for changed in [result["val_changed"] for result in results if result["val_changed"]]:
            changed["start"] = changed["start"] if first_adapter is None else None
        _say_what_got_worse(results, config, say)
        document = {
            "cache": {
                **cache_facts(table),
                **({"file": str(Path(file).resolve())} if file else {}),
            },
            "config": {**as_json(config), "backend": backend, "device": on.type},
            "results": results,
            "mean": mean_results(results),
            "privacy": privacy(config, say),
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


def privacy(config: RunConfig, say: Callable[[str], None]) -> dict[str, Any] | None:
    """What central DP guarantees; None without noise. epsilon None: no accountant is installed."""
    if not config.noise:
        return None
    found = None
    try:
        found = epsilon(config.noise, config.client_fraction, config.rounds, DELTA)
        say(
            f"central DP: epsilon {found:.2f} at delta {DELTA:g} after {config.rounds} rounds; "
            f"{not_covered(config.choose)}"
        )
    except ConfigError as error:
        say(str(error))
    return {
        "epsilon": found,
        "delta": DELTA,
        "covers": "updates",
        "note": not_covered(config.choose),
    }


def describe(
    table: FeatureTable,
    config: RunConfig,
    device: torch.device,
    backend: str,
    first_adapter: torch.Tensor | None,
) -> dict[str, Any]:
    """All that decides a run's numbers, as config.json has it; its hash is the run_id."""
    start = None
    if first_adapter is not None:
        numbers = first_adapter.cpu().numpy().astype("<f4")
        start = hashlib.sha256(numbers.tobytes()).hexdigest()
    return {
        "settings": as_json(config),
        "cache": cache_facts(table),
        "backend": backend,
        "device": device.type,
        "first_adapter_sha256": start,
    }


def _start(folder: RunFolder, plan: Plan, first: Progress, say: Callable[[str], None]) -> Progress:
    found = folder.resume()
    for note in folder.notes:
        say(note)
    if found is None:
        return first
    tensors, facts = found
    say(f"{folder.folder}: going on after round {facts['rounds_done'] - 1}")
    return from_tensors(plan, tensors, facts, first)


def _train(
    folder: RunFolder, engine: Engine, config: RunConfig, progress: Progress, stop: list[int],
    say: Callable[[str], None],
) -> Progress:  # fmt: skip
    if not engine.plan.lanes:
        return progress
    rounds = range(progress.rounds_done, config.rounds)
    bar = progress_bar(
        iterable=rounds, initial=progress.rounds_done, total=config.rounds, unit="round"
    )
    told: set[tuple[str | None, str]] = set()
    for round in bar:
        progress, report = advance(engine, progress)
        _say_who_is_left_out(report, told, say)
        for why in progress.diverged.values():
            bar.close()
            raise ConfigError(why)
        folder.add_round(round_line(report))
        stopping = bool(stop)  # read once: a signal during the saving waits for the next round
        _save(folder, engine, progress, now=stopping)
        known = [kept.val_accuracy for kept in progress.chosen if kept]
        best = mean([each for each in known if each is not None])
        bar.set_postfix(val="-" if best is None else f"{best:.4f}", refresh=False)
        if stopping and progress.rounds_done < config.rounds:
            bar.close()
            raise Interrupted(
                f"stopped after round {round} of {config.rounds}; {folder.folder} holds it "
                "all, the same command goes on from there",
                stop[0],
            )
    return progress


def _say_who_is_left_out(
    report: RoundReport, told: set[tuple[str | None, str]], say: Callable[[str], None]
) -> None:
    """The first time of each client of each fold; rounds.jsonl has every time."""
    for fold in report.folds:
        for name, why in fold.rejected.items():
            if (fold.held_out, name) not in told:
                told.add((fold.held_out, name))
                say(
                    f"round {report.round}, held out {fold.held_out or 'nothing'}: client {name} "
                    f"is left out: {why}; later rounds in rounds.jsonl, as `rejected`"
                )


def _say_what_is_doubtful(table: FeatureTable, plan: Plan, say: Callable[[str], None]) -> None:
    for note in row_notes(table, plan):
        say(note)
    least = min((len(fold.clients) for fold in plan.folds), default=0)
    config = plan.folds[0].config
    byzantine = config.byzantine
    if plan.method == "trimmed-mean" and not trimmed_of(least, config.trim):
        say(
            f"trimmed-mean with trim {config.trim:g} cuts none of {least} clients: it is the plain "
            f"mean; a trim of {1 / max(least, 1):.3g} or more cuts one at each end of 3 or more"
        )
    if plan.method == "krum" and config.keep > least:
        say(f"krum: keep {config.keep} of {least} clients keeps all of them: it is their mean")
    if plan.method == "krum" and least < 2 * byzantine + 3:
        say(
            f"krum is proven for {2 * byzantine + 3} clients or more when {byzantine} may lie; "
            f"here are {least}. It picks the client with the nearest neighbour"
        )


def _say_what_got_worse(
    results: list[dict[str, Any]], config: RunConfig, say: Callable[[str], None]
) -> None:
    for result in results:
        if why := said_of_worse(result["held_out"] or "nothing", result, vars(config)):
            say(why)


def _save(folder: RunFolder, engine: Engine, progress: Progress, *, now: bool) -> None:
    if not engine.plan.models or not (now or folder.due()):
        return
    tensors, facts = to_tensors(engine.plan, progress)
    facts["belongs_to"] = read_object(folder.folder / "config.json")
    folder.checkpoint(tensors, facts)


def cache_facts(table: FeatureTable) -> dict[str, Any]:
    """What config.json and results say of a cache."""
    return {
        "rows": len(table.labels),
        "width": table.features.shape[1],
        "classes": len(table.class_names),
        "domains": list(table.domain_names),
        "dataset": table.identity.get("dataset"),
        "model": table.identity.get("model"),
        "fingerprint": table.fingerprint,
        "content_sha256": table.content_sha256,
        "encoder": {
            "class_names": list(table.class_names),
            **{name: table.identity.get(name) for name in ENCODED_BY},
            **towers_fact(table.identity.get("architecture")),
        },
    }


def _opening(table: FeatureTable, plan: Plan, device: torch.device, backend: str, out: Path) -> str:
    return (
        f"{table.source}: {len(table.labels)} rows, width {table.features.shape[1]}, "
        f"{len(table.class_names)} classes; {len(plan.folds)} training(s) with {len(plan.lanes)} "
        f"client(s) in all, on {device.type} ({backend}); results in {out}"
    )
