"""A sweep on disk: spec.json says what it is, trials.jsonl holds every trial that ended.

trials.jsonl is the truth: one object a trial, appended as each ends. Of two objects with one id the
later counts: a trial that failed is tried again by the next start. Older versions let further
processes write trials-<member>.jsonl beside it; those are read.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.digests import sealed, unsealed
from pipeline.errors import ConfigError
from pipeline.federation.methods import METHODS
from pipeline.plain_files import LOG, read_plain
from pipeline.settings import run_id

STATUSES = ("done", "diverged", "failed", "pruned")
"""Trained to the end; its numbers left the finite ones; an error, described in `error`; cut."""
REACHED = "reached"
"""Of a Record that is on no disk: the trial waits for its next rung."""
TRIALS = "trials.jsonl"


@dataclass(frozen=True)
class Trial:
    """One training of a sweep: the settings that the sweep chose for it, and its seed."""

    number: int
    settings: dict
    seed: int
    id: str


@dataclass(frozen=True)
class Record:
    """A trial that ended, as its line in trials.jsonl has it; None for what it did not reach."""

    id: str
    number: int
    settings: dict
    seed: int
    status: str
    rounds: int
    """Rounds trained; of a pruned trial those before its cut."""
    results: list
    """As `federate --json` gives them, one object a held-out domain; empty when there are none."""
    val_accuracy: float | None
    """Of the best round, a fraction, mean over the held-out domains' trainings."""
    seconds: float
    error: str | None = None
    val_loss: float | None = None
    """Likewise the mean validation loss, where rounds are chosen by it."""
    curves: dict | None = None
    """By round: see pipeline/sweeps/curves.py; None in older files, and where no round trained."""


def make_trial(number: int, settings: dict, seed: int) -> Trial:
    """The trial; its id is the first 12 hex digits of sha256 over settings and seed as JSON."""
    return Trial(number, settings, seed, run_id({**settings, "seed": seed}))


def configuration_id(settings: dict) -> str:
    """The name that all seeds of one configuration share, made like a trial's id."""
    return run_id(settings)


def has_own_adapters(settings: Mapping[str, object]) -> bool:
    """Whether the settings name a method that answers each client by an adapter of its own.

    Its accuracies are of other models on other rows than those of one adapter: ranked apart.
    """
    method = METHODS.get(str(settings.get("method")))
    return method is not None and method.personal


def record(trial: Trial, *, status: str, **facts: Any) -> Record:
    """The trial's Record; facts that are not given are those of one that never started."""
    blank = {"rounds": 0, "results": [], "val_accuracy": None, "seconds": 0.0}
    return Record(trial.id, trial.number, trial.settings, trial.seed, status, **{**blank, **facts})


def read_trials(file: Path) -> tuple[dict[str, Record], int]:
    """The last Record of every id, in the order of first lines, and how many bytes are good.

    A last line that a kill tore (or filled with zeros) is left out; a file that is missing is
    empty. Raises ConfigError for another line that is not a trial.
    """
    content = read_plain(file, LOG) if file.exists() else b""
    records: dict[str, Record] = {}
    good = 0
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            found = _parse(line)
        except (ValueError, TypeError, RecursionError) as error:
            if number == len(lines):
                break
            raise ConfigError(
                f"{file}: line {number} is not a trial ({error}); restore the file from a copy, or "
                "delete this line to train its trial again"
            ) from error
        records[found.id] = found
        good += len(line)
    return records, good


def trial_files(folder: Path) -> list[Path]:
    """trials.jsonl and then those of older versions' further processes, as far as they exist."""
    first = folder / TRIALS
    return [first] * first.exists() + sorted(folder.glob("trials-*.jsonl"))


def read_all(folder: Path) -> dict[str, Record]:
    """The Record that counts of every id in a sweep's folder.

    One that failed counts less than another; else the one that stands in the earlier file.
    """
    records: dict[str, Record] = {}
    for file in trial_files(folder):
        for id, each in read_trials(file)[0].items():
            if id not in records or (records[id].status == "failed" and each.status != "failed"):
                records[id] = each
    return records


def line_of(record: dict) -> bytes:
    """A line of trials.jsonl."""
    return json.dumps(sealed(record), allow_nan=False).encode() + b"\n"


def _parse(line: bytes) -> Record:
    found = unsealed(json.loads(line))
    known = {field.name for field in dataclasses.fields(Record)}
    record = Record(**{name: value for name, value in found.items() if name in known})
    if record.status not in STATUSES or not isinstance(record.results, list):
        raise ValueError(f"status {record.status!r}, results {type(record.results).__name__}")
    if not isinstance(record.settings, dict):
        raise ValueError("settings are not an object")
    if record.id != make_trial(record.number, record.settings, record.seed).id:
        raise ValueError("its id is not that of its settings and seed")
    return record


def finite(value: object) -> object:
    """The value with None for each number in it that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value
