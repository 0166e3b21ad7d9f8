"""Who takes part in a round: how many, how often, and that only (seed, round, fold) decide."""

import numpy as np
import pytest

from pipeline.federation.cohort import cohort, steps_of

SIZES = [1, 2, 3, 10, 100]


def many(count=400, **settings):
    return [cohort(10, round, seed=1, **settings) for round in range(count)]


@pytest.mark.parametrize("clients", SIZES)
def test_by_default_everyone_trains_everything_and_reports(clients):
    found = cohort(clients, 0, 0)
    assert found.clients.tolist() == list(range(clients))
    assert found.reports.all() and (found.work == 1).all()


@pytest.mark.parametrize(
    ("clients", "fraction", "ref"),
    [(10, 0.3, 3), (10, 0.39, 3), (3, 0.1, 1), (1, 0.5, 1), (100, 0.29, 29)],
)
def test_the_fraction_says_how_many(clients, fraction, ref):
    for round in range(20):
        chosen = cohort(clients, round, 0, client_fraction=fraction).clients
        assert len(chosen) == ref == len(set(chosen.tolist()))
        assert 0 <= chosen.min() and chosen.max() < clients
        assert (np.diff(chosen) > 0).all()


def test_every_client_has_its_turn():
    counts = np.bincount(np.concatenate([c.clients for c in many(client_fraction=0.3)]))
    spread = np.sqrt(400 * 0.3 * 0.7)  # of a binomial count of 400 rounds
    assert np.abs(counts - 120).max() < 4 * spread


def test_dropout_and_stragglers_come_at_their_rates():
    found = many(dropout=0.25, stragglers=0.5)
    left = np.mean([~c.reports for c in found])
    late = np.concatenate([c.work[c.work < 1] for c in found])
    assert left == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 4000))
    assert len(late) / 4000 == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 4000))
    assert 0 < late.min() and late.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / 2000))


@pytest.mark.parametrize("clients", SIZES)
def test_someone_always_reports(clients):
    for round in range(30):
        found = cohort(clients, round, 0, client_fraction=0.5, dropout=1.0)
        assert found.reports.sum() == 1


def test_poisson_sampling_is_independent_and_may_choose_none():
    found = many(client_fraction=0.2, poisson=True)
    sizes = np.array([len(c.clients) for c in found])
    assert sizes.min() == 0 and sizes.max() > 4
    assert sizes.mean() == pytest.approx(2, abs=4 * np.sqrt(1.6 / 400))
    assert sizes.var() == pytest.approx(1.6, rel=0.4)
    assert not any(c.reports.any() for c in many(dropout=1.0, poisson=True))


def test_more_of_a_setting_only_adds_clients():
    for round in range(20):
        few, most = (cohort(10, round, 0, client_fraction=f).clients for f in (0.3, 0.7))
        assert set(few) < set(most)
        some, more = (cohort(10, round, 0, dropout=d, stragglers=d) for d in (0.2, 0.6))
        assert (some.reports >= more.reports).all() and (some.work >= more.work).all()


def test_seed_round_and_fold_decide_and_nothing_else():
    settings = {"client_fraction": 0.5, "dropout": 0.3, "stragglers": 0.5}
    np.random.seed(0)
    first = cohort(40, 3, 5, 1, **settings)
    np.random.seed(1)
    again = cohort(40, 3, 5, 1, **settings)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for other in ((40, 4, 5, 1), (40, 3, 6, 1), (40, 3, 5, 2)):
        assert not np.array_equal(cohort(*other, **settings).clients, first.clients)


def test_a_straggler_takes_at_least_one_step():
    assert [steps_of(work, 10) for work in (1.0, 0.75, 0.5, 0.3, 0.01, 1e-12)] == [
        10,
        8,
        5,
        3,
        1,
        1,
    ]
    assert steps_of(0.5, 0) == 0 and steps_of(0.1 * 3, 10) == 3


def test_of_no_clients_none_is_chosen():
    assert [len(part) for part in cohort(0, 0, 0, dropout=0.5)] == [0, 0, 0]
