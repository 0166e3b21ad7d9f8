"""Shards, the n parts of an extraction: parsing, launchers, and their images."""

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cache.store import merge_shards, shard_rows
from cache.table import FeatureTable
from pipeline.datasets.find import refuse_copies
from pipeline.datasets.stated import Stated
from pipeline.datasets.tree import ImageTree
from pipeline.errors import ConfigError

LOG = logging.getLogger(__name__)

MOST = 100_000


class Shard(NamedTuple):
    """Part `index` of `count`, counted from 1."""

    index: int
    count: int


class Task(NamedTuple):
    """A launcher's description of this process: its shard as "i/n", its number on this machine."""

    shard: str
    local: int


def parse_shard(words: str) -> Shard | None:
    """2/8 -> Shard(2, 8); 1/1 is the whole: None. Raises ConfigError for anything else."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", words.strip())
    shard = Shard(*map(int, found.groups())) if found else None
    if not shard or not 1 <= shard.index <= shard.count <= MOST:
        raise ConfigError(f"--shard {words!r}: must be i/n, such as 2/8 for the second of eight")
    return shard if shard.count > 1 else None


def launched_task(environment: Mapping[str, str], level: int = logging.INFO) -> Task | None:
    """The shard of a process in a group started by torchrun or Slurm's srun; None: it is alone.

    torchrun  RANK of WORLD_SIZE, and LOCAL_RANK on its machine
    srun      SLURM_PROCID of SLURM_STEP_NUM_TASKS, and SLURM_LOCALID

    A batch script itself has SLURM_PROCID=0 and perhaps SLURM_NTASKS=8 without other processes:
    that is logged and is not a shard. Nor is a job array, which may as well run over data sets.
    level  of the log message about the result

    Raises ConfigError for invalid numbers.
    """
    for name, rank, size, local in (
        ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ):
        if rank not in environment or size not in environment:
            continue
        try:
            index, count = int(environment[rank]), int(environment[size])
            place = int(environment.get(local, "0"))
            fits = 0 <= index < count <= MOST and place >= 0
        except ValueError:
            fits = False
        if not fits:
            raise ConfigError(
                f"{rank}={environment[rank]} and {size}={environment[size]} do not name a process "
                "of a group; unset them, or pass --shard i/n"
            )
        if count > 1:
            LOG.log(
                level, f"{name} started {count} of these: this one is --shard {index + 1}/{count}"
            )
            return Task(f"{index + 1}/{count}", place)
    if environment.get("SLURM_NTASKS", "1") != "1" and "SLURM_STEP_NUM_TASKS" not in environment:
        LOG.log(
            level,
            f"SLURM_NTASKS is {environment['SLURM_NTASKS']}, but srun did not start this: encoding "
            "everything here; start the command with srun for one shard per task",
        )
    return None


def part_of(tree: ImageTree, shard: Shard, batch: int) -> ImageTree:
    """The images of a shard, with the names of all classes and domains.

    Raises ConfigError when the data set has fewer batches than shards.
    """
    rows = shard_rows(len(tree.paths), batch, *shard)
    blocks = -(-len(tree.paths) // batch)
    if blocks < shard.count:
        raise ConfigError(
            f"--shard {shard.index}/{shard.count}: {len(tree.paths):,} images are {blocks} batches "
            f"of {batch}, and each shard needs one; use up to {blocks} shards, or a smaller "
            "--batch"
        )
    mine = slice(rows.start, rows.stop)
    return dataclasses.replace(
        tree,
        paths=tree.paths[mine],
        labels=tree.labels[mine],
        domains=tree.domains[mine],
        split=None if tree.split is None else tree.split[mine],
        places=tree.places and tree.places[mine],
    )


def merge(
    files: Sequence[Path], out: Path | None, *, force: bool = False, accept: Sequence[str] = ()
) -> Path:
    """cache.store.merge_shards, after checking the whole for copies in other domains or splits.

    The extraction of each shard has only compared its own images.
    Raises Doubtful for copies, unless `accept` has "duplicates" or the data set is a known one.
    """
    stated = Stated(accept=tuple(accept))

    def check(whole: FeatureTable, paths: list[str], digests: np.ndarray) -> None:
        tree = ImageTree(
            root=Path(files[0]).parent,
            domain_names=whole.domain_names,
            class_names=whole.class_names,
            paths=tuple(paths),
            labels=whole.labels,
            domains=whole.domains,
            ignored=(),
            layout=whole.identity.get("layout", "domain/class"),
            split=whole.split,
        )
        refuse_copies(str(whole.identity.get("dataset", "")), tree, digests, stated, LOG.warning)

    return merge_shards(files, out, force=force, check=check)


def pick_card(device: torch.device, local: int | None) -> torch.device:
    """The GPU of this process, of several; Slurm may show each process only its own."""
    if device.type != "cuda" or local is None:
        return device
    return torch.device("cuda", local % torch.cuda.device_count())
