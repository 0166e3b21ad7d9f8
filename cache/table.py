"""FeatureTable, what stage one passes to stage two; its checks, and the errors of a cache."""

import difflib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK_ROWS = 4096  # rows checked, hashed and converted at a time: 4 MiB at 512 x float16
LOGIT_SCALE_BOUND = 1e6  # CLIP's own is 100; up to this float32 tells scores 1 / 16 apart
_SQUARES = 1e-37, 1e37  # of lengths: a factor of ten within float32's range
SPLITS = ("train", "val", "test")  # what 0, 1 and 2 mean in FeatureTable.split


class CacheError(Exception):
    """A cache is damaged, incomplete, untrusted, or has no such name."""

    exit_code = 4


class StaleCache(CacheError):
    """Two caches, or a cache and a command, that do not match."""

    exit_code = 3


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """N rows of image features with labels and domains, and the C text features to compare with.

    source          the file's name, for messages
    features        (N, D) float16 or float32, as the encoder gave them; may be memory-mapped
    labels          (N,) int64, 0 <= label < C
    domains         (N,) int64, positions in domain_names
    text_features   (C, D) float32, one for each class, as the encoder gave them
    logit_scale     the multiplier, about 100 (CLIP's parameter of this name is its logarithm)
    class_names     C different names;    domain_names  likewise
    split           (N,) int8, 0 train 1 val 2 test; None when the cache fixes none
    identity        what the fingerprint is made from; JSON-able
    fingerprint     32 hex digits, see cache.identity.fingerprint
    content_sha256  64 hex digits, see cache.container.checksums.content_sha256
    block_crc32     uint32, one for each BLOCK_ROWS rows of features that are memory-mapped and
                    unchecked; None when features are in memory
    """

    source: str
    features: np.ndarray
    labels: np.ndarray
    domains: np.ndarray
    text_features: np.ndarray
    logit_scale: float
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    split: np.ndarray | None
    identity: dict[str, Any]
    fingerprint: str = ""
    content_sha256: str = ""
    block_crc32: np.ndarray | None = None


def no_features(rows: int, width: int, dtype: npt.DTypeLike) -> np.ndarray:
    """(rows, width) zeros that take no memory, for a table whose features are yet to be written."""
    return np.broadcast_to(np.zeros((), dtype), (rows, width))


def check_table(table: FeatureTable) -> None:
    """Raises CacheError for anything invalid in a table; reads all features once."""
    check_small(table)
    for start in range(0, len(table.features), BLOCK_ROWS):
        refuse_unusable(table.source, table.features[start : start + BLOCK_ROWS], start)


def check_small(table: FeatureTable) -> None:
    """check_table without reading the features' numbers. Raises CacheError."""
    source, features, text = table.source, table.features, table.text_features
    if features.ndim != 2 or 0 in features.shape:
        raise CacheError(
            f"{source}: features must be (N, D), N and D above 0; got {features.shape}"
        )
    if features.dtype not in (np.float16, np.float32):
        raise CacheError(f"{source}: features must be float16 or float32; got {features.dtype}")
    _check_names(source, "class", table.class_names)
    _check_names(source, "domain", table.domain_names)
    rows, width = features.shape
    if text.shape != (len(table.class_names), width) or text.dtype != np.float32:
        raise CacheError(
            f"{source}: text_features must be ({len(table.class_names)}, {width}) float32, a row a "
            f"class, as wide as the features; got {text.shape} {text.dtype}"
        )
    bad, what = unusable_rows(text)
    if len(bad):
        name = table.class_names[int(bad[0])]
        raise CacheError(f"{source}: the text feature of class {name!r} has {what}")
    if not 1 / LOGIT_SCALE_BOUND <= table.logit_scale <= LOGIT_SCALE_BOUND:
        raise CacheError(
            f"{source}: logit_scale must be above 0, from {1 / LOGIT_SCALE_BOUND:g} to "
            f"{LOGIT_SCALE_BOUND:g}; got {table.logit_scale}"
        )
    _check_numbers(source, "labels", table.labels, np.int64, rows, len(table.class_names))
    _check_numbers(source, "domains", table.domains, np.int64, rows, len(table.domain_names))
    if table.split is not None:
        _check_numbers(source, "split", table.split, np.int8, rows, len(SPLITS))


def refuse_unusable(
    source: str, features: np.ndarray, first_row: int, keep: np.ndarray | None = None
) -> None:
    """Raises CacheError naming the first of unusable_rows in features (n, D), if there are any.

    first_row  the number that the first of the n rows has in its table
    keep       (n,) bool, the rows to check; None for all
    """
    bad, what = unusable_rows(features, keep)
    if len(bad):
        row, last = first_row + int(bad[0]), first_row + len(features) - 1
        raise CacheError(
            f"{source}: {what} in the features of {len(bad)} of rows {first_row} to {last}, "
            f"first in row {row}; recreate the cache from valid features"
        )


def unusable_rows(rows: np.ndarray, keep: np.ndarray | None = None) -> tuple[np.ndarray, str]:
    """Which of rows (n, D) float have no direction in float32, as cosines need, and why.

    keep     (n,) bool, the rows to check; None for all
    returns  ascending row numbers, and what the first of them has: NaN or Inf, only zeros,
             or numbers whose squares overflow float32
    """
    sound = _sound(rows)
    if keep is not None:
        sound |= ~keep
    bad = np.flatnonzero(~sound)
    if not len(bad):
        return bad, ""
    first = rows[bad[0]]
    if not np.isfinite(first).all():
        return bad, "NaN or Inf"
    if np.abs(first).max() < 1:
        return bad, "zeros only, or nearly (no length, so no direction)"
    return bad, "numbers too large (their squares overflow float32)"


def _sound(rows: np.ndarray) -> np.ndarray:
    """(n,) bool: of rows (n, D), those whose sum of squares is within _SQUARES.

    All of float16's numbers are within: its rows only need one nonzero and neither NaN nor Inf.
    """
    if rows.dtype == np.float16 and rows.shape[1]:  # 5 GB/s; squares 0.5
        sizes = (rows.view(np.uint16) & 0x7FFF).max(axis=1)
        return np.asarray((sizes > 0) & (sizes < 0x7C00))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        wide = rows.astype(np.float32, copy=False)
        squares = np.einsum("ij,ij->i", wide, wide)
    return np.asarray((squares > _SQUARES[0]) & (squares < _SQUARES[1]))  # False for NaN


def domain_index(table: FeatureTable, name: str) -> int:
    """The number of the domain of this name; CacheError with the nearest name if it has none."""
    names = table.domain_names
    if name in names:
        return names.index(name)
    lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    hint = f" Did you mean {lower[near[0]]}?" if near else ""
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    raise CacheError(f"{table.source}: no domain {name!r}; it has {shown}.{hint}")


def _check_names(source: str, kind: str, names: tuple[str, ...]) -> None:
    if not names:
        raise CacheError(f"{source}: has no {kind} names; at least one is needed")
    for name in names:
        # Unprintable names could control the terminal that shows them.
        if not isinstance(name, str) or not name or not name.isprintable():
            raise CacheError(
                f"{source}: {name!r} is not a valid {kind} name; a name is printable text"
            )
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise CacheError(f"{source}: {kind} name {twice!r} is listed twice")


def _check_numbers(
    source: str, name: str, numbers: np.ndarray, dtype: type, rows: int, count: int
) -> None:
    if numbers.shape != (rows,) or numbers.dtype != dtype:
        wanted = f"({rows},) {np.dtype(dtype)}"
        raise CacheError(f"{source}: {name} must be {wanted}; got {numbers.shape} {numbers.dtype}")
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= count:
        row = int(np.argmax((numbers < 0) | (numbers >= count)))
        hint = "; they count from 1, subtract 1" if (low, high) == (1, count) else ""
        raise CacheError(
            f"{source}: {name} must be 0 to {count - 1}; row {row} has {int(numbers[row])}{hint}"
        )
