"""A sweep's folder while a process works in it: its lock, and its file of trials."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cache.container.disk import sync_folder
from pipeline.digests import sealed, unsealed
from pipeline.errors import ConfigError
from pipeline.files import (
    errors_of,
    first_difference,
    locked,
    naming,
    replace_whole,
    set_aside,
)
from pipeline.plain_files import LOG, OBJECT, read_plain
from pipeline.sweeps.trials import (
    STATUSES,
    TRIALS,
    Record,
    finite,
    line_of,
    read_all,
    read_trials,
    trial_files,
)

OURS = ("study.journal", "shared.json", "selection.json", "reproduced.json", "parked", "claims",
        "members", "spec.json")  # fmt: skip
"""Of a sweep, beside its files of trials; set aside in this order, so that none is without spec."""

WAY_OUT = "restore it from a copy, or pass --force to move the sweep's files aside and start again"


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
    differs = first_difference(found, described)
    if differs:
        name, old, new = differs
        raise ConfigError(
            f"{spec.parent}: holds a sweep with {name or 'spec'} = {old}, but {new} was requested; "
            "pass another --out, or --force to move it to old-<n>/ and start again"
        )
