"""Means, deviations and intervals over seeds, against their equations and printed tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.reports.spread import interval, spread
from tests.naive import tables as twins

FRACTIONS = st.floats(0, 1, width=32)


@given(st.lists(FRACTIONS, max_size=7))
def test_mean_and_std_are_their_equations(values):
    mean, std = spread(values)
    known = twins.mean_and_std(values)
    for own, other in zip((mean, std), known, strict=True):
        assert own == other if other is None else own == pytest.approx(other, abs=1e-14)
    if values:
        assert min(values) <= mean <= max(values)


@settings(max_examples=8)
@given(st.lists(st.tuples(FRACTIONS, FRACTIONS), min_size=2, max_size=6))
def test_the_interval_is_student_s(pairs):
    first, second = zip(*pairs, strict=True)
    low, high = interval([a - b for a, b in pairs])
    _, low_twin, high_twin = twins.t_interval(first, second)
    assert (low, high) == pytest.approx((low_twin, high_twin), abs=1e-6 * max(1, high - low))


def test_few_values_have_no_interval_and_known_quantiles_hold():
    assert spread([]) == (None, None) and spread([0.25]) == (0.25, None)
    assert interval([]) is None and interval([0.5]) is None
    for n, quantile in ((2, 12.706), (3, 4.303), (11, 2.228)):  # any printed table of Student's t
        values = [float(v) for v in range(n)]
        low, high = interval(values)
        half = quantile * np.std(values, ddof=1) / np.sqrt(n)
        assert (high - low) / 2 == pytest.approx(half, rel=1e-4)
