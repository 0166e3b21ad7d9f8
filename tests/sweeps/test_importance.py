"""Importance of a parameter, against the slow twin and where the answer is known."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sweeps.best import without_effect
from pipeline.sweeps.importance import grouped, influences
from tests.naive import sweep as naive_sweep


def by_name(settings, scores):
    return {each.name: each for each in influences(settings, scores)}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), min_size=2, max_size=40))
def test_the_share_is_the_slow_twins(rows):
    groups, scores = zip(*rows, strict=True)
    found = by_name([{"p": group} for group in groups], scores)
    if len(set(groups)) == 1:
        assert found == {}
        return
    if len(set(groups)) == len(groups) or len(set(scores)) == 1:
        assert found["p"].share is None
    elif np.ptp(scores) > 1e-12:
        assert found["p"].share == pytest.approx(
            naive_sweep.epsilon_squared(groups, scores), rel=1e-9, abs=1e-9
        )
    means = {g: np.mean([s for h, s in rows if h == g]) for g in groups}
    assert found["p"].best_mean == pytest.approx(max(means.values()))
    assert means[found["p"].best] == pytest.approx(max(means.values()))


def test_in_a_grid_the_shares_are_those_of_the_effects():
    grid = [dict(zip("abc", v, strict=True)) for v in itertools.product(range(6), repeat=3)]
    found = by_name(grid, [3.0 * s["a"] + 4.0 * s["b"] for s in grid])
    # Variances 9 : 16; the correction takes (k - 1) MSW of 216 trials, about 2 %, from each.
    assert found["a"].share == pytest.approx(9 / 25, abs=0.02)
    assert found["b"].share == pytest.approx(16 / 25, abs=0.02)
    assert found["c"].share == 0.0
    assert [each.name for each in influences(grid, [3.0 * s["a"] for s in grid])][0] == "a"
    assert found["b"].best == "5"


def test_noise_explains_nothing_on_average_even_with_few_trials():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        settings = [{"p": i % 4} for i in range(12)]
        shares.append(influences(settings, rng.normal(size=12))[0].share)
    # eta squared would be (k - 1) / (n - 1) = 0.27; what is left is the clipping at 0.
    assert np.mean(shares) < 0.12


def test_many_values_are_four_groups_and_equal_ones_stay_together():
    values = [10.0**-i for i in range(40)]
    groups = grouped(values)
    assert sorted(groups.count(g) for g in set(groups)) == [10, 10, 10, 10]
    assert groups[0] == "1e-09..1"
    repeated = grouped([1] * 50 + list(range(50)))
    assert (
        len({g for g, v in zip(repeated, [1] * 50 + list(range(50)), strict=True) if v == 1}) == 1
    )
    assert grouped([True, None, "x", 1.5]) == ["True", "None", "x", "1.5"]


@given(st.lists(st.integers(0, 30), min_size=9))
def test_groups_are_intervals(values):
    groups = grouped(values)
    for g in set(groups):
        own = [v for v, h in zip(values, groups, strict=True) if h == g]
        others = [v for v, h in zip(values, groups, strict=True) if h != g]
        assert all(not min(own) <= v <= max(own) for v in others)


def test_a_wide_range_that_matters_is_seen():
    rng = np.random.default_rng(0)
    settings = [{"lr": 10 ** rng.uniform(-5, -2), "mu": rng.uniform()} for _ in range(100)]
    found = by_name(settings, [-((np.log10(s["lr"]) + 3) ** 2) for s in settings])
    assert found["lr"].share > 0.6
    assert found["mu"].share < 0.1


@pytest.mark.parametrize(
    ("settings", "scores"),
    [
        ([{"p": 1}, {"p": 2}], [0.1, 0.9]),
        ([{"p": 1}, {"p": 1}, {"p": 2}], [0.3, 0.3, 0.3]),
        ([{"p": 1}, {"p": 1}, {"p": 2}], [0.1 + 0.2, 0.3, 0.1 + 0.2]),
    ],
)
def test_where_there_is_no_share_there_is_none(settings, scores):
    assert by_name(settings, scores)["p"].share is None


def test_nothing_to_explain():
    assert influences([], []) == []
    assert influences([{"p": 1}], [0.5]) == []
    assert influences([{}, {}], [0.5, 0.6]) == []


def _trials(reach, **values):
    names = list(values)
    return [
        (settings := dict(zip(names, each, strict=True)), seed, reach(**settings, seed=seed))
        for each in itertools.product(*values.values())
        for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("reach", "said"),
    [
        (lambda lr, mu, seed: (lr, seed),
         ["mu changes nothing: 0.1, 0.2, 0.3 reach the same accuracies (12 pairs compared that "
          "differ in nothing else)"]),
        (lambda lr, mu, seed: (lr, mu > 0.2, seed),
         ["mu changes nothing between these values: 0.1, 0.2 reach the same accuracies "
          "(4 pairs compared that differ in nothing else)"]),
        (lambda lr, mu, seed: (lr, mu, seed), []),
        (lambda lr, mu, seed: (lr, mu > 0.2 if seed else mu), []),
    ],
)  # fmt: skip
def test_a_setting_that_changes_nothing_is_said(reach, said):
    assert list(without_effect(_trials(reach, lr=[1e-3, 1e-2], mu=[0.1, 0.2, 0.3]))) == said
    assert not [*without_effect([]), *without_effect([({"lr": 1.0}, 0, 1)])]
