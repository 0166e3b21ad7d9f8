"""The feature cache on disk: FeatureTable <-> one HDF5 file; docs/cache-format.md is its schema.

Other packages use the cache on disk only through this file.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cache.container.checksums import (
    check_features,
    content_of,
    damaged_part,
    file_sha256,
    load_features,
    read_region,
    refuse_damage,
)
from cache.container.contents import OK, TODO, UNREADABLE, decode_paths, read_contents
from cache.container.disk import AnyPath, partial_of
from cache.container.opening import open_writer
from cache.container.userblock import SCHEMA, UserBlock, open_cache
from cache.container.writer import Writer
from cache.identity import compare_identity, fingerprint
from cache.shards import merge_shards, shard_identity, shard_path, shard_rows
from cache.table import BLOCK_ROWS, CacheError, FeatureTable, no_features

__all__ = [
    "OK",
    "SCHEMA",
    "UNREADABLE",
    "Writer",
    "check_features",
    "compare_identity",
    "fingerprint",
    "info",
    "load_features",
    "merge_shards",
    "no_features",
    "open_writer",
    "partial_of",
    "read_paths",
    "read_table",
    "shard_identity",
    "shard_path",
    "shard_rows",
    "verify",
    "write_table",
]


def read_table(path: AnyPath) -> FeatureTable:
    """The readable rows of a complete cache, everything but the features checked.

    The features are mapped and not read; load_features reads and checks them. Only if the cache has
    unreadable rows are its features loaded and checked here, to leave those rows out.
    Raises CacheError when the cache is damaged, incomplete or not trustworthy.
    """
    path = Path(path)
    table = _readable(path)
    if "shard" in table.identity:
        raise CacheError(
            f"{path} is shard {_shard_number(table.identity)} of a cache, not the whole; "
            "run ./run.sh cache merge with all its shards"
        )
    if not len(table.features):
        raise CacheError(f"{path}: not one of its images could be read")
    return table


def _readable(path: Path) -> FeatureTable:
    """The readable rows, perhaps none, of a complete cache or shard."""
    with open_cache(path) as (file, block):
        _refuse_partial(block, path)
        table, status = read_contents(file, block, path)
        keep = status == OK
        if keep.all():
            return table
        check_features(table, keep)
        return replace(
            table,
            features=table.features[keep],
            labels=table.labels[keep],
            domains=table.domains[keep],
            split=None if table.split is None else table.split[keep],
            block_crc32=None,
        )


def read_paths(path: AnyPath, *, all_rows: bool = False) -> list[str]:
    """The image path of each row of read_table, relative and with /; "" where none is stored.

    all_rows  include unreadable rows, and allow an unfinished cache
    """
    path = Path(path)
    with open_cache(path) as (file, block):
        if not all_rows:
            _refuse_partial(block, path)
        refuse_damage(file, block, path, paths=True)
        status = np.frombuffer(read_region(file, block.regions["row_status"]), np.uint8)
        raw = read_region(file, block.regions["paths"])
    names = decode_paths(raw, block.rows, str(path)) if raw else [""] * block.rows
    return [name for name, one in zip(names, status, strict=True) if all_rows or one == OK]


def verify(path: AnyPath) -> None:
    """Read every byte of a complete cache; raises CacheError naming the damaged part.

    Also checks that every row is usable (docs/cache-format.md) and matches content_sha256.
    """
    path = Path(path)
    with open_cache(path) as (file, block):
        _refuse_partial(block, path)
        if file_sha256(file) != block.file_sha256:
            part = damaged_part(file, block)
            raise CacheError(f"{path} is damaged in its {part}; copy or recreate it")
    table = _readable(path)
    check_features(table)
    read_paths(path)
    found = content_of(table)
    if found != table.content_sha256:
        raise CacheError(
            f"{path}: its content has SHA-256 {found}, but it records {table.content_sha256}; "
            "it was not made by this code, recreate it"
        )


def info(path: AnyPath) -> dict[str, Any]:
    """Describe a cache, complete or .partial, as JSON-able facts. The features are not read.

    rows is the number of all rows; rows_done were tried, and unreadable of those have no features.
    """
    path = Path(path)
    with open_cache(path) as (file, block):
        table, status = read_contents(file, block, path)
    rows, width = table.features.shape
    counts = np.bincount(table.domains[status != UNREADABLE], minlength=len(table.domain_names))
    return {
        "file": str(path),
        "bytes": block.file_bytes,
        "complete": block.complete,
        "rows": rows,
        "rows_done": int((status != TODO).sum()),
        "unreadable": int((status == UNREADABLE).sum()),
        "width": width,
        "dtype": table.features.dtype.name,
        "classes": len(table.class_names),
        "domains": len(table.domain_names),
        "class_names": list(table.class_names),
        "domain_names": list(table.domain_names),
        "rows_per_domain": dict(zip(table.domain_names, counts.tolist(), strict=True)),
        "split": table.split is not None,
        "paths": block.regions["paths"].nbytes > 0,
        "logit_scale": table.logit_scale,
        "dataset": table.identity.get("dataset"),
        "model": table.identity.get("model"),
        "schema": SCHEMA,
        "shard": _shard_number(table.identity),
        "fingerprint": table.fingerprint,
        "content_sha256": table.content_sha256 if block.complete else None,
        "identity": table.identity,
    }


def write_table(path: AnyPath, table: FeatureTable, *, force: bool = False) -> None:
    """Write a table as a complete cache, features as they are; CacheError if path exists."""
    check_features(table)
    with open_writer(path, table, force=force) as writer:
        todo = writer.todo  # a killed import of the same table may have left some rows done
        for start in range(0, len(todo), BLOCK_ROWS):
            rows = todo[start : start + BLOCK_ROWS]
            writer.put(rows, table.features[rows], np.full(len(rows), OK))
        writer.publish()


def _shard_number(identity: dict[str, Any]) -> str | None:
    """ "2/8" of a shard; None for a whole cache."""
    facts = identity.get("shard")
    return f"{facts.get('index')}/{facts.get('count')}" if isinstance(facts, dict) else None


def _refuse_partial(block: UserBlock, path: Path) -> None:
    if not block.complete:
        raise CacheError(
            f"{path} is incomplete: the extraction has not finished; `./run.sh extract` with the "
            "same options resumes it"
        )
