"""SHA-256 digests in a run's and a sweep's own files, so that damage is told and not computed with.

A changed digit in a file of JSON is still JSON. Objects therefore carry "sha256" over the rest of
them, adapter files over their facts and tensors, and `done` lists the digests of a finished run's
files as `sha256sum -c done` reads them.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import ConfigError

NAME = "sha256"
FINISHED = ("config.json", "rounds.jsonl", "adapter.safetensors", "summary.json")


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


def digests_of(folder: Path) -> str:
    """What `done` holds: a line "<SHA-256>  <name>" for each of a finished run's files."""
    lines = []
    for name in FINISHED:
        if (folder / name).exists():
            with (folder / name).open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


def check_done(folder: Path) -> None:
    """Raises ConfigError when a file of a finished run is there and not as `done` says.

    An empty `done`, as older versions wrote it, says nothing.
    """
    done = folder / "done"
    listed = done.read_bytes().decode("utf-8", "replace").splitlines()
    now = dict(line.split("  ")[::-1] for line in digests_of(folder).splitlines())
    seen = set()
    for line in listed:
        written, _, name = line.partition("  ")
        if name not in FINISHED or name in seen or len(written) != 64:
            raise ConfigError(f"{done} is damaged; --force trains this run again")
        seen.add(name)
        if now.get(name, written) != written:
            raise ConfigError(
                f"{folder / name} is not as it was when the run ended: damaged, or edited; copy "
                "it again, or --force trains the run again"
            )
    if listed and now.keys() - seen:
        raise ConfigError(f"{done} is damaged: it lists no {min(now.keys() - seen)}")
