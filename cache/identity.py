"""The identity of a cache, what it was made from: its fingerprint, and how two differ."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from cache.table import StaleCache

_NOTHING = "nothing"
DIGEST_BYTES = 40  # of an image: its size as uint64, then its SHA-256; zeros: unreadable
RECREATE = "pass --force to recreate it, or another --out to keep both"


def fingerprint(identity: dict[str, Any]) -> str:
    """First 32 hex digits of sha256 over the identity as sorted, compact, ASCII JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def manifest_sha256(paths: Sequence[str], digests: np.ndarray) -> str:
    """SHA-256 as hex digits over path, size and content SHA-256 of every image, in order.

    digests  (N, DIGEST_BYTES) uint8; one of zeros counts as the word "unreadable"
    """
    total = hashlib.sha256()
    for path, digest in zip(paths, digests, strict=True):
        raw = digest.tobytes()
        size, content = int.from_bytes(raw[:8], "little"), raw[8:].hex()
        what = f"{size}\0{content}" if any(raw) else "unreadable"
        total.update(f"{path}\0{what}\n".encode())
    return total.hexdigest()


def compare_identity(
    asked: dict[str, Any], found: dict[str, Any], source: object, way_out: str = RECREATE
) -> None:
    """Raises StaleCache naming the first field in which `found` differs from `asked`.

    asked, found  JSON-able; nested fields are named as preprocessing.version or class_names.3
    source        the file whose identity `found` is;  way_out  what to do, for the message
    """
    try:
        wanted, there = _leaves(asked), _leaves(found)
    except RecursionError as error:
        raise StaleCache(f"{source}: its identity is nested too deeply") from error
    for field in {**wanted, **there}:
        ours, theirs = wanted.get(field, _NOTHING), there.get(field, _NOTHING)
        if ours != theirs:
            raise StaleCache(
                f"{source}: made with {field} = {_short(theirs)}, asked for {_short(ours)}; "
                f"{way_out}"
            )


def _leaves(value: object, name: str = "") -> dict[str, str]:
    """{"preprocessing.version": "13.0", ...}, every leaf as JSON text."""
    if isinstance(value, list | tuple):
        value = {str(number): item for number, item in enumerate(value)}
    if isinstance(value, dict) and value:
        leaves: dict[str, str] = {}
        for key, item in value.items():
            leaves |= _leaves(item, f"{name}.{key}" if name else str(key))
        return leaves
    return {name: json.dumps(value)}


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:70]}... ({len(text)} characters)"
