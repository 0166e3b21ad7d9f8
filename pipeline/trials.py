"""A sweep on disk: spec.json says what it is, trials.jsonl holds every trial that ended.

trials.jsonl is the truth: one object a trial, appended as each ends and never rewritten. Of two
objects with one id the later counts: a trial that failed is tried again by the next start.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import ConfigError, run_id
from pipeline.locked_folder import cannot_write, first_difference, locked, replace_whole
from pipeline.seals import sealed, unsealed

STATUSES = ("done", "diverged", "failed", "pruned")
"""Trained to the end; its numbers left the finite ones; an error, told in `error`; cut."""
OURS = ("trials.jsonl", "study.journal", "spec.json")


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


def make_trial(number: int, settings: dict, seed: int) -> Trial:
    """The trial; its id is the first 12 hex digits of sha256 over settings and seed as JSON."""
    return Trial(number, settings, seed, run_id({**settings, "seed": seed}))


def configuration_id(settings: dict) -> str:
    """The name that all seeds of one configuration share, made like a trial's id."""
    return run_id(settings)


def record(trial: Trial, **ended) -> Record:
    """The trial's Record; ended: status, rounds, results, val_accuracy, seconds, perhaps error."""
    return Record(trial.id, trial.number, trial.settings, trial.seed, **ended)


class SweepFolder:
    """The files of one sweep, held by a lock; records has the last Record of every id."""

    def __init__(self, folder: Path, records: dict[str, Record]) -> None:
        self.folder = folder
        self.records = records
        self._lines = (folder / "trials.jsonl").open("ab")

    def add(self, ended: Record) -> None:
        """Appends one trial, handed to the system before this returns.

        Raises ConfigError when it cannot be written.
        """
        assert ended.status in STATUSES, ended.status
        finite = _finite(dataclasses.asdict(ended))
        line = json.dumps(sealed(finite), allow_nan=False)
        try:
            self._lines.write(line.encode() + b"\n")
            self._lines.flush()
        except OSError as error:
            raise ConfigError(cannot_write(self.folder, error)) from error
        self.records[ended.id] = Record(**finite)

    def close(self) -> None:
        """Closes trials.jsonl."""
        # After a full disk the unwritten bytes cannot be flushed either: that was told by add.
        with contextlib.suppress(OSError):
            self._lines.close()


@contextlib.contextmanager
def open_sweep(folder: Path, described: dict, *, force: bool = False) -> Iterator[SweepFolder]:
    """The folder of the sweep that `described` says, made when missing, locked while it is open.

    described  all that decides the trials and their numbers, as JSON can hold it
    force      start anew: what the folder holds of a sweep is deleted

    Raises ConfigError when it holds another sweep (the first field that differs is named), when
    another process sweeps in it, and for a line, not the last, that is no trial.
    """
    with locked(folder, "sweeping"):
        try:
            sweep = SweepFolder(folder, _prepare(folder, described, force))
        except OSError as error:
            raise ConfigError(cannot_write(folder, error)) from error
        try:
            yield sweep
        finally:
            sweep.close()


def read_trials(file: Path) -> tuple[dict[str, Record], int]:
    """The last Record of every id, in the order of first lines, and how many bytes are good.

    A last line that a kill tore (or filled with zeros) is left out; a file that is missing is
    empty. Raises ConfigError for another line that is no trial.
    """
    content = file.read_bytes() if file.exists() else b""
    records: dict[str, Record] = {}
    good = 0
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            found = _parse(line)
        except (ValueError, TypeError, RecursionError) as error:
            if number == len(lines):
                break
            raise ConfigError(f"{file}: line {number} is no trial ({error})") from error
        records[found.id] = found
        good += len(line)
    return records, good


def _prepare(folder: Path, described: dict, force: bool) -> dict[str, Record]:
    spec, trials = folder / "spec.json", folder / "trials.jsonl"
    described = json.loads(json.dumps(described, allow_nan=False))
    if force:
        for name in OURS:
            (folder / name).unlink(missing_ok=True)
    if spec.exists():
        _refuse_other(spec, described)
    elif trials.exists():
        raise ConfigError(f"{folder}: has trials.jsonl but no spec.json; --force starts anew")
    else:
        whole = json.dumps(sealed(described), indent=2, sort_keys=True) + "\n"
        replace_whole(spec, whole.encode())
    records, good = read_trials(trials)
    if trials.exists():
        os.truncate(trials, good)
        if records and not trials.read_bytes().endswith(b"\n"):
            with trials.open("ab") as opened:
                opened.write(b"\n")
    return records


def _refuse_other(spec: Path, described: dict) -> None:
    try:
        found = unsealed(json.loads(spec.read_text("utf-8")))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{spec}: is damaged ({error}); --force starts anew") from error
    differs = first_difference(found, described)
    if differs:
        name, old, new = differs
        raise ConfigError(
            f"{spec.parent}: holds a sweep with {name or 'spec'} = {old}, but {new} is asked for; "
            "pass another --out, or --force to delete it and start anew"
        )


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


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
