"""Runs and sweeps of a folder as lines of a list: what they are of, and what they reach."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError
from pipeline.federation.evaluate import mean
from pipeline.federation.methods import METHODS
from pipeline.json_files import is_number, word
from pipeline.reports.data import (
    ACCURACIES,
    Curve,
    FoldData,
    Result,
    RunData,
    mean_curve,
    mean_of,
    read_run,
)
from pipeline.reports.trials import SweepData, curve_of, ranking, read_sweep
from pipeline.runs.results import aligned, arrow
from pipeline.sweeps.trials import TRIALS, trial_files

FIGURES = ("val_accuracy", *ACCURACIES)
WRITTEN = ("done", "summary.json", "rounds.jsonl", TRIALS, "config.json", "spec.json")
"""Of a run or sweep; the newest of them says when something was last done."""
POINTS = 100  # of a curve, at most
ORDERS = ("newest", "name", "data", "method", "validation", "test", "gain", "seconds")
FINISHED, UNFINISHED, DAMAGED = "finished", "unfinished", "damaged"


@dataclass(frozen=True)
class Listed:
    """A run, a sweep by its best configuration, or a folder whose files are damaged.

    figures    by FIGURES (zero-shot's, reached), fractions, means over trainings (and seeds)
    curves     "validation" and "test" by round, means over trainings
    settings   of RunConfig, as its files have them; of a sweep those of its best configuration
    """

    folder: Path
    kind: str = "run"
    status: str = DAMAGED
    error: str = ""
    when: float = 0.0
    name: str = ""
    tags: tuple[str, ...] = ()
    dataset: str = ""
    model: str = ""
    held_out: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    rounds: str = ""
    seconds: float | None = None
    figures: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def tested(self) -> tuple[float | None, float | None]:
        """Accuracy on unseen domains, or of participants where nothing was held out."""
        none = (None, None)
        unseen = self.figures.get("unseen", none)
        return unseen if unseen[1] is not None else self.figures.get("participants", none)

    @property
    def date(self) -> str:
        """When something was last done, in this machine's time."""
        return datetime.fromtimestamp(self.when).strftime("%Y-%m-%d %H:%M")


def is_result(folder: Path) -> bool:
    """Whether a folder is a run's or a sweep's."""
    return folder.is_dir() and ((folder / "config.json").exists() or bool(trial_files(folder)))


def results_in(folder: Path) -> list[Path]:
    """The folders of runs and sweeps directly in a folder, by name."""
    if not folder.is_dir():
        return []
    return sorted(each for each in folder.iterdir() if is_result(each))


def expanded(paths: Iterable[Path]) -> list[tuple[Path, bool]]:
    """The paths, with the runs and sweeps inside in place of a folder that is none itself; and
    whether each was named itself."""
    found: dict[Path, bool] = {}
    for path in paths:
        inside = [] if is_result(path) else results_in(path)
        for each in inside or [path]:
            found[each] = found.get(each, False) or each is path
    return list(found.items())


def read_listed(folder: Path) -> Listed:
    """One line of a list; of damaged files one that says so."""
    try:
        if trial_files(folder):
            return listed_sweep(read_sweep(folder))
        return listed_run(read_run(folder, adapters=False))
    except (ConfigError, OSError) as error:
        kind = "sweep" if trial_files(folder) else "run"
        return Listed(folder, kind, error=str(error), when=_when(folder), name=folder.name)


def listed_run(run: RunData) -> Listed:
    """The line of a run."""
    results = [fold.result for fold in run.folds if fold.result]
    figures = _figures(results)
    method = METHODS.get(str(run.settings.get("method")))
    if method is not None and not method.learns:
        figures["val_accuracy"] = (figures["val_accuracy"][0],) * 2
    left = f"{run.rounds_done} of {word(run.settings.get('rounds'))} rounds"
    return _line(
        run, "" if run.finished else left,
        held_out=tuple(fold.name for fold in run.folds),
        settings={n: v for n, v in run.settings.items() if n != "held_out"},
        rounds=str(run.rounds_done),
        seconds=run.seconds.get("train"),
        figures=figures,
        curves={name: curve for name, curve in _curves(run).items() if curve.rounds},
    )  # fmt: skip


def listed_sweep(sweep: SweepData) -> Listed:
    """The line of a sweep: its best configuration, means over seeds."""
    ranked = ranking(sweep)
    best = ranked[0].records if ranked else ()
    results = [result for trial in best for result in trial.results]
    figures = _figures(results)
    reached = mean([t.val_accuracy for t in best if t.val_accuracy is not None])
    figures["val_accuracy"] = (figures["val_accuracy"][0], reached)
    folds = sweep.base.get("held_out") or []
    held_out = tuple(", ".join(map(str, each)) or "none" for each in folds)
    return _line(
        sweep, "" if sweep.trials else "no trial has ended",
        held_out=held_out or (best[0].held_out if best else ()),
        settings={n: v for n, v in sweep.base.items() if n not in ("held_out", "seed")}
        | (best[0].settings if best else {}),
        rounds=f"{sum(trial.status == 'done' for trial in sweep.trials)} trials",
        seconds=sum(trial.seconds or 0.0 for trial in sweep.trials),
        figures=figures,
        curves={"validation": curve} if (curve := curve_of(best, "val_accuracy")) else {},
    )  # fmt: skip


def ordered(rows: Iterable[Listed], by: str = "newest") -> list[Listed]:
    """The lines by one of ORDERS: figures the best first, words by letter, what lacks it last.

    Raises ConfigError for an unknown order.
    """
    if by not in ORDERS:
        raise ConfigError(f"--sort {by!r} is unknown; choose from {', '.join(ORDERS)}")
    words = {
        "name": lambda row: row.name,
        "data": lambda row: row.dataset,
        "method": lambda row: word(row.settings.get("method", "")),
    }
    rows = sorted(rows, key=lambda row: (-row.when, str(row.folder)))
    if by in words:
        return sorted(rows, key=lambda row: words[by](row).casefold())
    numbers = [(row, _number(row, by)) for row in rows]
    known = sorted((each for each in numbers if each[1] is not None), key=lambda each: -each[1])
    return [row for row, _ in known] + [row for row, value in numbers if value is None]


def matches(row: Listed, wanted: str) -> bool:
    """Whether a line has a setting or fact (`lr=1e-3`, `tag=paper`), or holds the words anywhere.

    Numbers are compared as numbers, words without regard to capitals.
    """
    facts: dict[str, Sequence[object]] = {
        "name": (row.name, row.folder.name), "tag": row.tags, "kind": (row.kind,),
        "status": (row.status,), "data": (row.dataset,), "dataset": (row.dataset,),
        "model": (row.model,), "held_out": row.held_out,
    }  # fmt: skip
    name, equals, value = wanted.partition("=")
    name = name.strip().replace("-", "_")
    if equals and (name in facts or name in row.settings):
        return any(_same(found, value) for found in facts.get(name, (row.settings.get(name),)))
    shown = [*(each for some in facts.values() for each in some), row.date, row.error]
    shown += [f"{name}={word(each)}" for name, each in row.settings.items()]
    return wanted.casefold() in " ".join(map(str, shown)).casefold()


def list_text(rows: Sequence[Listed]) -> str:
    """The lines as text for people, accuracies in percent; damaged ones with the reason below."""
    head = ["run", "date", "data", "model", "method", "held out", "seed", "rounds",
            "validation", "test", "status", "tags"]  # fmt: skip
    table = [
        [row.name, row.date, row.dataset or "-", row.model or "-",
         word(row.settings.get("method", "-")), _few(row.held_out),
         word(row.settings.get("seed", "-")), row.rounds or "-",
         arrow(*row.figures.get("val_accuracy", (None, None))), arrow(*row.tested), row.status,
         ", ".join(row.tags) or "-"]
        for row in rows
    ]  # fmt: skip
    bad = [f"{row.folder}: {row.error}" for row in rows if row.status == DAMAGED]
    note = (
        "validation and test: accuracy in %, zero-shot -> adapter, means over held-out domains; "
        "test: unseen domains, else participants; sweeps: the best configuration"
    )
    return "\n".join([aligned([head, *table]), note, *bad])


def list_records(rows: Iterable[Listed]) -> list[dict[str, Any]]:
    """The lines as flat objects for JSON and pandas.DataFrame; accuracies are fractions."""
    return [
        {
            "folder": str(row.folder), "kind": row.kind, "name": row.name, "tags": list(row.tags),
            "status": row.status, "error": row.error or None,
            "date": datetime.fromtimestamp(row.when).astimezone().isoformat(timespec="seconds"),
            "dataset": row.dataset or None, "model": row.model or None,
            "held_out": list(row.held_out), "rounds": row.rounds or None, "seconds": row.seconds,
            **{f"{side}{name}": pair[at] for name, pair in row.figures.items()
               for at, side in enumerate(("zero_shot_", ""))},
            "settings": row.settings,
        }
        for row in rows
    ]  # fmt: skip


def _line(one: RunData | SweepData, left: str, **reached: Any) -> Listed:
    """left: why it is not finished; "" if it is."""
    return Listed(
        one.folder, one.kind.lower(), UNFINISHED if left else FINISHED, left, _when(one.folder),
        one.label.name or one.name, one.label.tags,
        *(str(one.cache.get(name) or "") for name in ("dataset", "model")), **reached,
    )  # fmt: skip


def _figures(results: Sequence[Result]) -> dict[str, tuple[float | None, float | None]]:
    return {n: (mean_of(results, n, start=True), mean_of(results, n)) for n in FIGURES}


def _curves(run: RunData) -> dict[str, Curve]:
    folds = [fold for fold in run.folds if fold.validation]
    return {
        "validation": _over_folds([mean_curve(list(f.validation.values())) for f in folds]),
        "test": _over_folds([mean_curve(_tested(fold)) for fold in folds]),
    }


def _tested(fold: FoldData) -> list[Curve]:
    unseen = [curve for name, curve in fold.test.items() if name in fold.held_out]
    return unseen or list(fold.test.values())


def _over_folds(folds: Sequence[Curve]) -> Curve:
    """Their mean in rounds from the first that all have; each keeps its value until the next."""
    if not folds or not all(each.rounds for each in folds):
        return Curve((), ())
    first = max(each.rounds[0] for each in folds)
    rounds = sorted({round for each in folds for round in each.rounds if round >= first})
    held = [
        np.array(each.values, float)[np.searchsorted(each.rounds, rounds, side="right") - 1]
        for each in folds
    ]
    values = np.mean(held, axis=0)
    if len(rounds) > POINTS:
        kept = np.unique(np.linspace(0, len(rounds) - 1, POINTS).round().astype(int))
        rounds, values = [rounds[k] for k in kept], values[kept]
    return Curve(tuple(rounds), tuple(map(float, values)))


def _when(folder: Path) -> float:
    times = [0.0]
    for file in (*(folder / name for name in WRITTEN), *trial_files(folder)):
        try:
            times.append(file.stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _number(row: Listed, by: str) -> float | None:
    if by == "newest":
        return row.when
    if by == "seconds":
        return row.seconds
    start, reached = row.figures.get("val_accuracy", (None, None))
    if by != "validation":
        start, reached = row.tested
    if by != "gain" or reached is None:
        return reached
    return None if start is None else reached - start


def _same(found: object, wanted: str) -> bool:
    if is_number(found):
        try:
            return float(found) == float(wanted)
        except ValueError:
            return False
    return word(found).casefold() == wanted.strip().casefold()


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{names[0]}, {names[1]}, ... ({len(names)})"
