"""A run on disk: config.json, rounds.jsonl, adapter.safetensors, summary.json, done.

adapter.safetensors is also the checkpoint: it holds the best and the last adapters so far and the
round they belong to, and is replaced atomically; resuming truncates rounds.jsonl to it. A file is
written only when what it refers to is on the disk: the lines of rounds.jsonl before a checkpoint of
them, all others before `done`.
"""

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save  # torch's refuses best and last in one memory
from torch import Tensor

from cache.container.disk import sync_folder
from kernels.heads.plain import Kind, as_rows
from pipeline.digests import KEY, LARGEST, NAME, check_done, digest, digests_of
from pipeline.errors import ConfigError, DamagedDone
from pipeline.files import (
    ADAPTERS,
    LOG,
    OBJECT,
    check_plain,
    errors_of,
    locked,
    naming,
    read_plain,
    refuse_other,
    replace_whole,
    set_aside,
)
from pipeline.json_files import read_object
from pipeline.settings import RunConfig

BEST = "best."  # what names of the kept rounds' tensors begin with
SHARE = 0.05  # of the time spent may go into checkpoints
FIRST_COST = 0.1
"""Assumed seconds of the first checkpoint; with PACS's features it takes 0.05 to 0.09. Runs shorter
than 2 seconds (at SHARE) are saved only at their end."""
WRITTEN = ("done", "summary.json", "rounds.jsonl", "adapter.safetensors", "config.json")
"""In order of removal: a file that refers to others goes first."""
MOST_ROUNDS = RunConfig.__dataclass_fields__["rounds"].metadata["high"]
TYPES = (torch.float32, torch.int64)  # of the training state; int64 counts steps
WAY_OUT = "restore it from a copy, or pass --force to move the run's files aside and train again"


class RunFolder:
    """The files of one run, held by a lock while it trains."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.adapter_file = folder / "adapter.safetensors"
        self.notes: list[str] = []
        """Messages on files that were ignored, and what was done with them."""
        self._rounds = None
        self._log = hashlib.sha256()  # of rounds.jsonl so far
        self._saved, self._cost = 0.0, FIRST_COST

    @property
    def summary(self) -> dict | None:
        """The results of a finished run; None for an unfinished one, or if `done` or they are lost.

        Raises ConfigError if a file has changed since the end.
        """
        if not (self.folder / "done").exists():
            return None
        try:
            check_done(self.folder)
        except DamagedDone as error:
            self.notes.append(str(error))
            return None
        file = self.folder / "summary.json"
        if not file.exists():
            self.notes.append(f"{file} is missing; finishing the run again from its checkpoint")
            return None
        return read_object(file, WAY_OUT)

    @property
    def rounds_sha256(self) -> str:
        """SHA-256 of the lines of rounds.jsonl so far, shortened."""
        return _short(self._log)

    def describe(self, described: dict, *, force: bool) -> None:
        """Writes config.json, or checks that the folder holds this run.

        force  replaces an existing run; a damaged one, parts of which may still be useful, is moved
        to old-<n>/
        Raises ConfigError naming the first setting that differs.
        """
        file = self.folder / "config.json"
        if file.exists() and not force:
            refuse_other(
                self.folder, "run", read_object(file, WAY_OUT), described, "replace the run"
            )
            return
        self._clear()
        replace_whole(file, (json.dumps(described, indent=2, sort_keys=True) + "\n").encode())

    def _clear(self) -> None:
        there = [name for name in WRITTEN if os.path.lexists(self.folder / name)]
        if there and not self._is_sound(there):
            aside = set_aside(self.folder, WRITTEN)
            self.notes.append(
                f"{self.folder}: the existing run is damaged and was moved to {aside}"
            )
            return
        for name in there:
            (self.folder / name).unlink()
            sync_folder(self.folder)

    def _is_sound(self, there: list[str]) -> bool:
        notes = list(self.notes)
        try:
            for name in there:
                check_plain(self.folder / name, LARGEST.get(name, OBJECT))
            read_object(self.folder / "config.json", WAY_OUT)
            return self.summary is not None or (self.notes == notes and bool(self._checkpoint()))
        except ConfigError:
            return False
        finally:
            self.notes = notes

    def resume(self) -> tuple[dict[str, Tensor], dict] | None:
        """The tensors and facts of the last checkpoint; truncates rounds.jsonl to it.

        None if there is nothing to resume; rounds.jsonl is then empty. Raises ConfigError for files
        that are damaged, or another run's.
        """
        found, kept = self._checkpoint()
        if (self.folder / "summary.json").exists():  # replaced at the end, perhaps after hours
            check_plain(self.folder / "summary.json", OBJECT)
        self._log = hashlib.sha256(kept)
        (self.folder / "done").unlink(missing_ok=True)  # a damaged one: see summary
        # Without a checkpoint this empties the log: a kill between the first round's line and the
        # first checkpoint leaves a line that the run would write again.
        replace_whole(self.folder / "rounds.jsonl", kept)
        return found

    def _checkpoint(self) -> tuple[tuple[dict[str, Tensor], dict] | None, bytes]:
        """The last checkpoint (None before the first) and the log that it was saved with."""
        log, file = self.folder / "rounds.jsonl", self.adapter_file
        lines = read_plain(log, LOG).splitlines(keepends=True) if log.exists() else []
        if not file.exists():
            return None, b""
        tensors, facts = read_adapters(file, WAY_OUT)
        done = facts["rounds_done"]
        if len(lines) < done:
            raise ConfigError(
                f"{log}: has {len(lines)} of the {done} rounds that {file.name} was saved with; "
                f"{WAY_OUT}"
            )
        kept = b"".join(lines[:done])
        if facts.get("rounds_sha256") != _short(hashlib.sha256(kept)):
            raise ConfigError(f"{log}: does not match {file.name}: damaged or edited; {WAY_OUT}")
        if facts.get("belongs_to") != read_object(self.folder / "config.json", WAY_OUT):
            raise ConfigError(f"{file}: belongs to another run; {WAY_OUT}")
        return (tensors, facts), kept

    def add_round(self, line: str) -> None:
        """Appends one object to rounds.jsonl and flushes it."""
        if self._rounds is None:
            self._rounds = (self.folder / "rounds.jsonl").open("ab")
            sync_folder(self.folder)
            self._saved = time.perf_counter()
        with naming(self.folder / "rounds.jsonl"):
            self._rounds.write(line.encode() + b"\n")
            self._log.update(line.encode() + b"\n")
            self._rounds.flush()

    def due(self) -> bool:
        """Whether a checkpoint would take under 5 % of the time since the last one."""
        return self._cost <= SHARE * (time.perf_counter() - self._saved)

    def checkpoint(self, tensors: dict[str, Tensor], facts: dict) -> None:
        """Saves tensors and facts."""
        started = time.perf_counter()
        self._sync_log()
        facts = {**facts, "rounds_sha256": self.rounds_sha256}
        write_adapters(self.adapter_file, tensors, facts)
        self._saved = time.perf_counter()
        self._cost = self._saved - started

    def finish(self, summary: dict) -> None:
        """Writes summary.json, then `done` with the digests of all files."""
        self._sync_log()
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        replace_whole(self.folder / "summary.json", text.encode())
        replace_whole(self.folder / "done", digests_of(self.folder).encode())

    def _sync_log(self) -> None:
        if self._rounds is not None:
            with naming(self.folder / "rounds.jsonl"):
                os.fsync(self._rounds.fileno())

    def close(self) -> None:
        """Closes rounds.jsonl."""
        if self._rounds is not None:
            # After a full disk the unwritten bytes cannot be flushed either; add_round reported it.
            with contextlib.suppress(OSError):
                self._rounds.close()


@contextlib.contextmanager
def open_run(folder: Path) -> Iterator[RunFolder]:
    """The folder of one run, created if missing and locked against a second writer.

    Raises ConfigError if another process trains in it or a file in it cannot be written; other
    OSErrors pass unchanged.
    """
    with locked(folder, "training"), errors_of(folder):
        run = RunFolder(folder)
        try:
            yield run
        finally:
            run.close()


def write_adapters(
    file: Path, tensors: dict[str, Tensor], facts: dict, *, lasting: bool = True
) -> None:
    """Writes safetensors with best.<part> and last.<part>, an adapter in each row, and JSON facts.

    lasting  see replace_whole
    """
    whole = {name: tensor.cpu().contiguous().numpy() for name, tensor in tensors.items()}
    facts = {**facts, NAME: digest(facts, whole)}
    content = save(whole, {KEY: json.dumps(facts, sort_keys=True)})
    replace_whole(file, content, lasting=lasting)


def read_adapters(
    file: Path, way_out: str = "restore it from a copy"
) -> tuple[dict[str, Tensor], dict]:
    """Reads a file of write_adapters.

    way_out  the end of a message: what to do
    Raises ConfigError for any other file, or a damaged one.
    """
    check_plain(file, ADAPTERS)
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {}).get(KEY, "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        check_facts(facts)
        odd = next((name for name, t in tensors.items() if t.dtype not in TYPES), None)
        if odd is not None:
            raise ValueError(f"{odd[:60]!r} is {tensors[odd].dtype}")
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{file}: cannot be read as an adapter file of a run ({error}); {way_out}"
        ) from error
    rest = {name: value for name, value in facts.items() if name != NAME}
    if facts.get(NAME) != digest(rest, {name: t.numpy() for name, t in tensors.items()}):
        raise ConfigError(
            f"{file}: is damaged, or of an older version: its sha256 does not match its contents; "
            f"{way_out}"
        )
    return tensors, rest


def check_facts(facts: Any) -> None:
    """Raises ValueError, saying what is wrong, for facts that no training writes.

    rounds_done   a count;  chosen  by fold null or {"round", "val_accuracy", "test_accuracy"} of a
    finished round, with accuracies from 0 to 1, and "val_loss" where it chooses rounds
    adapters, belongs_to, rounds_sha256  of the right type if present
    """
    if not isinstance(facts, dict) or not {"rounds_done", "chosen"} <= facts.keys():
        raise ValueError("it has no facts of a run")
    done = facts["rounds_done"]
    if type(done) is not int or not 0 <= done <= MOST_ROUNDS:
        raise ValueError(f"rounds_done is {_shown(done)}, not a count up to {MOST_ROUNDS:,}")
    if not isinstance(facts["chosen"], list):
        raise ValueError(f"chosen is {_shown(facts['chosen'])}, not a list")
    for each in facts["chosen"]:
        if each is not None:
            _check_chosen(each, done)
    for name, kind in (("adapters", list), ("belongs_to", dict), ("rounds_sha256", str)):
        if not isinstance(facts.get(name, kind()), kind):
            raise ValueError(f"{name} is {_shown(facts[name])}, not a {kind.__name__}")


def checkpoint_doubts(folder: Path) -> list[str]:
    """Reasons to doubt the files of an unfinished run; [] if there are none."""
    file, log = folder / "adapter.safetensors", folder / "rounds.jsonl"
    if not file.exists() or not log.exists():
        return []
    try:
        _, facts = read_adapters(file)
        lines = read_plain(log, LOG).splitlines(keepends=True)[: facts["rounds_done"]]
    except ConfigError as error:
        return [str(error)]
    if facts.get("rounds_sha256") == _short(hashlib.sha256(b"".join(lines))):
        return []
    return ["rounds.jsonl does not match the checkpoint: damaged, or edited."]


def read_first_adapter(file: str | PathLike[str], kind: Kind) -> Tensor:
    """Reads one adapter to start from, (P,): a safetensors file of its parts, or a run's file.

    A run's file must hold one adapter, of which the best round's is used. Raises ConfigError
    otherwise.
    """
    file = Path(file)
    if not file.exists():
        raise ConfigError(f"--init-adapter {file}: no such file")
    check_plain(file, ADAPTERS)
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            prefix = BEST if any(name.startswith(BEST) for name in names) else ""
            parts = {
                name.removeprefix(prefix): opened.get_tensor(name)
                for name in names
                if name.startswith(prefix)
            }
            row = as_rows(kind, parts)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(
            f"--init-adapter {file}: needs a safetensors file with the parts of this adapter "
            f"({error})"
        ) from error
    if row.ndim == 2 and len(row) != 1:
        raise ConfigError(
            f"--init-adapter {file}: contains {len(row)} adapters, one for each held-out "
            "domain; pass a file of a run with one held-out domain"
        )
    if not row.isfinite().all():
        raise ConfigError(f"--init-adapter {file}: contains numbers that are not finite")
    return row.reshape(-1)


def _short(found) -> str:
    return found.hexdigest()[:16]


def _check_chosen(chosen: Any, done: int) -> None:
    names = {"round", "val_accuracy", "test_accuracy"}
    if not isinstance(chosen, dict) or chosen.keys() - {"val_loss"} != names:
        raise ValueError(
            f"chosen has {_shown(chosen)}, not an object of {', '.join(sorted(names))}"
        )
    round, tested = chosen["round"], chosen["test_accuracy"]
    if type(round) is not int or not 0 <= round < done:
        raise ValueError(f"chosen has round {_shown(round)}, not one of the {done} finished")
    if not isinstance(tested, dict):
        raise ValueError(f"chosen has test_accuracy {_shown(tested)}, not an object")
    # Without validation rows (choose last, closed-form) there is no val_accuracy.
    for value in (v for v in (chosen["val_accuracy"], *tested.values()) if v is not None):
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise ValueError(f"chosen has accuracy {_shown(value)}, not a fraction from 0 to 1")
    loss = chosen.get("val_loss")
    if loss is not None and (type(loss) not in (int, float) or not 0 <= loss < math.inf):
        raise ValueError(f"chosen has val_loss {_shown(loss)}, not a loss")


def _shown(value: Any) -> str:
    return ascii(value)[:60]
