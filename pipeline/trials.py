"""A sweep on disk: spec.json says what it is, trials.jsonl holds every trial that ended.

trials.jsonl is the truth: one object a trial, appended as each ends. Of two objects with one id the
later counts: a trial that failed is tried again by the next start. Who joins a sweep writes a
trials-<member>.jsonl of its own, for lines that two machines append to one file on a network disk
may overwrite each other; when all trials have ended they are gathered in trials.jsonl.
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

from pipeline.config import ConfigError, run_id
from pipeline.locked_folder import cannot_write, first_difference, locked, replace_whole

STATUSES = ("done", "diverged", "failed", "pruned")
"""Trained to the end; its numbers left the finite ones; an error, told in `error`; cut."""
TRIALS = "trials.jsonl"
OURS = (TRIALS, "study.journal", "spec.json", "shared.json")


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
    """The files of one sweep; records has the Record that counts of every id.

    Its own file of trials nobody else writes: trials.jsonl is held by a lock, others by their name.
    """

    def __init__(self, folder: Path, records: dict[str, Record], own: str = TRIALS) -> None:
        self.folder = folder
        self.records = records
        self._own, self._sizes = own, {}
        self._lines = (folder / own).open("ab")

    def add(self, ended: Record) -> None:
        """Appends one trial, handed to the system before this returns.

        Raises ConfigError when it cannot be written.
        """
        assert ended.status in STATUSES, ended.status
        finite = _finite(dataclasses.asdict(ended))
        try:
            self._lines.write(_line(finite))
            self._lines.flush()
        except OSError as error:
            raise ConfigError(cannot_write(self.folder, error)) from error
        self.records[ended.id] = Record(**finite)

    def sync(self) -> None:
        """Brings what was added to where other machines see it."""
        try:
            os.fsync(self._lines.fileno())
        except OSError as error:
            raise ConfigError(cannot_write(self.folder, error)) from error

    def refresh(self) -> None:
        """Takes up what other members have added since; ConfigError for lines that are none."""
        for file in trial_files(self.folder):
            if file.name == self._own:
                continue
            with file.open("rb") as opened:  # opening it, unlike stat, asks a network disk anew
                size = os.fstat(opened.fileno()).st_size
            if self._sizes.get(file.name) != size:
                self._sizes[file.name] = size
                _add_better(self.records, read_trials(file)[0])

    def gather(self) -> None:
        """Every member's trials into trials.jsonl, by number, once all have ended.

        Whichever members do it, and however often: the file is the same.
        """
        others = [file for file in trial_files(self.folder) if file.name != TRIALS]
        if not any(file.stat().st_size for file in others):
            return
        self.records = read_all(self.folder)
        ended = sorted(self.records.values(), key=lambda each: each.number)
        fresh = self.folder / f"{self._own}.gathered"
        try:
            fresh.write_bytes(b"".join(_line(dataclasses.asdict(each)) for each in ended))
            os.replace(fresh, self.folder / TRIALS)
        except OSError as error:
            raise ConfigError(cannot_write(self.folder, error)) from error

    def close(self) -> None:
        """Closes its file of trials, and removes one of a member that ended none."""
        # After a full disk the unwritten bytes cannot be flushed either: that was told by add.
        with contextlib.suppress(OSError):
            self._lines.close()
            if self._own != TRIALS and not (self.folder / self._own).stat().st_size:
                (self.folder / self._own).unlink()


@contextlib.contextmanager
def open_sweep(folder: Path, described: dict, *, force: bool = False) -> Iterator[SweepFolder]:
    """The folder of the sweep that `described` says, made when missing, locked while it is open.

    described  all that decides the trials and their numbers, as JSON can hold it
    force      start anew: what the folder holds of a sweep is deleted

    Raises ConfigError when it holds another sweep (the first field that differs is named), when
    another process sweeps in it, and for a line, not the last, that is no trial.
    """
    way_out = f"wait for it, help it with ./run.sh sweep --join {folder}, or pass another --out"
    with locked(folder, "sweeping", way_out):
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


def trial_files(folder: Path) -> list[Path]:
    """trials.jsonl and then those of members that joined, by name; as far as they are there."""
    first = folder / TRIALS
    return [first] * first.exists() + sorted(folder.glob("trials-*.jsonl"))


def read_all(folder: Path) -> dict[str, Record]:
    """The Record that counts of every id in a sweep's folder, whoever of its members wrote it.

    One that failed counts less than another; else the one that stands in the earlier file.
    """
    records: dict[str, Record] = {}
    for file in trial_files(folder):
        _add_better(records, read_trials(file)[0])
    return records


def _add_better(records: dict[str, Record], more: dict[str, Record]) -> None:
    for id, each in more.items():
        if id not in records or (records[id].status == "failed" and each.status != "failed"):
            records[id] = each


def _line(finite: dict) -> bytes:
    return json.dumps(finite, allow_nan=False).encode() + b"\n"


def _prepare(folder: Path, described: dict, force: bool) -> dict[str, Record]:
    spec, trials = folder / "spec.json", folder / "trials.jsonl"
    described = json.loads(json.dumps(described, allow_nan=False))
    if force:
        for file in [*(folder / name for name in OURS), *trial_files(folder)]:
            file.unlink(missing_ok=True)
        for name in ("claims", "members"):
            shutil.rmtree(folder / name, ignore_errors=True)
    if spec.exists():
        _refuse_other(spec, described)
    elif trials.exists():
        raise ConfigError(f"{folder}: has trials.jsonl but no spec.json; --force starts anew")
    else:
        replace_whole(spec, (json.dumps(described, indent=2, sort_keys=True) + "\n").encode())
    own, good = read_trials(trials)
    if trials.exists():
        os.truncate(trials, good)
        if own and not trials.read_bytes().endswith(b"\n"):
            with trials.open("ab") as opened:
                opened.write(b"\n")
    return read_all(folder)


def _refuse_other(spec: Path, described: dict) -> None:
    try:
        found = json.loads(spec.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{spec}: is no JSON ({error}); --force starts anew") from error
    differs = first_difference(found, described)
    if differs:
        name, old, new = differs
        raise ConfigError(
            f"{spec.parent}: holds a sweep with {name or 'spec'} = {old}, but {new} is asked for; "
            "pass another --out, or --force to delete it and start anew"
        )


def _parse(line: bytes) -> Record:
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("not an object")
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
