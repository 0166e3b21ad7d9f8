"""SHA-256 digests in a run's and a sweep's own files, so that damage is told and not computed with.

A changed digit in a file of JSON is still JSON. Objects therefore carry "sha256" over the rest of
them, adapter files over their facts and tensors, and `done` lists the digests of a finished run's
files as `sha256sum -c done` reads them.
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
    """The object with the digest of the rest of it as its last field."""
    rest = {name: value for name, value in found.items() if name != NAME}
    return {**rest, NAME: digest(rest)}


def unsealed(found: object) -> dict[str, Any]:
    """The object without its digest; ValueError for anything else than what `sealed` gave."""
    if not isinstance(found, dict):
        raise ValueError("not an object")
    rest = {name: value for name, value in found.items() if name != NAME}
    if found.get(NAME) != digest(rest):
        raise ValueError("its sha256 is not that of the rest of it: damaged, or edited by hand")
    return rest


def digest(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> str:
    """The first 16 hex digits of SHA-256 over facts as sorted JSON, then arrays by name.

    Of an array its CRC-32 is taken: 9 ms of a checkpoint of 17 MB, where SHA-256 takes 50.
    """
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, array in sorted((arrays or {}).items()):
        crc = zlib.crc32(np.ascontiguousarray(array).data)
        found.update(f"{name} {array.dtype.str} {array.shape} {crc:08x}".encode())
    return found.hexdigest()[:16]


def digests_of(folder: Path, leave_out: Collection[str] = ()) -> str:
    """What `done` holds: a line "<SHA-256>  <name>" for each of a finished run's files."""
    lines = []
    for name in FINISHED:
        if name not in leave_out and (folder / name).exists():
            with open_plain(folder / name, LARGEST[name]) as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


def check_done(folder: Path, leave_out: Collection[str] = ()) -> None:
    """Raises ConfigError when a file of a finished run is there and not as `done` says.

    leave_out  names of files that are not read: hundreds of runs have gigabytes of adapters

    Older versions wrote an empty `done`, which says nothing; an empty one of this version is what
    a power cut leaves. Raises DamagedDone for that, and for one that is no list of these files.
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
            raise _damaged(done, f"{ascii(line[:80])} is not a line of it")
        seen[name] = written
    if not seen:
        raise _damaged(done, "it is empty")
    for name, written in seen.items():
        if now.get(name, written) != written:
            raise ConfigError(
                f"{folder / name} is not as it was when the run ended: damaged, or edited; copy "
                "it again, or --force sets the run's files aside and trains it again"
            )
    if now.keys() - seen:
        raise _damaged(done, f"it does not list {min(now.keys() - seen)}")


def _damaged(done: Path, why: str) -> DamagedDone:
    return DamagedDone(
        f"{done} is damaged ({why}), as a power cut may leave it; the run's own command checks the "
        "other files and finishes the run again"
    )


def _is_of_older_version(folder: Path) -> bool:
    """Whether the run was finished before `done` listed anything: adapters had no digest then.

    A run that trains nothing (zero-shot) has no adapters, and nothing that an old one lacks.
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
