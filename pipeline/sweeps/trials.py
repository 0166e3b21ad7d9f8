"""A sweep on disk: its spec in spec.json and every trial that ended in trials.jsonl.

trials.jsonl is authoritative: one object for each trial, appended when it ends. Of two objects with
one id the later counts: the next start tries failed trials again. Older versions let other
processes write trials-<member>.jsonl beside it; those are read.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.container.disk import sync_folder
from pipeline.digests import sealed, unsealed
from pipeline.errors import ConfigError
from pipeline.federation.methods import METHODS
from pipeline.files import (
    LOG,
    OBJECT,
    errors_of,
    locked,
    naming,
    read_plain,
    refuse_other,
    replace_whole,
    set_aside,
)
from pipeline.settings import run_id

STATUSES = ("done", "diverged", "failed", "pruned")
"""Trained to the end; stopped being finite; an error, described in `error`; cut."""
REACHED = "reached"
"""Status of a Record that is never written: the trial waits for its next rung."""
TRIALS = "trials.jsonl"
OURS = ("study.journal", "shared.json", "selection.json", "reproduced.json", "parked", "claims",
        "members", "spec.json")  # fmt: skip
"""A sweep's files beside its trials; set aside in this order, so that spec.json goes last."""

WAY_OUT = "restore it from a copy, or pass --force to move the sweep's files aside and start again"


@dataclass(frozen=True)
class Trial:
    """One training of a sweep: the settings that the sweep chose for it, and its seed."""

    number: int
    settings: dict
    seed: int
    id: str


@dataclass(frozen=True)
class Record:
    """A trial that ended, as in its line of trials.jsonl; None for what it did not reach."""

    id: str
    number: int
    settings: dict
    seed: int
    status: str
    rounds: int
    """Rounds trained; of a pruned trial those before its cut."""
    results: list
    """As in `federate --json`, one object for each held-out domain; may be empty."""
    val_accuracy: float | None
    """Of the best round, a fraction, mean over the held-out domains' trainings."""
    seconds: float
    error: str | None = None
    val_loss: float | None = None
    """Likewise the mean validation loss, if it chooses rounds."""
    curves: dict | None = None
    """By round: see pipeline/sweeps/curves.py; None in older files, and if no round trained."""


def make_trial(number: int, settings: dict, seed: int) -> Trial:
    """Makes a trial; its id is the first 12 hex digits of sha256 over settings and seed as JSON."""
    return Trial(number, settings, seed, run_id({**settings, "seed": seed}))


def configuration_id(settings: dict) -> str:
    """An id that all seeds of a configuration share, made like a trial's id."""
    return run_id(settings)


def has_own_adapters(settings: Mapping[str, object]) -> bool:
    """Whether the settings name a method that answers each client by an adapter of its own.

    Its accuracies are of other models on other rows than those of one adapter: ranked apart.
    """
    method = METHODS.get(str(settings.get("method")))
    return method is not None and method.personal


def record(trial: Trial, *, status: str, **facts: Any) -> Record:
    """Makes a trial's Record; missing facts are those of a trial that never started."""
    blank = {"rounds": 0, "results": [], "val_accuracy": None, "seconds": 0.0}
    return Record(trial.id, trial.number, trial.settings, trial.seed, status, **{**blank, **facts})


def read_trials(file: Path) -> tuple[dict[str, Record], int]:
    """Reads the last Record of every id, in order of first lines, and the number of valid bytes.

    A last line that a kill tore (or filled with zeros) is left out; a missing file counts as empty.
    Raises ConfigError for any other line that is not a trial.
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
    """trials.jsonl and the files of older versions' other processes, as far as they exist."""
    first = folder / TRIALS
    return [first] * first.exists() + sorted(folder.glob("trials-*.jsonl"))


def read_all(folder: Path) -> dict[str, Record]:
    """The Record that counts for every id in a sweep's folder.

    A failed one yields to any other; else the one in the earlier file counts.
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


class SweepFolder:
    """The files of one sweep; `records` has the Record that counts for every id."""

    def __init__(self, folder: Path, records: dict[str, Record]) -> None:
        self.folder = folder
        self.records = records
        self._file = folder / TRIALS
        self._lines = self._file.open("ab")
        sync_folder(folder)

    def add(self, ended: Record) -> None:
        """Appends one trial and flushes it; `sync` brings it to the disk.

        A trial that failed again in the same way is not appended twice. Raises ConfigError if it
        cannot be written.
        """
        assert ended.status in STATUSES, ended.status
        facts = finite(dataclasses.asdict(ended))
        fresh = Record(**facts)
        if self.records.get(ended.id) != fresh:
            with errors_of(self.folder), naming(self._file):
                self._lines.write(line_of(facts))
                self._lines.flush()
        self.records[ended.id] = fresh

    def sync(self) -> None:
        """Brings added trials to the disk."""
        with errors_of(self.folder), naming(self._file):
            os.fsync(self._lines.fileno())

    def close(self) -> None:
        """Closes its file of trials."""
        # After a full disk the unwritten bytes cannot be flushed either: add reported that.
        with contextlib.suppress(OSError):
            self._lines.close()


@contextlib.contextmanager
def open_sweep(folder: Path, described: dict, *, force: bool = False) -> Iterator[SweepFolder]:
    """The folder of the sweep in `described`, created if missing, locked while it is open.

    described  everything that determines the trials and their numbers, in JSON's types
    force      start again: an existing sweep, which may be hours of work, is moved to old-<n>/

    Raises ConfigError if it holds another sweep (naming the first field that differs), if another
    process sweeps in it, if it cannot be written, and for a line, except the last, that is not a
    trial.
    """
    with locked(folder, "sweeping"), errors_of(folder):
        sweep = SweepFolder(folder, _prepare(folder, described, force))
        try:
            yield sweep
        finally:
            sweep.close()


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
    """The value with None in place of numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return value


def _prepare(folder: Path, described: dict, force: bool) -> dict[str, Record]:
    spec, trials = folder / "spec.json", folder / TRIALS
    described = json.loads(json.dumps(described, allow_nan=False))
    if force:
        others = (file.name for file in trial_files(folder))
        ours = [*dict.fromkeys([TRIALS, *others]), *OURS]  # also those that cannot be looked up
        if any(os.path.lexists(folder / name) for name in ours):
            set_aside(folder, ours)
    shutil.rmtree(folder / "parked", ignore_errors=True)  # of a process that was killed
    if spec.exists():
        _refuse_other(spec, described)
    elif trials.exists():
        raise ConfigError(f"{folder}: contains trials.jsonl but no spec.json; {WAY_OUT}")
    else:
        whole = json.dumps(sealed(described), indent=2, sort_keys=True) + "\n"
        replace_whole(spec, whole.encode())
    _, good = read_trials(trials)
    if trials.exists():
        whole = read_plain(trials, LOG)
        sound = whole[:good] + b"\n" * (good > 0 and whole[good - 1 : good] != b"\n")
        if sound != whole:
            replace_whole(trials, sound)
    return read_all(folder)


def _refuse_other(spec: Path, described: dict) -> None:
    try:
        found = unsealed(json.loads(read_plain(spec, OBJECT)))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{spec}: is damaged ({error}); {WAY_OUT}") from error
    refuse_other(spec.parent, "sweep", found, described, "move it to old-<n>/ and start again")
