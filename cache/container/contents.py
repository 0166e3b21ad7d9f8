"""Encode and decode the small parts of a cache: names, labels, status, text features."""

import json
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cache.container.checksums import read_region, refuse_damage
from cache.container.layout import METADATA_BYTES, read_places
from cache.container.userblock import SCHEMA, UserBlock
from cache.identity import fingerprint
from cache.table import CacheError, FeatureTable, check_small

TODO, OK, UNREADABLE = 0, 1, 2  # row_status
_MOST_KEYS, _MOST_VALUES, _LONGEST_TEXT, _DEEPEST = 10_000, 250_000, 1 << 16, 32  # of metadata
# A JSON string; an unclosed one extends to the end, so that each byte is read once.
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+\\?(?:"|\Z)', re.DOTALL)


def encode_metadata(table: FeatureTable) -> bytes:
    """The table's names, logit scale and identity as JSON, for people and read_contents."""
    fields = {
        "schema": SCHEMA,
        "class_names": table.class_names,
        "domain_names": table.domain_names,
        "logit_scale": table.logit_scale,
        "identity": table.identity,
    }
    raw = json.dumps(fields, indent=1, allow_nan=False).encode()
    if len(raw) > METADATA_BYTES:
        raise CacheError(
            f"{table.source}: names and identity take {len(raw):,} bytes as JSON, more than the "
            f"{METADATA_BYTES:,} a cache may hold"
        )
    refuse_excess(raw, table.source)
    return raw


def encode_paths(paths: list[str], rows: int, source: str) -> bytes:
    """Every path as UTF-8 followed by a zero byte; undecodable file names keep their bytes."""
    if len(paths) != rows or any("\0" in path for path in paths):
        raise CacheError(f"{source}: {len(paths)} paths for {rows} rows, or a zero byte in one")
    return "".join(path + "\0" for path in paths).encode("utf-8", "surrogateescape")


def decode_paths(raw: bytes, rows: int, source: str) -> list[str]:
    """The rows' paths; CacheError when their number is wrong or one leaves its folder."""
    inside = b"\0" + raw
    if raw.count(b"\0") != rows or not raw.endswith(b"\0"):
        raise CacheError(f"{source}: its paths do not match its {rows} rows")
    if any(part in inside for part in (b"\0/", b"\0../", b"/../", b"/..\0", b"\0..\0")):
        raise CacheError(f"{source}: a path in it is absolute or leads upwards with ..")
    return raw.decode("utf-8", "surrogateescape").split("\0")[:-1]


def read_contents(
    file: BinaryIO, block: UserBlock, path: Path, *, paths: bool = False
) -> tuple[FeatureTable, np.ndarray]:
    """All rows of a cache, finished or not, unreadable ones included, and row_status (N,) uint8.

    paths  whether to check those of the images for damage as well

    The features are mapped, not read. Raises CacheError when anything else is damaged,
    untrustworthy or inconsistent.
    """
    refuse_damage(file, block, path, paths=paths)
    places = read_places(path, block.file_bytes)
    for name, region in block.regions.items():
        if (places[name].region if name in places else (0, 0)) != region:
            raise CacheError(f"{path}: HDF5 and the file's first bytes disagree on {name}")

    def array(name: str) -> np.ndarray:
        place = places[name]
        return np.frombuffer(read_region(file, place.region), place.dtype).reshape(place.shape)

    mapped = np.memmap(
        file, places["features"].dtype, "r", places["features"].offset, places["features"].shape
    )
    metadata, mark = _decode_metadata(array("metadata").tobytes(), path)
    if ("image_digests" in places) != ("shard" in metadata["identity"]):
        raise CacheError(f"{path}: image_digests are in shards and only there; refusing to read it")
    table = FeatureTable(
        source=str(path),
        features=mapped.view(np.ndarray),
        labels=array("labels").astype(np.int64),
        domains=array("domains").astype(np.int64),
        text_features=array("text_features").astype(np.float32),
        logit_scale=metadata["logit_scale"],
        class_names=tuple(metadata["class_names"]),
        domain_names=tuple(metadata["domain_names"]),
        split=array("split").astype(np.int8) if "split" in places else None,
        identity=metadata["identity"],
        fingerprint=mark,
        content_sha256=block.content_sha256,
        block_crc32=array("block_crc32").astype(np.uint32),
    )
    check_small(table)
    status = array("row_status").copy()
    if status.max() > UNREADABLE or (block.complete and not status.all()):
        raise CacheError(f"{path}: row_status holds invalid values; refusing to read it")
    return table, status


def read_digests(file: BinaryIO, block: UserBlock, path: Path) -> np.ndarray:
    """A shard's (n, DIGEST_BYTES) uint8 of each row's image; read_contents has checked the file."""
    place = read_places(path, block.file_bytes)["image_digests"]
    return np.frombuffer(read_region(file, place.region), np.uint8).reshape(place.shape)


def refuse_excess(raw: bytes, source: object) -> None:
    """Raises CacheError for JSON that exceeds a cache's keys, values, depth or string length.

    Checked before parsing: a million keys in 4 MiB would take seconds to parse, hash and compare.
    """
    longest = max(map(len, _TEXT.findall(raw)), default=0)
    structure = _TEXT.sub(b"", raw)
    counts = {
        "keys": (structure.count(b":"), _MOST_KEYS),
        "values": (structure.count(b","), _MOST_VALUES),
        "bytes in one text": (longest, _LONGEST_TEXT),
    }
    for what, (count, most) in counts.items():
        if count > most:
            raise CacheError(
                f"{source}: its names and identity have {count:,} {what} as JSON, more than the "
                f"{most:,} a cache may have"
            )
    brackets = re.sub(rb"[^][{}]+", b"", structure)
    for _ in range(_DEEPEST):  # each pass removes the innermost brackets
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise CacheError(
            f"{source}: its metadata is not the JSON of a cache, or nested more than {_DEEPEST} "
            "levels deep"
        )


def _decode_metadata(raw: bytes, path: Path) -> tuple[dict[str, Any], str]:
    """The metadata with each field's type checked, and the identity's fingerprint."""
    refuse_excess(raw, path)
    try:
        metadata = json.loads(raw.decode())
        mark = fingerprint(metadata["identity"])
        types = {"class_names": list, "domain_names": list, "logit_scale": float, "identity": dict}
        wrong = [name for name, kind in types.items() if type(metadata[name]) is not kind]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheError(f"{path}: its metadata is not the JSON of a cache") from error
    if wrong or metadata.get("schema") != SCHEMA:
        raise CacheError(f"{path}: its metadata has no fitting {', '.join(wrong) or 'schema'}")
    return metadata, mark
