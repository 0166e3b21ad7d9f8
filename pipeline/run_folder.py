"""A run on disk: config.json, rounds.jsonl, adapter.safetensors, summary.json, done.

adapter.safetensors is the checkpoint too: it always holds the best and the last adapters so far
and the round they belong to, is replaced whole, and rounds.jsonl is cut back to it on resuming.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from kernels.adapter import AdapterState
from pipeline.config import ConfigError

KEY = "fedclip"  # the one metadata key: safetensors writes several keys in random order
SHARE = 0.05  # of the time spent may go into checkpoints


class RunFolder:
    """The files of one run, held by a lock while it trains."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.adapter_file = folder / "adapter.safetensors"
        self._rounds = None
        self._saved, self._cost = 0.0, 0.0

    @property
    def summary(self) -> dict | None:
        """The results of a finished run; None before that."""
        if not (self.folder / "done").exists():
            return None
        return json.loads((self.folder / "summary.json").read_text("utf-8"))

    def describe(self, described: dict, *, force: bool) -> None:
        """Writes config.json, or checks that the folder holds this very run.

        Raises ConfigError naming the first setting that differs.
        """
        file = self.folder / "config.json"
        if file.exists() and not force:
            _refuse_other(json.loads(file.read_text("utf-8")), described, self.folder)
            return
        for name in ("done", "summary.json", "rounds.jsonl", "adapter.safetensors"):
            (self.folder / name).unlink(missing_ok=True)
        _replace(file, (json.dumps(described, indent=2, sort_keys=True) + "\n").encode())

    def resume(self) -> tuple[dict[str, AdapterState], dict] | None:
        """The adapters and facts of the last checkpoint, with rounds.jsonl cut back to it.

        None when there is nothing to go on from; rounds.jsonl is empty then.
        """
        log = self.folder / "rounds.jsonl"
        lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        found = read_adapters(self.adapter_file) if self.adapter_file.exists() else None
        if found is not None and len(lines) < found[1]["rounds_done"]:
            found = None  # rounds are missing from the log: only training again brings them back
        # Without a checkpoint this empties the log: a kill between the first round's line and the
        # first checkpoint leaves a line that the run would write once more.
        _replace(log, b"".join(lines[: found[1]["rounds_done"]] if found else []))
        return found

    def add_round(self, line: str) -> None:
        """Appends one object to rounds.jsonl, handed to the system before this returns."""
        if self._rounds is None:
            self._rounds = (self.folder / "rounds.jsonl").open("ab")
            self._saved = time.perf_counter()
        self._rounds.write(line.encode() + b"\n")
        self._rounds.flush()

    def checkpoint(self, states: dict[str, AdapterState], facts: dict, *, now: bool) -> None:
        """Saves adapters and facts; unless `now`, only when it costs under 5 % of the time."""
        started = time.perf_counter()
        if not now and self._cost > SHARE * (started - self._saved):
            return
        write_adapters(self.adapter_file, states, facts)
        self._saved = time.perf_counter()
        self._cost = self._saved - started

    def finish(self, summary: dict) -> None:
        """Writes summary.json, then done."""
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        _replace(self.folder / "summary.json", text.encode())
        _replace(self.folder / "done", b"")

    def close(self) -> None:
        """Closes rounds.jsonl."""
        if self._rounds is not None:
            self._rounds.close()


@contextlib.contextmanager
def open_run(folder: Path) -> Iterator[RunFolder]:
    """The folder of one run, made when missing and locked against a second writer.

    Raises ConfigError when another process trains in it or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        with lock:
            run = RunFolder(folder)
            try:
                yield run
            finally:
                run.close()
    except filelock.Timeout:
        raise ConfigError(
            f"{folder}: another process is training in this folder; wait for it, or pass another "
            "--out"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot write the run here ({error.strerror or error}); free space or "
            "permissions, or pass another --out"
        ) from error


def write_adapters(file: Path, states: dict[str, AdapterState], facts: dict) -> None:
    """safetensors with <state>.<weight> for each state, one adapter a row, and JSON facts."""
    tensors = {
        f"{name}.{field}": weight.cpu().contiguous()
        for name, state in states.items()
        for field, weight in state._asdict().items()
    }
    _replace(file, save(tensors, {KEY: json.dumps(facts, sort_keys=True)}))


def read_adapters(file: Path) -> tuple[dict[str, AdapterState], dict]:
    """What write_adapters wrote.

    Raises ConfigError for a file that is not such a one.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {}).get(KEY, "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as an adapter file ({error})") from error
    names = sorted({name.split(".")[0] for name in tensors if "." in name})
    try:
        states = {
            name: AdapterState(*(tensors[f"{name}.{field}"] for field in AdapterState._fields))
            for name in names
        }
    except KeyError as error:
        raise ConfigError(
            f"{file}: holds no tensor {error.args[0]!r}; it is no adapter file of a run"
        ) from None
    return states, facts


def read_first_adapter(file: Path, width: int) -> AdapterState:
    """One adapter to start from: a safetensors file with w1, b1, w2, b2, or a run's own.

    A run's file must hold one adapter; its best one is taken. Raises ConfigError otherwise.
    """
    if not file.exists():
        raise ConfigError(f"--init-adapter {file}: there is no such file")
    try:
        with safe_open(file, framework="pt") as opened:
            names = set(opened.keys())
            prefix = "best." if "best.w1" in names else ""
            state = AdapterState(*(opened.get_tensor(prefix + f) for f in AdapterState._fields))
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"--init-adapter {file}: needs tensors w1, b1, w2, b2 in a safetensors file ({error})"
        ) from error
    if state.w1.ndim == 3 and len(state.w1) != 1:
        raise ConfigError(
            f"--init-adapter {file}: holds {len(state.w1)} adapters, one a held-out domain; name a "
            "file of a run that trained one"
        )
    state = AdapterState(
        *(
            w.reshape(w.shape[-(2 if f[0] == "w" else 1) :]).to(torch.float32)
            for f, w in state._asdict().items()
        )
    )
    if state.w1.shape != (width, width) or not all(w.isfinite().all() for w in state):
        raise ConfigError(
            f"--init-adapter {file}: w1 is {tuple(state.w1.shape)}; the cache's features are "
            f"{width} wide, and all numbers must be finite"
        )
    return state


def _refuse_other(found: dict, asked: dict, folder: Path) -> None:
    for part in sorted(asked.keys() | found.keys()):
        old, new = found.get(part), asked.get(part)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            name = next(k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k))
            part, old, new = f"{part}.{name}", old.get(name), new.get(name)
        raise ConfigError(
            f"{folder}: holds a run with {part} = {old!r}, but {new!r} is asked for; pass another "
            "--out, or --force to train this one in its place"
        )


def _replace(file: Path, content: bytes) -> None:
    """Writes the whole file or leaves the old one: a kill never leaves half of it."""
    fresh = file.with_name(file.name + ".tmp")
    fresh.write_bytes(content)
    os.replace(fresh, file)
