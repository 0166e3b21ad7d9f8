"""Slow twins of a table's statistics, from their equations: numpy alone."""

import numpy as np


def mean_and_std(values):
    """sum x / n, and sqrt(sum (x - mean)^2 / (n - 1)); None where there are too few."""
    values = np.asarray(values, np.float64)
    n = len(values)
    if n == 0:
        return None, None
    mean = values.sum() / n
    return mean, None if n == 1 else np.sqrt(((values - mean) ** 2).sum() / (n - 1))


def student_cdf(x, freedom, points=200_001):
    """P(T <= x) for x >= 0: 1/2 + the integral of the density, by Simpson's rule.

    The density is (1 + t^2 / v)^(-(v + 1) / 2), divided by its own integral: over t = sqrt(v) tan a
    that is of cos(a)^(v - 1), which is smooth, over angles from -pi/2 to pi/2.
    """
    half = _simpson(np.linspace(0, np.pi / 2, points), freedom)
    return (
        0.5
        + 0.5 * _simpson(np.linspace(0, np.arctan(x / np.sqrt(freedom)), points), freedom) / half
    )


def t_interval(first, second, level=0.95):
    """Of the mean of first - second, pair by pair: mean +- q s / sqrt(n); q by bisection."""
    pairs = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    mean, std = mean_and_std(pairs)
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        if student_cdf(middle, len(pairs) - 1, 20_001) < (1 + level) / 2:
            low = middle
        else:
            high = middle
    half = low * std / np.sqrt(len(pairs))
    return mean, mean - half, mean + half


def places(means):
    """By row 1 where no mean is greater, 2 where one distinct mean is, else None."""
    known = [m for m in means if m is not None]
    if len(known) < 2:
        return [None] * len(means)
    greater = [None if m is None else len({k for k in known if k > m}) for m in means]
    return [None if g is None or g > 1 else g + 1 for g in greater]


def _simpson(angles, freedom):
    density = np.cos(angles) ** (freedom - 1)
    step = angles[1] - angles[0]
    return (
        step
        / 3
        * (density[0] + density[-1] + 4 * density[1:-1:2].sum() + 2 * density[2:-1:2].sum())
    )
