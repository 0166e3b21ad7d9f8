"""A sweep that others began: what its folder says it is, and this process as one more member."""

import json
import logging
import math
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

from cache.store import compare_identity, read_table
from cache.table import CacheError
from kernels.backends import BackendUnavailable, pick_backend, pick_device
from pipeline.digests import unsealed
from pipeline.errors import ConfigError
from pipeline.plain_files import OBJECT, read_plain
from pipeline.runs.federate import cache_facts
from pipeline.settings import RunConfig
from pipeline.sweeps.claims import joined
from pipeline.sweeps.folder import SweepFolder
from pipeline.sweeps.run import read_shared, train_and_tell
from pipeline.sweeps.search import open_search
from pipeline.sweeps.spec import SweepSpec, read_description
from pipeline.sweeps.trials import read_all

LOG = logging.getLogger(__name__)


def join(
    folder: str | PathLike[str],
    *,
    cache: str | PathLike[str] | None = None,
    memory: int | None = None,
    budget: float = math.inf,
    select: str = "validation",
) -> dict:
    """Helps with a sweep: trains what no other member has claimed, until all trials have ended.

    folder  where `sweep` keeps it, on a disk that all members see; nobody need be at it now
    cache   the same content under another path; None: where the first member found it
    memory, budget, select  as in sweep; they are each member's own

    Returns what `sweep --json` prints: the same report at every member. Raises ConfigError for a
    folder without a sweep, one with halving, or settings that cannot be; StaleCache for another
    cache; BackendUnavailable where this machine has not the device or backend of the sweep.
    """
    folder = Path(folder)
    described, shared = read_described(folder), read_shared(folder)
    spec, base = _parsed(described, folder)
    if spec.halving:
        raise ConfigError(
            f"{folder}: its sweep halves, and every cut compares all trials of a rung in one "
            "process; only sweeps without --halving can be joined"
        )
    on = pick_device(str(described.get("device")))
    if pick_backend(described["backend"], on) != shared.backend:
        raise BackendUnavailable(
            f"{folder}: its trials are trained by {shared.backend}, and here auto is "
            f"{pick_backend(described['backend'], on)}; install what is missing (requirements.txt)"
        )
    file = Path(cache or shared.cache)
    if cache is None and not file.exists():
        raise CacheError(
            f"{file}: the cache of the sweep does not lie there on this machine; name where it "
            f"does: ./run.sh sweep CACHE --join {folder}"
        )
    table = read_table(file)
    compare_identity(
        described["cache"], cache_facts(table), file, f"join {folder} with the cache it is of"
    )
    with joined(folder) as claims, tempfile.TemporaryDirectory() as scratch:
        opened = SweepFolder(folder, read_all(folder), f"trials-{claims.name}.jsonl")
        try:
            # bayes: the study is made again from what has ended, by every member for itself.
            search = open_search(spec, base, Path(scratch), opened.records)
            most = search.state().most
            if len(opened.records) >= most:
                LOG.info("%s: all %d trials have ended; there is nothing left to do", folder, most)
            return train_and_tell(
                table, spec, base, opened, claims, search, on=on, backend=described["backend"],
                memory=memory, budget=budget, select=select, cache=shared.words, again={},
            )  # fmt: skip
        finally:
            opened.close()


def read_described(folder: Path) -> dict[str, Any]:
    """A sweep's spec.json; ConfigError when there is none or it is damaged."""
    file = folder / "spec.json"
    if not file.exists():
        raise ConfigError(
            f"--join {folder}: there is no sweep to join (no {file.name}); name the folder that "
            "the sweep was begun in"
        )
    try:
        found = unsealed(json.loads(read_plain(file, OBJECT)))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: is damaged ({error})") from error
    if not {"spec", "base", "cache", "backend"} <= found.keys():
        raise ConfigError(f"{file}: does not describe a sweep")
    return found


def _parsed(described: dict[str, Any], folder: Path) -> tuple[SweepSpec, RunConfig]:
    try:
        base = {**described["base"]}
        base["held_out"] = tuple(tuple(fold) for fold in base["held_out"])
        return read_description(described["spec"]), RunConfig(**base)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{folder / 'spec.json'}: was written by another version, or damaged ({error!r})"
        ) from error
