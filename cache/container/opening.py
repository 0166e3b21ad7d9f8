"""Begin or resume a cache: its .partial is complete in size, or recognised as half made."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock

from cache.container.checksums import (
    crc32_of,
    read_region,
    static_crc32,
    unvouched_blocks,
)
from cache.container.contents import (
    TODO,
    decode_paths,
    encode_metadata,
    encode_paths,
    read_contents,
)
from cache.container.disk import (
    AnyPath,
    disk_error,
    lock,
    partial_of,
    refuse_folder,
    sync_folder,
    unlock,
)
from cache.container.layout import SMALL, lay_out
from cache.container.userblock import BYTES, REGIONS, Region, UserBlock, open_cache, pack
from cache.container.writer import Writer
from cache.identity import compare_identity
from cache.table import BLOCK_ROWS, CacheError, FeatureTable, StaleCache, check_small

_ZEROS = bytes(1 << 20)


def open_writer(
    path: AnyPath,
    table: FeatureTable,
    *,
    paths: Sequence[str] | None = None,
    image_digests: np.ndarray | None = None,
    force: bool = False,
) -> Writer:
    """Begin the cache `path`, or resume its .partial if that was begun for the same table.

    table          what to write, except the features: only their shape and dtype count here
    paths          N relative posix paths, or None
    image_digests  (N, DIGEST_BYTES) uint8 of a shard, whose identity vouches for them; else None
    force          replace what is at path, and begin again whatever the .partial holds

    All the disk space is taken here, so a full disk is found before the first image. A resumed
    .partial keeps its text features. Raises CacheError when path exists, another writer has
    it, or the disk refuses; StaleCache when the .partial was begun for something else.
    """
    path = Path(path)
    asked = replace(table, source=str(path))
    check_small(asked)
    names = None if paths is None else list(paths)
    refuse_folder(path)
    held = lock(path)
    try:
        if path.exists() and not force:
            raise CacheError(f"{path} exists; pass --force to replace it, or another --out")
        partial = partial_of(path)
        if force or _half_made(partial):
            partial.unlink(missing_ok=True)
        if not partial.exists():
            _create(partial, asked, names, image_digests)
        return _resume(path, held, asked, names)
    except OSError as error:
        unlock(held)
        raise disk_error(path, error, asked.features.nbytes) from error
    except BaseException:
        unlock(held)
        raise


def _resume(path: Path, held: BaseFileLock, asked: FeatureTable, paths: list[str] | None) -> Writer:
    partial = partial_of(path)
    try:
        with open_cache(partial) as (file, block):
            found, status = read_contents(file, block, partial, paths=True)
            assert found.block_crc32 is not None  # of every file that was read
            for number in unvouched_blocks(file, block, status, found.block_crc32):
                status[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS] = TODO
            raw = read_region(file, block.regions["paths"])
            names = decode_paths(raw, len(status), str(partial)) if raw else None
    except CacheError as error:
        raise CacheError(f"{error}; pass --force to begin again") from error
    _compare(asked, found, partial)
    if paths != names:
        raise StaleCache(f"{partial}: begun with other paths; pass --force to begin again")
    table = replace(asked, text_features=found.text_features)
    return Writer(path, held, block, table, status, paths)


def _compare(asked: FeatureTable, found: FeatureTable, partial: Path) -> None:
    """Raises StaleCache for the first difference; text features may differ by rounding."""
    compare_identity(asked.identity, found.identity, partial)
    compare_identity(facts_of(asked), facts_of(found), partial)
    for name in ("labels", "domains", "split"):
        ours, theirs = getattr(asked, name), getattr(found, name)
        if ours is not None and (ours != theirs).any():
            row = int(np.argmax(ours != theirs))
            raise StaleCache(
                f"{partial}: begun with {name}[{row}] = {theirs[row]}, asked for {ours[row]}; pass "
                "--force to begin again, or another --out to keep both"
            )


def facts_of(table: FeatureTable) -> dict[str, Any]:
    """What resumed caches, and shards of one extraction, have in common beside their identity."""
    return {
        "dtype": table.features.dtype.name,
        "rows": len(table.features),
        "width": table.features.shape[1],
        "class_names": table.class_names,
        "domain_names": table.domain_names,
        "logit_scale": table.logit_scale,
        "split": table.split is not None,
    }


def _half_made(partial: Path) -> bool:
    """Whether _create was killed, which writes the first 512 bytes last."""
    if not partial.is_file():
        return False
    with partial.open("rb") as file:
        return file.read(BYTES).count(0) == min(BYTES, partial.stat().st_size)


def _create(
    partial: Path, asked: FeatureTable, paths: list[str] | None, digests: np.ndarray | None
) -> None:
    """Create the .partial: all space taken, all small parts written, every row still to do."""
    values = _values(asked, paths)
    if digests is not None:
        values["image_digests"] = np.ascontiguousarray(digests, np.uint8)
    rows, width = asked.features.shape
    kind = asked.features.dtype.newbyteorder("<").str
    shapes = {name: (array.dtype.str, array.shape) for name, array in values.items()}
    shapes["features"] = (kind, (rows, width))
    need = sum(array.nbytes for array in values.values()) + asked.features.nbytes
    try:
        places = lay_out(partial, shapes)
        with partial.open("r+b") as file:
            for name, array in values.items():
                file.seek(places[name].offset)
                file.write(array.data)
            # Zeros, not a hole: a full disk is found now, not hours later.
            left = asked.features.nbytes
            file.seek(places["features"].offset)
            while left:
                left -= file.write(_ZEROS[:left])
            file.flush()
            regions = {name: Region(0, 0) for name in REGIONS}
            regions |= {name: places[name].region for name in REGIONS if name in places}
            size = partial.stat().st_size
            begin, nbytes = regions["paths"]
            block = UserBlock(
                complete=False,
                file_bytes=size,
                regions=regions,
                static_crc32=static_crc32(file, regions.values(), size),
                paths_crc32=crc32_of(file, begin, begin + nbytes),
            )
            os.fsync(file.fileno())
            file.seek(0)
            file.write(pack(block))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(partial.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise disk_error(partial, error, need) from error
        raise


def _values(asked: FeatureTable, paths: list[str] | None) -> dict[str, np.ndarray]:
    """{dataset: array} of what is written first: everything but the features."""
    rows = len(asked.labels)
    values = {
        "metadata": np.frombuffer(encode_metadata(asked), np.uint8),
        "labels": asked.labels.astype(_smallest(len(asked.class_names))),
        "domains": asked.domains.astype(_smallest(len(asked.domain_names))),
        "text_features": np.ascontiguousarray(asked.text_features, "<f4"),
        "row_status": np.zeros(rows, np.uint8),
        "block_crc32": np.zeros(-(-rows // BLOCK_ROWS), "<u4"),
    }
    if asked.split is not None:
        values["split"] = asked.split
    if paths is not None:
        values["paths"] = np.frombuffer(encode_paths(paths, rows, asked.source), np.uint8)
    return values


def _smallest(count: int) -> str:
    """The narrowest type for numbers below count."""
    return next(kind for kind in SMALL if count - 1 <= np.iinfo(kind).max)
