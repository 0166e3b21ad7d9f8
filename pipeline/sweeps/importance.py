"""Importance of each parameter of a sweep, one at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.groups import by_key
from pipeline.json_files import is_number
from pipeline.sweeps.space import Value

DISTINCT = 6
"""Numbers with more values are put into four groups of nearly equal size: with a group for each
draw of a random search, every parameter would explain everything."""


@dataclass(frozen=True)
class Influence:
    """One parameter: the share of the scores' variance that its groups explain."""

    name: str
    share: float | None
    """0 to 1; None if no group has two trials or all scores are equal."""
    groups: int
    best: str
    """The group with the highest mean: a value, or low..high."""
    best_mean: float


def influences(settings: Sequence[Mapping[str, Value]], scores: Sequence[float]) -> list[Influence]:
    """Epsilon squared of each parameter that varies, the largest first.

    One-way analysis of variance of n scores in the k groups of a parameter's values:

        share = max(0, (SS_between - (k - 1) * SS_within / (n - k)) / SS_total)

    It is eta squared (SS_between / SS_total) less what k groups explain of pure noise on average,
    so that a parameter without influence gets about 0 even with few trials. Parameters are tested
    one at a time: interactions count for none. Numbers of more than DISTINCT values are grouped by
    quartile. The seed may be one of the parameters.

    settings  of each trial, with the same names
    scores    (n,) finite
    Source: Kelley, PNAS 21 (1935) 554; Okada, Behaviormetrika 40 (2013) 129 on its small bias.
    """
    scores = np.asarray(scores, float)
    names = settings[0] if settings else ()
    found = [_influence(name, [each[name] for each in settings], scores) for name in names]
    return sorted(
        (each for each in found if each.groups > 1),
        key=lambda each: (each.share is None, -(each.share or 0), each.name),
    )


def grouped(values: Sequence[Value]) -> list[str]:
    """The name of each value's group: the value itself, or the ends of its quartile."""
    distinct = set(values)
    if len(distinct) <= DISTINCT or not all(map(is_number, distinct)):
        return [label(value) for value in values]
    # inverted_cdf takes edges from the values themselves, so that equal values stay together
    edges = np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf")
    quartile = np.searchsorted(edges, values, side="left")
    ends = by_key(zip(quartile.tolist(), values, strict=True))
    names = {q: f"{label(min(part))}..{label(max(part))}" for q, part in ends.items()}
    return [names[q] for q in quartile.tolist()]


def label(value: Value) -> str:
    """A value as tables show it: fractions with 6 digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _influence(name: str, values: Sequence[Value], scores: np.ndarray) -> Influence:
    groups = by_key(zip(grouped(values), scores, strict=True))
    means = {group: float(np.mean(part)) for group, part in groups.items()}
    best = max(means, key=means.get)
    n, k = len(scores), len(groups)
    total = float(((scores - scores.mean()) ** 2).sum())
    within = sum(float(((np.asarray(part) - means[g]) ** 2).sum()) for g, part in groups.items())
    share = None
    # Below the rounding error of n equal scores there is no variance to explain.
    if n > k and total > n * (np.finfo(float).eps * abs(scores).max()) ** 2:
        share = max(0.0, (total - within - (k - 1) * within / (n - k)) / total)
    return Influence(name, share, k, best, means[best])
