"""Shards, the n parts of an extraction: which rows each holds, and merging them."""

import hashlib
import itertools
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cache.container.checksums import read_region
from cache.container.contents import decode_paths, encode_paths, read_contents, read_digests
from cache.container.disk import AnyPath, partial_of
from cache.container.opening import facts_of, open_writer
from cache.container.userblock import UserBlock, open_cache
from cache.container.writer import Writer
from cache.identity import compare_identity, manifest_sha256
from cache.table import BLOCK_ROWS, CacheError, FeatureTable, no_features

_NAME = re.compile(r"\.shard-\d+-of-\d+$")
_COUNTS = ("index", "count", "rows", "batch")
_DIGESTS = ("paths_sha256", "manifest_sha256")
Check = Callable[[FeatureTable, list[str], np.ndarray], None]
_SHOWN = 8  # missing shards listed; the rest is a count


@dataclass(frozen=True)
class _Shard:
    path: Path
    file: BinaryIO
    block: UserBlock
    table: FeatureTable
    status: np.ndarray
    paths: list[str]
    facts: dict[str, Any]

    @property
    def rows(self) -> range:
        """The rows of the whole that these are."""
        return shard_rows(*(self.facts[name] for name in ("rows", "batch", "index", "count")))


def shard_rows(rows: int, batch: int, index: int, count: int) -> range:
    """The rows of shard `index` of `count`, counted from 1: consecutive whole batches.

    Of the blocks of `batch` rows, the first floor(blocks * index / count) belong to the
    shards up to this one. A feature's last bits depend on the images it is encoded with, so
    splitting a batch would not give the bytes of an extraction in one piece.
    """
    blocks = -(-rows // batch)
    first, stop = (blocks * number // count * batch for number in (index - 1, index))
    return range(first, min(stop, rows))


def shard_path(whole: AnyPath, index: int, count: int) -> Path:
    """The file of a shard, beside that of the whole: x.h5 -> x.shard-2-of-8.h5."""
    whole = Path(whole)
    return whole.with_name(f"{whole.stem}.shard-{index}-of-{count}{whole.suffix}")


def shard_identity(
    whole: dict[str, Any], paths: Sequence[str], *, index: int, count: int, batch: int
) -> dict[str, Any]:
    """The identity of a shard: the whole's, with a manifest of only the shard's rows.

    whole  as of a cache in one piece, with the manifest_sha256 of the shard's images
    paths  of all rows of the whole, in order
    """
    shared = {name: value for name, value in whole.items() if name != "manifest_sha256"}
    shared["shard"] = {
        "index": index,
        "count": count,
        "rows": len(paths),
        "batch": batch,
        "paths_sha256": _paths_sha256(paths),
        "manifest_sha256": whole["manifest_sha256"],
    }
    return shared


def merge_shards(
    files: AnyPath | Iterable[AnyPath],
    out: AnyPath | None = None,
    *,
    force: bool = False,
    check: Check = lambda whole, paths, digests: None,
) -> Path:
    """Merge all shards of an extraction into the cache that it would have been in one piece.

    files  every shard once, in any order;  out  None: their name without .shard-i-of-n
    force  replace what is at out
    check  is called before anything is written, with the whole without its features, the paths of
           its images and their digests, (N, DIGEST_BYTES) uint8

    Features are read, compared with their checksums and written BLOCK_ROWS rows at a time; after a
    kill, the next call resumes. Text features are those of shard 1. Returns out.
    Raises StaleCache for shards of different extractions, with the first field that differs;
    CacheError for a shard that is missing, given twice, unfinished or damaged, and for other files.
    """
    if isinstance(files, str | os.PathLike):
        files = [files]
    with ExitStack() as stack:
        shards = [_open(stack, Path(path)) for path in files]
        if not shards:
            raise CacheError("no shard is given; name all of one extraction")
        shards.sort(key=lambda shard: shard.facts["index"])
        for shard in shards[1:]:
            compare_identity(
                _common(shards[0]),
                _common(shard),
                shard.path,
                f"it does not belong to {shards[0].path}; leave one of the two out",
            )
        _refuse_gaps(shards)
        first, table = shards[0], shards[0].table
        out = Path(out) if out else _whole_path(first.path)
        paths = [path for shard in shards for path in shard.paths]
        identity, digests = _whole_identity(shards, paths)
        merged = replace(
            table,
            identity=identity,
            features=no_features(len(paths), table.features.shape[1], table.features.dtype),
            labels=np.concatenate([shard.table.labels for shard in shards]),
            domains=np.concatenate([shard.table.domains for shard in shards]),
            split=_whole_split(shards),
        )
        check(merged, paths, digests)
        with open_writer(out, merged, paths=paths, force=force) as writer:
            for shard in shards:
                _copy(shard, writer)
            writer.publish()
    return out


def _open(stack: ExitStack, path: Path) -> _Shard:
    file, block = stack.enter_context(open_cache(path))
    if not block.complete:
        raise CacheError(f"{path} is not complete; run the command that began it to resume it")
    table, status = read_contents(file, block, path, paths=True)
    facts = table.identity.get("shard")
    if facts is None:
        raise CacheError(f"{path} is a cache in one piece, not a shard; there is nothing to merge")
    if not _sound(facts, block.rows):
        raise CacheError(f"{path}: its description as a shard is invalid; refusing to read it")
    paths = decode_paths(read_region(file, block.regions["paths"]), block.rows, str(path))
    return _Shard(path, file, block, table, status, paths, facts)


def _sound(facts: object, rows: int) -> bool:
    """Whether these are valid facts of a shard with so many rows."""
    if not isinstance(facts, dict) or facts.keys() != {*_COUNTS, *_DIGESTS}:
        return False
    counts = [facts[name] for name in _COUNTS]
    if any(type(count) is not int or not 0 < count < 1 << 40 for count in counts):
        return False
    index, count, whole, batch = counts
    return index <= count and len(shard_rows(whole, batch, index, count)) == rows


def _common(shard: _Shard) -> dict[str, Any]:
    """What all shards of one extraction have in common."""
    own = {"index", "manifest_sha256"}
    facts = facts_of(shard.table)
    del facts["rows"], facts["split"]
    return {
        **shard.table.identity,
        "shard": {name: value for name, value in shard.facts.items() if name not in own},
        **facts,
    }


def _refuse_gaps(shards: Sequence[_Shard]) -> None:
    for one, other in zip(shards, shards[1:], strict=False):
        if one.facts["index"] == other.facts["index"]:
            raise CacheError(
                f"{one.path} and {other.path} are both shard {_number(one)}; leave one of them out"
            )
    count, there = shards[0].facts["count"], {shard.facts["index"] for shard in shards}
    missing = count - len(there)
    if missing:
        named = list(_missing(shards[0].path, count, there))
        more = f" and {missing - len(named)} more" if missing > len(named) else ""
        raise CacheError(
            f"of {count} shards {missing} are missing: {', '.join(named)}{more}; name all of them, "
            "and create the missing ones with ./run.sh extract --shard"
        )


def _whole_path(shard: Path) -> Path:
    return shard.with_name(_NAME.sub("", shard.stem) + shard.suffix)


def _missing(beside: Path, count: int, there: set[int]) -> Iterator[str]:
    """The first missing shards in words, with their unfinished files."""
    numbers = (number for number in range(1, count + 1) if number not in there)
    for number in itertools.islice(numbers, _SHOWN):
        partial = partial_of(shard_path(_whole_path(beside), number, count))
        yield f"{number}/{count}" + (f" ({partial} is unfinished)" if partial.exists() else "")


def _number(shard: _Shard) -> str:
    return f"{shard.facts['index']}/{shard.facts['count']}"


def _whole_identity(
    shards: Sequence[_Shard], paths: list[str]
) -> tuple[dict[str, Any], np.ndarray]:
    """The identity of the whole, and the digests of its images."""
    facts = shards[0].facts
    if _paths_sha256(paths) != facts["paths_sha256"]:
        raise CacheError(
            f"{shards[0].path} and the others: their paths are not those of the data set they "
            "were extracted from; extract them again"
        )
    digests = []
    for shard in shards:
        own = read_digests(shard.file, shard.block, shard.path)
        if manifest_sha256(shard.paths, own) != shard.facts["manifest_sha256"]:
            raise CacheError(f"{shard.path}: its image digests contradict its manifest_sha256")
        digests.append(own)
    identity = {name: value for name, value in shards[0].table.identity.items() if name != "shard"}
    whole = np.concatenate(digests)
    return identity | {"manifest_sha256": manifest_sha256(paths, whole)}, whole


def _whole_split(shards: Sequence[_Shard]) -> np.ndarray | None:
    parts = [shard.table.split for shard in shards]
    there = [part for part in parts if part is not None]
    if there and len(there) < len(parts):
        raise CacheError(f"{shards[0].path} and the others: some have a split and some do not")
    return np.concatenate(there) if there else None


def _copy(shard: _Shard, writer: Writer) -> None:
    """Put the shard's rows that are still to do, after checking each block of them."""
    todo = np.zeros(shard.facts["rows"], bool)
    todo[writer.todo] = True
    todo = todo[shard.rows.start : shard.rows.stop]
    features, crcs = shard.table.features, shard.table.block_crc32
    assert crcs is not None  # read_contents always has them
    for number, start in enumerate(range(0, len(todo), BLOCK_ROWS)):
        stop = min(start + BLOCK_ROWS, len(todo))
        # Read, not mapped: the pages of a mapped file count as this process's memory.
        raw = read_region(shard.file, shard.block.features_of(number))
        if zlib.crc32(raw) != crcs[number]:
            raise CacheError(
                f"{shard.path} is damaged in its features, rows {start} to {stop - 1}; copy or "
                f"extract shard {_number(shard)} again"
            )
        block = np.frombuffer(raw, features.dtype.newbyteorder("<")).reshape(stop - start, -1)
        new = np.flatnonzero(todo[start:stop])
        rows = shard.rows.start + start + new
        writer.put(rows, block[new], shard.status[start:stop][new])
    writer.flush()


def _paths_sha256(paths: Sequence[str]) -> str:
    return hashlib.sha256(encode_paths(list(paths), len(paths), "paths")).hexdigest()
