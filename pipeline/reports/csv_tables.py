"""CSV files next to a report."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from os import PathLike
from pathlib import Path

from pipeline.json_files import replace_file, word
from pipeline.reports.bench import BenchData, Case
from pipeline.reports.data import ACCURACIES, RunData, Scores, mean_of
from pipeline.reports.trials import SweepData

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would run: a name of a class or domain may be one."""


def write_csv(data: RunData | SweepData | BenchData, folder: str | PathLike[str]) -> list[Path]:
    """Writes what the report shows, and all of what it thins out; returns the files.

    A run: domains.csv (a row a held-out training and domain), rounds.csv (a row a number). A sweep:
    trials.csv. A benchmark: bench.csv. Fractions stay fractions. Results beside all settings:
    pipeline/reports/results_file.py. Raises ConfigError when a file cannot be written.
    """
    folder = Path(folder)
    if isinstance(data, RunData):
        return [
            _write(folder / "domains.csv", _RESULTS, _result_rows(data)),
            _write(folder / "rounds.csv", _ROUNDS, _round_rows(data)),
        ]
    if isinstance(data, SweepData):
        return [_write(folder / "trials.csv", *_trials(data))]
    heads = [field.name for field in fields(Case)]
    return [_write(folder / f"{data.name}.csv", heads, (astuple(case) for case in data.cases))]


def safe_cell(cell: object) -> object:
    """The cell, with a mark before what a spreadsheet would run; numbers stay numbers.

    Spreadsheets skip spaces before a formula's first character, so these are skipped here, too.
    """
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip(" ").startswith(FORMULA) else cell


_ROUNDS = ("run", "held_out", "round", "number", "client_or_domain", "value")
_RESULTS = ("run", "held_out", "best_round", "domain", "accuracy", "zero_shot")


def _round_rows(run: RunData) -> Iterable[Sequence[object]]:
    for fold in run.folds:
        for what in ("validation", "test", "loss"):
            for name, curve in getattr(fold, what).items():
                for round, value in zip(curve.rounds, curve.values, strict=True):
                    yield run.name, fold.name, round, what, name, value


def _result_rows(run: RunData) -> Iterable[Sequence[object]]:
    for fold in run.folds:
        if fold.result is None:
            continue
        start = fold.result.zero_shot
        known = _named(start) if start else {}
        for name, value in _named(fold.result.scores).items():
            yield run.name, fold.name, fold.result.best_round, name, value, known.get(name)


def _named(scores: Scores) -> dict[str, float | None]:
    means = {**scores.means, "val_accuracy": scores.val_accuracy}
    return {**scores.per_domain, **{f"({name})": value for name, value in means.items()}}


def _trials(sweep: SweepData) -> tuple[list[str], Iterable[Sequence[object]]]:
    names = list(dict.fromkeys(name for trial in sweep.trials for name in trial.settings))
    names = [name for name in names if name != "seed"]
    heads = ["trial", "id", "status", "error", "seed", "rounds", "seconds", "val_accuracy",
             *(f"test_{name}" for name in ACCURACIES),
             *names]  # fmt: skip
    rows = (
        [t.number, t.id, t.status, t.error, t.seed, t.rounds, t.seconds, t.val_accuracy,
         *(mean_of(t.results, which) for which in ACCURACIES),
         *(plain(t.settings.get(name)) for name in names)]
        for t in sweep.trials
    )  # fmt: skip
    return heads, rows


def plain(value: object) -> object:
    """A setting as a cell: numbers and words as they are, all else as people write it."""
    return value if value is None or isinstance(value, int | float | str) else word(value)


def _write(file: Path, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    return replace_file(file, csv_bytes(map(safe_cell, row) for row in (heads, *rows)))


def csv_bytes(rows: Iterable[Iterable[object]]) -> bytes:
    """The CSV file as UTF-8, without a byte-order mark, which scripts trip over."""
    return csv_text(rows).encode("utf-8", "replace")


def csv_text(rows: Iterable[Iterable[object]], line_end: str = "\r\n") -> str:
    """Rows as CSV (RFC 4180)."""
    text = io.StringIO()
    csv.writer(text, lineterminator=line_end).writerows(rows)
    return text.getvalue()
