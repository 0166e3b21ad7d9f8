"""What a cache was made from, as one fingerprint, and the first field in which two differ."""

import hashlib
import json
from typing import Any

from cache.table import StaleCache

_NOTHING = "nothing"
ANEW = "pass --force to make it anew, or another --out to keep both"


def fingerprint(identity: dict[str, Any]) -> str:
    """First 32 hex digits of sha256 over the identity as sorted, compact, ASCII JSON."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def compare_identity(
    asked: dict[str, Any], found: dict[str, Any], source: object, way_out: str = ANEW
) -> None:
    """Raises StaleCache naming the first field in which found differs from asked.

    asked, found  JSON-able; nested fields are named as preprocessing.version or class_names.3
    source        whose identity `found` is, and way_out  what to do, for the message
    """
    try:
        wanted, there = _leaves(asked), _leaves(found)
    except RecursionError as error:
        raise StaleCache(f"{source}: its identity is nested too deeply to be one") from error
    for field in {**wanted, **there}:
        ours, theirs = wanted.get(field, _NOTHING), there.get(field, _NOTHING)
        if ours != theirs:
            raise StaleCache(
                f"{source}: made with {field} = {_short(theirs)}, asked for {_short(ours)}; "
                f"{way_out}"
            )


def _leaves(value: object, name: str = "") -> dict[str, str]:
    """{"preprocessing.version": "13.0", ...}, every leaf as its JSON text."""
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
