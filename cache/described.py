"""Describe a table in sentences: its sizes, and what in it is unusual."""

from collections.abc import Iterator

import numpy as np

from cache.container.checksums import row_blocks
from cache.npz_values import shown
from cache.table import SPLITS, FeatureTable

UNIT = 0.01  # the largest distance of a unit length from 1; float16's rounding is below it


def row_lengths(rows: np.ndarray) -> np.ndarray:
    """(N,) float32, the lengths of rows (N, D)."""
    blocks = [np.linalg.norm(block.astype(np.float32), axis=1) for block in row_blocks(rows)]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def is_unit(lengths: np.ndarray) -> np.ndarray:
    """(N,) bool, whether each length is 1 within UNIT."""
    return abs(lengths - 1) <= UNIT


def summary(table: FeatureTable, lengths: np.ndarray) -> list[str]:
    """One sentence each on rows, width, dtype, classes, domains, splits, model, scale, lengths."""
    rows, width = table.features.shape
    by_domain = np.bincount(table.domains, minlength=len(table.domain_names))
    domains = [f"{n} {c:,}" for n, c in zip(table.domain_names, by_domain.tolist(), strict=True)]
    split = "none; federate divides the rows itself"
    if table.split is not None:
        by_split = np.bincount(table.split, minlength=len(SPLITS)).tolist()
        split = ", ".join(f"{name} {count:,}" for name, count in zip(SPLITS, by_split, strict=True))
    unit = "unit length" if is_unit(lengths).all() else "raw length"
    return [
        f"{rows:,} rows, width {width}, {table.features.dtype.name}; dataset "
        f"{table.identity.get('dataset') or 'not given'}, model "
        f"{table.identity.get('model') or 'not given'}",
        f"{len(table.class_names):,} classes: {shown(table.class_names)}",
        f"{len(table.domain_names):,} domains, by rows: {shown(domains)}",
        f"split: {split}",
        f"logit scale (the multiplier): {table.logit_scale:g}",
        f"features: {unit}, mean {lengths.mean():.4g} ({lengths.min():.4g} to {lengths.max():.4g})",
    ]


def surprises(table: FeatureTable, lengths: np.ndarray) -> Iterator[str]:
    """One sentence for each thing that is valid but probably unintended."""
    unit = is_unit(lengths)
    if unit.any() and not unit.all():
        others = lengths[~unit]
        yield (
            f"{unit.sum():,} of {len(unit):,} feature rows have length 1, the others "
            f"{others.min():.4g} to {others.max():.4g}: were only some normalised?"
        )
    for kind, names, numbers in (
        ("classes", table.class_names, table.labels),
        ("domains", table.domain_names, table.domains),
    ):
        empty = np.flatnonzero(np.bincount(numbers, minlength=len(names)) == 0)
        if len(empty):
            yield f"{len(empty):,} {kind} have no rows: {shown([names[n] for n in empty])}"
    if table.split is not None:
        yield from _split_gaps(table, table.split)
    yield from _equal_text(table)


def _split_gaps(table: FeatureTable, split: np.ndarray) -> Iterator[str]:
    counts = np.zeros((len(table.domain_names), len(SPLITS)), np.int64)
    np.add.at(counts, (table.domains, split), 1)
    for number, name in enumerate(SPLITS):
        lacking = np.flatnonzero((counts[:, number] == 0) & (counts.sum(axis=1) > 0))
        if len(lacking) == len(counts):
            yield f"no row is in the split {name}"
        elif len(lacking):
            yield f"domains without {name} rows: {shown([table.domain_names[n] for n in lacking])}"


def _equal_text(table: FeatureTable) -> Iterator[str]:
    """Classes whose text feature has the direction of an earlier one, to five decimals."""
    text = table.text_features.astype(np.float64)
    unit = np.round(text / np.linalg.norm(text, axis=1, keepdims=True), 5) + 0.0  # no -0
    seen: dict[bytes, str] = {}
    pairs = []
    for name, row in zip(table.class_names, unit, strict=True):
        first = seen.setdefault(row.tobytes(), name)
        if first != name:
            pairs.append(f"{name} (as {first})")
    if pairs:
        yield (
            f"classes with the text feature of an earlier class: {shown(pairs)}; they are never "
            "predicted, because the first of equal scores wins; give each class its own prompt"
        )
