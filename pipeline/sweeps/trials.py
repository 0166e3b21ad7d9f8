"""A sweep on disk: spec.json says what it is, trials.jsonl holds every trial that ended.

trials.jsonl is the truth: one object a trial, appended as each ends. Of two objects with one id the
later counts: a trial that failed is tried again by the next start. Older versions let further
processes write trials-<member>.jsonl beside it; those are read.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.container.disk import sync_folder
from pipeline.digests import sealed, unsealed
from pipeline.errors import ConfigError
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
"""Trained to the end; its numbers left the finite ones; an error, described in `error`; cut."""
REACHED = "reached"
"""Of a Record that is on no disk: the trial waits for its next rung."""
TRIALS = "trials.jsonl"
OURS = ("study.journal", "shared.json", "selection.json", "reproduced.json", "parked", "claims",
        "members", "spec.json")  # fmt: skip
"""Of a sweep, beside its files of trials; set aside in this order, so that none is without spec."""

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


def make_trial(number: int, settings: dict, seed: int) -> Trial:
    """The trial; its id is the first 12 hex digits of sha256 over settings and seed as JSON."""
    return Trial(number, settings, seed, run_id({**settings, "seed": seed}))


def configuration_id(settings: dict) -> str:
    """The name that all seeds of one configuration share, made like a trial's id."""
    return run_id(settings)


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


class SweepFolder:
    """The files of one sweep; records has the Record that counts of every id."""

    def __init__(self, folder: Path, records: dict[str, Record]) -> None:
        self.folder = folder
        self.records = records
        self._file = folder / TRIALS
        self._lines = self._file.open("ab")
        sync_folder(folder)

    def add(self, ended: Record) -> None:
        """Appends one trial, handed to the system before this returns; `sync` makes it last.

        One that stands there already, as what failed and fails again does, is not appended.
        Raises ConfigError when it cannot be written.
        """
        assert ended.status in STATUSES, ended.status
        said = finite(dataclasses.asdict(ended))
        fresh = Record(**said)
        if self.records.get(ended.id) != fresh:
            with errors_of(self.folder), naming(self._file):
                self._lines.write(line_of(said))
                self._lines.flush()
        self.records[ended.id] = fresh

    def sync(self) -> None:
        """Brings what was added onto the disk."""
        with errors_of(self.folder), naming(self._file):
            os.fsync(self._lines.fileno())

    def close(self) -> None:
        """Closes its file of trials."""
        # After a full disk the unwritten bytes cannot be flushed either: add reported that.
        with contextlib.suppress(OSError):
            self._lines.close()


@contextlib.contextmanager
def open_sweep(folder: Path, described: dict, *, force: bool = False) -> Iterator[SweepFolder]:
    """The folder of the sweep that `described` says, made when missing, locked while it is open.

    described  all that decides the trials and their numbers, as JSON can hold it
    force      start again: what the folder holds of a sweep is set aside in old-<n>/, for it may
               be hours of work

    Raises ConfigError when it holds another sweep (the first field that differs is named), when
    another process sweeps in it, when it cannot be written, and for a line, not the last, that is
    no trial.
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
    """The value with None for each number in it that is not finite."""
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
        ours = [*dict.fromkeys([TRIALS, *others]), *OURS]  # also one that cannot be looked up
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
