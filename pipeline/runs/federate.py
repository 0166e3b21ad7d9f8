"""Stage two: federated rounds on cached features, from a cache file to results."""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from cache.table import FeatureTable
from kernels.backends import pick_device
from pipeline.encoder.towers import towers_fact
from pipeline.errors import ConfigError, Interrupted
from pipeline.federation.closed_form import ClosedForm, with_closed_form
from pipeline.federation.cuda_graph import capture_rounds
from pipeline.federation.evaluate import mean
from pipeline.federation.local import Engine
from pipeline.federation.methods import METHODS
from pipeline.federation.methods.privacy import epsilon, not_covered
from pipeline.federation.plan import Orders, Plan, build_plan, rounds_of, seeded_order
from pipeline.federation.record import RoundReport, held_out_name
from pipeline.federation.training import (
    Progress,
    begin,
    pick_plan_backend,
    to_device,
    train,
    with_tested,
)
from pipeline.json_files import read_object
from pipeline.machine import threads
from pipeline.progress import progress_bar
from pipeline.runs.advice import said_of_worse
from pipeline.runs.checkpoint import from_tensors, to_tensors
from pipeline.runs.folder import RunFolder, open_run
from pipeline.runs.labels import label_of, write_label
from pipeline.runs.loggers import figures_of, open_loggers
from pipeline.runs.notes import length_warning, row_notes
from pipeline.runs.outcomes import Tested, outcomes
from pipeline.runs.results import RunResult, mean_results, round_line
from pipeline.settings import RunConfig, as_json, run_id
from pipeline.settings_used import possible, unused
from pipeline.signals import noted_signals
from pipeline.terminal import counted

LOG = logging.getLogger(__name__)
DELTA = 1e-5  # at which epsilon is reported
ENCODED_BY = ("templates", "weights_sha256", "preprocessing")
"""Fields of a cache's identity that determine how other images and class names are encoded."""


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
    answers: dict[int, Tested] | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    log_every: int = 0,
    log_to: Sequence[str] = (),
) -> RunResult:
    """Trains a config on a table and returns the object that `federate --json` prints.

    Every fold of config.held_out trains at the same time. The run's files go to `out`, or to
    runs/<run_id>; a finished run there is returned unchanged, an unfinished one resumes from its
    last checkpoint and produces the bytes of an uninterrupted one.

    first_adapter  (P,) where training starts (kernels/heads/plain.py); None: the config's `start`
    orders         the order of rows; others than the seeded one replay recorded runs
    file           path of the table, which the report records
    answers        filled with the answers of a run trained now on its test rows, by fold
    name, tags     labels of the run (pipeline/runs/labels.py); they do not affect results
    log_every      rounds between two progress lines in the log; 0: none
    log_to         experiment loggers to use (pipeline/runs/loggers.py)

    Raises ConfigError, CacheError, BackendUnavailable; Interrupted after SIGINT or SIGTERM.
    """
    started = time.perf_counter()
    label = label_of(name, tags)
    on = pick_device(device)
    plan = build_plan(table, config)
    backend = pick_plan_backend(plan, backend, on)
    if first_adapter is not None and not first_adapter.isfinite().all():
        raise ConfigError("the adapter to start from contains numbers that are not finite")
    described = describe(table, config, on, backend, first_adapter)
    with open_run(Path(out or Path(runs, run_id(described)))) as folder:
        folder.describe(described, force=force)
        write_label(folder.folder, label)
        if folder.summary is not None:
            LOG.info(
                "%s is already finished; showing its results (--force trains it again)",
                folder.folder,
            )
            return RunResult(folder.summary)
        cached = to_device(table, on, as_stored=not plan.models)
        loaded = time.perf_counter()
        plan = with_closed_form(plan, cached)
        graph = capture_rounds(plan, cached, backend)
        engine = Engine(plan, cached, backend, orders, table.identity.get("model"), graph)
        progress = _resumed(folder, plan, begin(plan, cached, first_adapter))
        total = rounds_of(config)
        LOG.info("%s", _opening(table, plan, on, backend, folder.folder))
        for fold in plan.folds:
            if fold.closed_form:
                LOG.info("%s", _solved(held_out_name(fold.held_out), fold.closed_form))
        for doubt in doubts(table, plan, first_adapter):
            LOG.warning("%s", doubt)
        with (
            noted_signals() as stop,
            threads(on, table.features.shape[1], backend),
            progress_bar(initial=progress.rounds_done, total=total, unit="round") as bar,
            open_loggers(
                log_to, folder.folder, name or folder.folder.name, as_json(config)
            ) as logged,
        ):
            begun = progress.rounds_done
            warned: set[tuple[str | None, str]] = set()
            for progress, report in train(engine, progress, total):  # noqa: B020
                _warn_of_rejected(report, warned)
                for why in progress.diverged.values():
                    raise ConfigError(why)
                folder.add_round(round_line(report))
                stopping = bool(stop)  # read once: a signal while saving waits for the next round
                _save(folder, engine, progress, now=stopping)
                bar.set_postfix(val=_best_so_far(progress), refresh=False)
                bar.started() if report.round == begun else bar.update()
                logged(report)
                if log_every and progress.rounds_done % log_every == 0:
                    LOG.info("%s", _how_far(progress, report, total, bar.left))
                LOG.debug("round %d: best validation %s", report.round, _best_so_far(progress))
                if stopping and progress.rounds_done < total:
                    raise Interrupted(
                        f"stopped after round {report.round} of {total}, saved in "
                        f"{folder.folder}; run the same command to resume",
                        stop[0],
                    )
        trained = time.perf_counter()
        results = outcomes(engine, progress, answers)
        progress = with_tested(progress, results)
        for changed in [result["val_changed"] for result in results if result["val_changed"]]:
            changed["start"] = changed["start"] if first_adapter is None else None
        for result in results:
            if worse := said_of_worse(
                result["held_out"] or "none", result["best_round"], result["val_accuracy"],
                result["zero_shot"]["val_accuracy"], result["val_changed"], vars(config),
            ):  # fmt: skip
                LOG.warning("%s", worse)
        document = {
            "cache": {
                **cache_facts(table),
                **({"file": str(Path(file).resolve())} if file else {}),
            },
            "config": {**as_json(config), "backend": backend, "device": on.type},
            "results": results,
            "mean": mean_results(results),
            "privacy": privacy(config),
            "run": str(folder.folder),
            "seconds": {
                "load": loaded - started,
                "train": trained - loaded,
                "total": time.perf_counter() - started,
            },
        }
        _save(folder, engine, progress, now=True)
        folder.finish(document)
    return RunResult(document)


def privacy(config: RunConfig) -> dict[str, Any] | None:
    """The guarantee of central DP; None without noise. epsilon is None without an accountant."""
    if not config.noise:
        return None
    found, solved = None, METHODS[config.method].solved  # one release, of all clients' sums
    hidden = ("client" if config.clip else "row") if solved else ""
    note = not_covered(config.choose, sums_of=hidden)
    try:
        fraction = 1.0 if solved else config.client_fraction
        found = epsilon(config.noise, fraction, rounds_of(config), DELTA)
        after = "" if solved else f" after {rounds_of(config)} rounds"
        LOG.info("central DP: epsilon %.2f at delta %g%s; %s", found, DELTA, after, note)
    except ConfigError as error:
        LOG.warning("%s", error)
    return {
        "epsilon": found,
        "delta": DELTA,
        "covers": "sums" if solved else "updates",
        "note": note,
    }


def describe(
    table: FeatureTable,
    config: RunConfig,
    device: torch.device,
    backend: str,
    first_adapter: torch.Tensor | None,
) -> dict[str, Any]:
    """Everything that determines a run's numbers, as in config.json; its hash is the run_id."""
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


def _resumed(folder: RunFolder, plan: Plan, first: Progress) -> Progress:
    """The progress of the folder's checkpoint, or `first`."""
    found = folder.resume()
    for note in folder.notes:
        LOG.warning("%s", note)
    if found is None:
        return first
    tensors, facts = found
    LOG.info("%s: resuming after round %d", folder.folder, facts["rounds_done"] - 1)
    return from_tensors(plan, tensors, facts, first)


def _solved(held_out: str | None, found: ClosedForm) -> str:
    """Describes the closed-form head of a fold in a sentence."""
    chosen, sent = found.chosen, 8 * found.sent[0]
    on = {"rows": "train rows left out one by one, and validation rows", "validation":
          "validation rows", "domain": "train rows of domains left out one by one"}  # fmt: skip
    reached = (
        f": accuracy {chosen.accuracy:.2%}, cross-entropy {chosen.loss:.4f} on {chosen.rows:,} "
        f"rows ({on[found.by]})" if chosen.rows else ""
    )  # fmt: skip
    return (
        f"held out {held_out or 'none'}: closed form {chosen.solver}, shape {chosen.shape:g}, "
        f"strength {chosen.strength:.3g}{reached}; a client sends {sent:,} bytes"
    )


def _best_so_far(progress: Progress) -> str:
    known = [kept.val_accuracy for kept in progress.chosen if kept]
    best = mean([each for each in known if each is not None])
    return "-" if best is None else f"{best:.2%}"


def _how_far(progress: Progress, report: RoundReport, total: int, left: float | None) -> str:
    """The line of --log-every: the round's accuracies (means over trainings) and the time left."""
    figures = figures_of(report)
    if len(report.folds) == 1:
        figures = {name.partition("/")[0]: value for name, value in figures.items()}
    shown = (("validation", "{:.2%}"), ("test", "{:.2%}"), ("loss", "{:.4f}"))
    said = [f"{what} {form.format(figures[what])}" for what, form in shown if what in figures]
    said.append(f"best validation so far {_best_so_far(progress)}")
    time_left = "" if left is None or progress.rounds_done >= total else f", {left:.0f} s left"
    return f"round {progress.rounds_done} of {total}: {', '.join(said)}{time_left}"


def _warn_of_rejected(report: RoundReport, warned: set[tuple[str | None, str]]) -> None:
    """Warns once for each client of each fold; rounds.jsonl lists every rejection."""
    for fold in report.folds:
        for name, why in fold.rejected.items():
            if (fold.held_out, name) not in warned:
                warned.add((fold.held_out, name))
                LOG.warning(
                    "round %d, held out %s: client %s is left out: %s; later rounds are listed "
                    "under `rejected` in rounds.jsonl",
                    report.round, fold.held_out or "none", name, why,
                )  # fmt: skip


def doubts(table: FeatureTable, plan: Plan, first_adapter: torch.Tensor | None) -> Iterator[str]:
    """Warnings, before training, of settings and data that may not be what the user meant."""
    yield from row_notes(table, plan)
    config = plan.folds[0].config
    least = min((len(fold.clients) for fold in plan.folds), default=0)
    yield from plan.method.doubts(config, least)
    if config.refit == "yes":
        yield "refit trains on validation rows too, so validation figures are of rows that trained"
    yield from unused(possible(config), table)
    if first_adapter is not None and config.start != RunConfig.start:
        yield "start has no effect with --init-adapter, which sets where training starts"
    if short := length_warning(table, config):
        yield short


def _save(folder: RunFolder, engine: Engine, progress: Progress, *, now: bool) -> None:
    if not engine.plan.models or not (now or folder.due()):
        return
    tensors, facts = to_tensors(engine.plan, progress)
    facts["belongs_to"] = read_object(folder.folder / "config.json")
    folder.checkpoint(tensors, facts)


def cache_facts(table: FeatureTable) -> dict[str, Any]:
    """The facts of a cache in config.json and results."""
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
        f"{table.source}: {counted(len(table.labels), 'row')}, width {table.features.shape[1]}, "
        f"{len(table.class_names)} classes; {counted(len(plan.folds), 'training')} with "
        f"{counted(len(plan.lanes), 'client')} in all, on {device.type} ({backend}); "
        f"results in {out}"
    )
