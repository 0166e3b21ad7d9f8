"""Synchronous halving: when trials are cut, and which of them go on."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.sweeps.halving import Halving, kept, rungs, survivors, trial_rounds
from pipeline.sweeps.trials import make_trial
from tests.naive import sweep as naive_sweep

ACCURACY = st.one_of(st.floats(0, 1), st.sampled_from([0.5, None, math.nan, math.inf]))


def trials_of(configurations, seeds=1):
    return [
        make_trial(c * seeds + s, {"lr": float(c)}, s)
        for c in range(configurations)
        for s in range(seeds)
    ]


@given(st.data(), st.integers(1, 30), st.integers(1, 3), st.integers(2, 5))
def test_survivors_are_those_of_the_slow_twin_in_any_order(data, configurations, seeds, eta):
    trials = trials_of(configurations, seeds)
    scores = {t.id: data.draw(ACCURACY) for t in trials}
    going = survivors(trials, scores, eta)
    assert {t.id for t in going} == naive_sweep.survivors(trials, scores, eta)
    assert [t.number for t in going] == sorted(t.number for t in going)
    shuffled = random.Random(0).sample(trials, len(trials))
    assert set(t.id for t in survivors(shuffled, scores, eta)) == {t.id for t in going}
    assert len(going) <= seeds * kept(configurations, eta)
    assert len(going) % seeds == 0


def test_ties_go_to_the_earlier_trial():
    trials = trials_of(9)
    assert [t.number for t in survivors(trials, {t.id: 0.5 for t in trials}, 3)] == [0, 1, 2]


def test_own_adapters_are_cut_among_themselves():
    names = ["fedavg", "ditto", "fedavg", "local", "fedprox", "fedper"]
    trials = [make_trial(n, {"method": name}, 0) for n, name in enumerate(names)]
    scores = {t.id: 0.9 - 0.1 * t.number if t.number % 2 else 0.1 * t.number for t in trials}
    assert [t.number for t in survivors(trials, scores, 3)] == [1, 4]
    alone = trials[1::2]
    assert [t.number for t in survivors(alone, scores, 3)] == [1]


def test_one_diverged_seed_ends_its_configuration():
    trials = trials_of(2, seeds=2)
    scores = dict(zip((t.id for t in trials), [0.9, math.nan, 0.1, 0.1], strict=True))
    assert [t.number for t in survivors(trials, scores, 2)] == [2, 3]


def test_all_diverged_leaves_nothing_and_nothing_leaves_nothing():
    trials = trials_of(5)
    assert survivors(trials, dict.fromkeys(t.id for t in trials), 3) == ()
    assert survivors([], {}, 3) == ()


def test_a_trial_without_a_score_is_a_bug():
    with pytest.raises(KeyError):
        survivors(trials_of(2), {}, 3)


@given(st.integers(1, 5000), st.integers(2, 9), st.integers(1, 300), st.integers(1, 9))
def test_rungs_rise_and_lie_within(rounds, eta, first, cuts):
    for halving in (
        Halving(eta),
        Halving(eta, first),
        Halving(eta, first, cuts),
        Halving(eta, None, cuts),
    ):
        marks = rungs(rounds, halving)
        assert list(marks) == sorted(set(marks))
        assert all(1 <= mark < rounds for mark in marks)
        assert len(marks) <= (halving.cuts or (99 if halving.first else 3))
    wanted = [first * eta**k for k in range(99) if first * eta**k < rounds]
    assert list(rungs(rounds, Halving(eta, first))) == wanted
    assert list(rungs(rounds, Halving(eta, first, cuts))) == wanted[:cuts]


def test_rungs_by_hand():
    assert rungs(200, Halving(3)) == (8, 23, 67)
    assert rungs(27, Halving(3)) == (1, 3, 9)
    assert rungs(20, Halving(3)) == (1, 3, 7)
    assert rungs(1, Halving(3)) == ()
    assert rungs(81, Halving(3, 3)) == (3, 9, 27)
    assert rungs(10**7, Halving(2, 1))[-1] == 2**23


@pytest.mark.parametrize("bad", [{"eta": 1}, {"eta": 0}, {"first": 0}, {"cuts": 0}, {"cuts": 65}])
def test_halvings_that_cannot_be(bad):
    with pytest.raises(ConfigError, match="must lie in"):
        Halving(**bad)


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 100), st.integers(2, 4))
def test_trial_rounds_are_those_of_a_sweep_played_through(configurations, seeds, rounds, eta):
    halving = Halving(eta)
    live, trained, before = trials_of(configurations, seeds), 0, 0
    for mark in [*rungs(rounds, halving), rounds]:
        trained += len(live) * (mark - before)
        before = mark
        if mark < rounds:
            live = survivors(live, {t.id: t.number / 1000 for t in live}, eta)
    assert trial_rounds(configurations * seeds, seeds, rounds, halving) == trained
    assert (
        trial_rounds(configurations * seeds, seeds, rounds, None) == configurations * seeds * rounds
    )
