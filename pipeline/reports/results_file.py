"""One growing table of results: a line for each training of a run or trial, with all settings."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import filelock

from cache.container.locks import let_go, take
from pipeline.errors import ConfigError
from pipeline.files import LOG, read_plain
from pipeline.json_files import content_of, replace_file
from pipeline.reports.csv_tables import csv_bytes, plain, safe_cell
from pipeline.reports.data import ACCURACIES, Result, RunData
from pipeline.reports.listing import FINISHED, UNFINISHED
from pipeline.reports.trials import SweepData
from pipeline.settings_used import FIELDS

NAME = "results.csv"
KEY = ("folder", "trial", "held_out")
"""What makes a line: a result that is written again replaces its line."""
FIGURES = ("val_accuracy", *ACCURACIES, "macro_f1", "calibration_error", "worst")
HEADS = (
    "run", "name", "tags", "status", "dataset", "model", "rows", "classes", "domains", "content",
    "backend", "device", *KEY, *(name for name in FIELDS if name != "held_out"), "best_round",
    *(f"{side}{name}" for name in FIGURES for side in ("zero_shot_", "")),
    "bytes_up", "bytes_down", "seconds", "error",
)  # fmt: skip


def result_rows(one: RunData | SweepData) -> list[dict[str, Any]]:
    """A line by HEADS for each training; figures are fractions, None where there is none.

    A trial without results, as a failed one, has one line. held_out is "none" where nothing was.
    """
    with content_of(one.folder):
        return list(_of_run(one) if isinstance(one, RunData) else _of_sweep(one))


def grow(file: Path, data: Sequence[RunData | SweepData]) -> Path:
    """Adds the results to a CSV file, or replaces their lines in it; other lines stay as they are.

    Columns of the file that HEADS lacks stay at the end. Two processes may grow one file.

    Raises ConfigError for a file that is no such table, that another process holds for longer, or
    that cannot be written.
    """
    fresh = [row for one in data for row in result_rows(one)]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = take(file.with_name(f".{file.name}.lock"), patience=60)
    except (OSError, filelock.Timeout) as error:
        reason = getattr(error, "strerror", None) or "another process is writing it"
        raise ConfigError(f"{file}: cannot be written ({reason})") from error
    try:
        heads, there = _read(file) if file.exists() else ((), [])
        rows = {tuple(str(row.get(name) or "") for name in KEY): row for row in there}
        for row in fresh:
            # As the file has it: what is read back and written again stays the same.
            written = {n: "" if row.get(n) is None else safe_cell(row[n]) for n in HEADS}
            rows[tuple(str(written[name]) for name in KEY)] = written
        columns = [*HEADS, *(name for name in heads if name not in HEADS)]
        lines = ([row.get(name, "") for name in columns] for row in rows.values())
        return replace_file(file, csv_bytes([columns, *lines]))
    finally:
        let_go(lock)


def _read(file: Path) -> tuple[Sequence[str], list[dict[str, Any]]]:
    try:
        reader = csv.DictReader(io.StringIO(read_plain(file, LOG).decode("utf-8-sig"), newline=""))
        heads = reader.fieldnames or []
        rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file}: cannot be read as CSV ({error}); pass another file") from error
    missing = [name for name in KEY if name not in heads]
    if missing or any(None in row for row in rows):
        raise ConfigError(
            f"{file}: is not a table of results ({'no column ' + missing[0] if missing else 'a line is longer than the first'}); "  # noqa: E501
            "pass another file"
        )
    return heads, rows


def _of_run(run: RunData) -> Iterable[dict[str, Any]]:
    status = FINISHED if run.finished else UNFINISHED
    for fold in run.folds:
        yield _row(run, run.settings, fold.name, fold.result,
                   status=status, seconds=run.seconds.get("train"))  # fmt: skip


def _of_sweep(sweep: SweepData) -> Iterable[dict[str, Any]]:
    where = {name: sweep.spec.get(name) for name in ("backend", "device")}
    for trial in sweep.trials:
        settings = {**sweep.base, **where, **trial.settings, "seed": trial.seed}
        for held_out, result in trial.by_held_out or [("all", None)]:
            yield _row(sweep, settings, held_out, result, status=trial.status, trial=trial.number,
                       seconds=trial.seconds, error=trial.error)  # fmt: skip


def _row(
    one: RunData | SweepData, settings: dict[str, Any], held_out: str, result: Result | None,
    **ended: object,
) -> dict[str, Any]:  # fmt: skip
    cache, sent = one.cache, result.traffic if result else None
    sides = {"": result.scores, "zero_shot_": result.zero_shot} if result else {}
    return {
        "run": one.name, "name": one.label.name, "tags": " ".join(one.label.tags),
        "folder": str(one.folder.resolve()), "held_out": held_out, **ended,
        **{name: cache.get(name) for name in ("dataset", "model", "rows", "classes")},
        "domains": len(cache.get("domains") or ()),
        "content": str(cache.get("content_sha256") or "")[:12],
        **{name: settings.get(name) for name in ("backend", "device")},
        **{name: plain(settings.get(name, each.default)) for name, each in FIELDS.items()
           if name != "held_out"},
        "best_round": result.best_round if result else None,
        **{f"{side}{name}": getattr(scores, name) if scores else None
           for name in FIGURES for side, scores in sides.items()},
        "bytes_up": sent.up if sent else None, "bytes_down": sent.down if sent else None,
    }  # fmt: skip
