"""Mean, standard deviation and interval of a few numbers, as every table shows them."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.95
"""Of `interval`."""


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1); None for what too few values do not have."""

    mean: float | None
    std: float | None


def spread(values: Sequence[float]) -> Spread:
    """Spread of any number of values."""
    if not values:
        return Spread(None, None)
    return Spread(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


def tenths(values: Sequence[float]) -> tuple[float, float, float]:
    """The values a tenth, half and nine tenths of the way up."""
    ordered = sorted(values)
    low, middle, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.5, 0.9))
    return low, middle, high


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The t-interval of LEVEL of the mean: mean +- t(n - 1) std / sqrt(n); None below 2 values."""
    from scipy.special import stdtrit  # 0.1 s

    centre, std = spread(values)
    if centre is None or std is None:
        return None
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * std / math.sqrt(len(values))
    return centre - half, centre + half
