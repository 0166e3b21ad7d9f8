"""SHA-256 digests in a run's and a sweep's own files, so that damage is reported, never used.

JSON with a changed digit is still JSON. Objects therefore carry "sha256" over their other fields,
adapter files over their facts and tensors, and `done` lists the digests of a finished run's files
in the format of `sha256sum -c done`.
"""

import hashlib
import json
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from pipeline.errors import ConfigError, DamagedDone
from pipeline.files import ADAPTERS, LOG, OBJECT, check_plain, open_plain, read_plain

NAME = "sha256"
KEY = "fedclip"  # the one metadata key: safetensors writes several keys in random order
LARGEST = {
    "config.json": OBJECT,
    "rounds.jsonl": LOG,
    "adapter.safetensors": ADAPTERS,
    "summary.json": OBJECT,
}
FINISHED = tuple(LARGEST)


def sealed(found: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the digest of an object's other fields as its last field."""
    rest = {name: value for name, value in found.items() if name != NAME}
    return {**rest, NAME: digest(rest)}


def unsealed(found: object) -> dict[str, Any]:
    """Checks and removes an object's digest; raises ValueError if it does not match."""
    if not isinstance(found, dict):
        raise ValueError("not an object")
    rest = {name: value for name, value in found.items() if name != NAME}
    if found.get(NAME) != digest(rest):
        raise ValueError("its sha256 does not match its other fields: damaged, or edited by hand")
    return rest


def digest(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> str:
    """The first 16 hex digits of SHA-256 over facts as sorted JSON, then arrays by name.

    Arrays contribute their CRC-32: 9 ms for a checkpoint of 17 MB, where SHA-256 takes 50.
    """
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, array in sorted((arrays or {}).items()):
        crc = zlib.crc32(np.ascontiguousarray(array).data)
        found.update(f"{name} {array.dtype.str} {array.shape} {crc:08x}".encode())
    return found.hexdigest()[:16]


def digests_of(folder: Path, leave_out: Collection[str] = ()) -> str:
    """The content of `done`: a line "<SHA-256>  <name>" for each of a finished run's files."""
    lines = []
    for name in FINISHED:
        if name not in leave_out and (folder / name).exists():
            with open_plain(folder / name, LARGEST[name]) as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


def check_done(folder: Path, leave_out: Collection[str] = ()) -> None:
    """Raises ConfigError if a file of a finished run does not match `done`.

    leave_out  names of files that are not read: hundreds of runs have gigabytes of adapters

    Older versions wrote an empty `done`; in this version an empty one is the result of a power cut.
    Raises DamagedDone for that, and for a `done` that does not list these files.
    """
    done = folder / "done"
    content = read_plain(done, OBJECT)
    if not content and _is_of_older_version(folder):
        return
    now = dict(line.split("  ")[::-1] for line in digests_of(folder, leave_out).splitlines())
    seen: dict[str, str] = {}
    for line in content.decode("utf-8", "replace").splitlines():
        written, _, name = line.partition("  ")
        if name not in FINISHED or name in seen or len(written) != 64:
            raise _damaged(done, f"unexpected line {ascii(line[:80])}")
        seen[name] = written
    if not seen:
        raise _damaged(done, "it is empty")
    for name, written in seen.items():
        if now.get(name, written) != written:
            raise ConfigError(
                f"{folder / name} has changed since the run ended: damaged, or edited; restore it "
                "from a copy, or pass --force to move the run's files aside and train again"
            )
    if now.keys() - seen:
        raise _damaged(done, f"it does not list {min(now.keys() - seen)}")


def _damaged(done: Path, why: str) -> DamagedDone:
    return DamagedDone(
        f"{done} is damaged ({why}), as after a power cut; run the same command to check the other "
        "files and finish the run again"
    )


def _is_of_older_version(folder: Path) -> bool:
    """Whether a version finished the run whose `done` was empty: its adapters have no digest.

    A run without adapters (zero-shot) counts as one if its log is empty too.
    """
    file, log = folder / "adapter.safetensors", folder / "rounds.jsonl"
    if not file.exists():
        return not (log.exists() and read_plain(log, LOG))
    check_plain(file, ADAPTERS)
    try:
        with safe_open(file, framework="np") as opened:
            facts = json.loads((opened.metadata() or {}).get(KEY, "null"))
    except (SafetensorError, OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and NAME not in facts
