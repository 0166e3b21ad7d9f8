"""A run on disk: config.json, rounds.jsonl, adapter.safetensors, summary.json, done.

adapter.safetensors is the checkpoint too: it always holds the best and the last adapters so far
and the round they belong to, is replaced whole, and rounds.jsonl is cut back to it on resuming.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save  # torch's refuses best and last in one memory
from torch import Tensor

from kernels.heads import Kind, as_rows
from pipeline.config import ConfigError
from pipeline.locked_folder import cannot_write, first_difference, locked, replace_whole
from pipeline.seals import NAME, check_done, digest, digests_of

KEY = "fedclip"  # the one metadata key: safetensors writes several keys in random order
SHARE = 0.05  # of the time spent may go into checkpoints


class RunFolder:
    """The files of one run, held by a lock while it trains."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.adapter_file = folder / "adapter.safetensors"
        self._rounds = None
        self._log = hashlib.sha256()  # of rounds.jsonl so far
        self._saved, self._cost = 0.0, 0.0

    @property
    def summary(self) -> dict | None:
        """The results of a finished run; None before that.

        Raises ConfigError when a file of it is not as it was at the end.
        """
        if not (self.folder / "done").exists():
            return None
        check_done(self.folder)
        return _read_object(self.folder / "summary.json")

    @property
    def rounds_sha256(self) -> str:
        """Of the lines of rounds.jsonl so far."""
        return self._log.hexdigest()[:16]

    def describe(self, described: dict, *, force: bool) -> None:
        """Writes config.json, or checks that the folder holds this very run.

        Raises ConfigError naming the first setting that differs.
        """
        file = self.folder / "config.json"
        if file.exists() and not force:
            _refuse_other(_read_object(file), described, self.folder)
            return
        for name in ("done", "summary.json", "rounds.jsonl", "adapter.safetensors"):
            (self.folder / name).unlink(missing_ok=True)
        replace_whole(file, (json.dumps(described, indent=2, sort_keys=True) + "\n").encode())

    def resume(self) -> tuple[dict[str, Tensor], dict] | None:
        """The tensors and facts of the last checkpoint, with rounds.jsonl cut back to it.

        None when there is nothing to go on from; rounds.jsonl is empty then. Raises ConfigError for
        files that are damaged, or another run's.
        """
        log = self.folder / "rounds.jsonl"
        lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        found = read_adapters(self.adapter_file) if self.adapter_file.exists() else None
        if found is not None and len(lines) < found[1]["rounds_done"]:
            found = None  # rounds are missing from the log: only training again brings them back
        kept = b"".join(lines[: found[1]["rounds_done"]] if found else [])
        self._log = hashlib.sha256(kept)
        if found is not None:
            self._refuse_damage(found[1])
        # Without a checkpoint this empties the log: a kill between the first round's line and the
        # first checkpoint leaves a line that the run would write once more.
        replace_whole(log, kept)
        return found

    def _refuse_damage(self, facts: dict) -> None:
        if facts.get("rounds_sha256") != self.rounds_sha256:
            raise ConfigError(
                f"{self.folder / 'rounds.jsonl'}: is not what {self.adapter_file.name} was saved "
                "with: damaged, or edited; --force trains the run again"
            )
        if facts.get("belongs_to") != _read_object(self.folder / "config.json"):
            raise ConfigError(f"{self.adapter_file}: is another run's; --force trains this one")

    def add_round(self, line: str) -> None:
        """Appends one object to rounds.jsonl, handed to the system before this returns."""
        if self._rounds is None:
            self._rounds = (self.folder / "rounds.jsonl").open("ab")
            self._saved = time.perf_counter()
        self._rounds.write(line.encode() + b"\n")
        self._log.update(line.encode() + b"\n")
        self._rounds.flush()

    def checkpoint(self, tensors: dict[str, Tensor], facts: dict, *, now: bool) -> None:
        """Saves tensors and facts; unless `now`, only when it costs under 5 % of the time."""
        started = time.perf_counter()
        if not now and self._cost > SHARE * (started - self._saved):
            return
        write_adapters(self.adapter_file, tensors, facts)
        self._saved = time.perf_counter()
        self._cost = self._saved - started

    def finish(self, summary: dict) -> None:
        """Writes summary.json, then done, which lists what the files must be."""
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        replace_whole(self.folder / "summary.json", text.encode())
        replace_whole(self.folder / "done", digests_of(self.folder).encode())

    def close(self) -> None:
        """Closes rounds.jsonl."""
        if self._rounds is not None:
            # After a full disk the unwritten bytes cannot be flushed either; add_round told it.
            with contextlib.suppress(OSError):
                self._rounds.close()


@contextlib.contextmanager
def open_run(folder: Path) -> Iterator[RunFolder]:
    """The folder of one run, made when missing and locked against a second writer.

    Raises ConfigError when another process trains in it or it cannot be written.
    """
    with locked(folder, "training"):
        run = RunFolder(folder)
        try:
            yield run
        except OSError as error:
            raise ConfigError(cannot_write(folder, error)) from error
        finally:
            run.close()


def write_adapters(file: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    """safetensors with best.<part> and last.<part>, one adapter a row, and JSON facts."""
    whole = {name: tensor.cpu().contiguous().numpy() for name, tensor in tensors.items()}
    facts = {**facts, NAME: digest(facts, whole)}
    replace_whole(file, save(whole, {KEY: json.dumps(facts, sort_keys=True)}))


def read_adapters(file: Path) -> tuple[dict[str, Tensor], dict]:
    """What write_adapters wrote.

    Raises ConfigError for a file that is not such a one, or is damaged.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            facts = json.loads((opened.metadata() or {}).get(KEY, "null"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read as an adapter file ({error})") from error
    if not isinstance(facts, dict) or not {"rounds_done", "chosen"} <= facts.keys():
        raise ConfigError(f"{file}: holds no facts of a run; it is no adapter file of a run")
    rest = {name: value for name, value in facts.items() if name != NAME}
    if facts.get(NAME) != digest(rest, {name: t.numpy() for name, t in tensors.items()}):
        raise ConfigError(
            f"{file}: is damaged, or of an older version: its sha256 is not that of what it holds; "
            "copy it again, or --force trains the run again"
        )
    return tensors, rest


def unlike_checkpoint(folder: Path) -> list[str]:
    """Sentences on why what an unfinished run's files tell is doubtful; none when it is not."""
    file, log = folder / "adapter.safetensors", folder / "rounds.jsonl"
    if not file.exists() or not log.exists():
        return []
    try:
        _, facts = read_adapters(file)
    except ConfigError as error:
        return [str(error)]
    lines = log.read_bytes().splitlines(keepends=True)[: facts["rounds_done"]]
    if facts.get("rounds_sha256") == hashlib.sha256(b"".join(lines)).hexdigest()[:16]:
        return []
    return ["rounds.jsonl is not what the checkpoint was saved with: damaged, or edited."]


def read_first_adapter(file: Path, kind: Kind) -> Tensor:
    """One adapter to start from, (P,): a safetensors file of its parts, or a run's own.

    A run's file must hold one adapter; its best one is taken. Raises ConfigError otherwise.
    """
    if not file.is_file():  # opening a pipe would wait for its other end
        found = "is not a regular file" if file.exists() else "there is no such file"
        raise ConfigError(f"--init-adapter {file}: {found}")
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            prefix = "best." if any(name.startswith("best.") for name in names) else ""
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
            f"--init-adapter {file}: holds {len(row)} adapters, one a held-out domain; name a "
            "file of a run that trained one"
        )
    if not row.isfinite().all():
        raise ConfigError(f"--init-adapter {file}: holds numbers that are not finite")
    return row.reshape(-1)


def _read_object(file: Path) -> dict:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{file}: is damaged: no JSON ({error}); --force trains the run again"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: is damaged: no JSON object; --force trains the run again")
    return found


def _refuse_other(found: dict, asked: dict, folder: Path) -> None:
    differs = first_difference(found, asked)
    if differs:
        name, old, new = differs
        raise ConfigError(
            f"{folder}: holds a run with {name} = {old}, but {new} is asked for; pass another "
            "--out, or --force to train this one in its place"
        )
