"""Partitions of a domain: every row once, by the same shares for each use, never too few."""

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.federation.dealing import largest_remainders, repair
from pipeline.federation.partitions import KINDS, few_shot, partition
from tests.naive import partitions as naive


def domain(rows=600, classes=7, seed=0):
    """Labels of a table, and a domain's rows by use: 60 %, 20 %, 20 % of every third row."""
    random = np.random.RandomState(seed)
    labels = random.randint(classes, size=3 * rows)
    own = 3 * random.permutation(rows)
    a, b = int(0.6 * rows), int(0.8 * rows)
    return labels, {"train": own[:a], "val": own[a:b], "test": own[b:]}


def class_shares(labels, part, classes=7):
    """A client's class distribution, (C,)."""
    return np.bincount(labels[part], minlength=classes) / max(len(part), 1)


def distance(p, q):
    """Total variation."""
    return np.abs(p - q).sum() / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clients", [1, 2, 10])
@pytest.mark.parametrize("alpha", [1e-100, 0.3, 1e100])
def test_every_row_goes_to_exactly_one_client(kind, clients, alpha):
    labels, uses = domain()
    each = max(3, -(-7 // clients))
    dealt = partition(labels, uses, kind, clients, 0, alpha=alpha, classes_per_client=each)
    assert len(dealt) == clients
    for use, rows in uses.items():
        parts = [client[use] for client in dealt]
        assert np.array_equal(np.sort(np.concatenate(parts)), np.sort(rows))
        assert all(part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)
    assert all(len(client["train"]) >= 2 and len(client["val"]) >= 1 for client in dealt)


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_domain_decide_and_nothing_else(kind):
    labels, uses = domain()

    def dealt(*which):
        np.random.seed(len(which))
        found = partition(labels, uses, kind, 4, *which, classes_per_client=3)
        return [client[use].tolist() for client in found for use in uses]

    assert dealt(0, 1) == dealt(0, 1) != dealt(1, 1) != dealt(0, 0)
    assert dealt(1, 1) != dealt(0, 1) != dealt(0, 0)


def test_iid_clients_are_alike_in_size_and_classes():
    labels, uses = domain(rows=3000)
    dealt = partition(labels, uses, "iid", 7, 0)
    for use, rows in uses.items():
        sizes = [len(client[use]) for client in dealt]
        assert max(sizes) - min(sizes) <= 1
        whole = class_shares(labels, rows)
        assert max(distance(class_shares(labels, c[use]), whole) for c in dealt) < 0.2


def spread(alpha, kind="dirichlet"):
    """Mean distance of a client's classes from the domain's, and the greatest share of rows."""
    labels, uses = domain(rows=3000)
    dealt = partition(labels, uses, kind, 5, 0, alpha=alpha)
    whole = class_shares(labels, uses["train"])
    far = np.mean([distance(class_shares(labels, c["train"]), whole) for c in dealt])
    return far, max(len(c["train"]) for c in dealt) / len(uses["train"])


def test_dirichlet_goes_from_iid_to_one_client_a_class():
    far = [spread(alpha)[0] for alpha in (1e9, 10, 1, 0.1)]
    assert far == sorted(far) and far[0] < 0.01 and far[-1] > 0.4
    labels, uses = domain(rows=3000)
    dealt = partition(labels, uses, "dirichlet", 5, 0, alpha=1e-9, least={})
    for c in range(7):
        assert sum((labels[client["train"]] == c).any() for client in dealt) == 1


def test_quantity_skews_sizes_and_not_classes():
    (far, even), (_, skewed) = spread(1e9, "quantity"), spread(0.2, "quantity")
    assert even == pytest.approx(0.2, abs=0.01) and far < 0.1 and skewed > 0.4


def test_dirichlet_shares_vary_as_they_should():
    """The variance of one of K shares is (K - 1) / (K^2 (K alpha + 1))."""
    labels = np.repeat(np.arange(4000), 200)
    uses = {"train": np.arange(len(labels))}
    for alpha in (0.05, 0.5, 5.0):
        dealt = partition(labels, uses, "dirichlet", 4, 0, alpha=alpha)
        shares = np.stack([np.bincount(labels[c["train"]], minlength=4000) for c in dealt]) / 200
        ref = 3 / (16 * (4 * alpha + 1))
        assert shares.var(axis=1).mean() == pytest.approx(ref, rel=0.03)


@pytest.mark.parametrize(("clients", "each"), [(10, 2), (4, 2), (7, 1), (3, 7), (5, 3), (2, 99)])
def test_pathological_clients_hold_that_many_classes(clients, each):
    labels, uses = domain(rows=1500)
    dealt = partition(labels, uses, "pathological", clients, 3, classes_per_client=each)
    held = [set(labels[np.concatenate(list(client.values()))]) for client in dealt]
    assert all(len(classes) == min(each, 7) for classes in held)
    owners = [sum(c in classes for classes in held) for c in range(7)]
    assert max(owners) - min(owners) <= 1
    for c in range(7):  # and share each class equally
        counts = [(labels[client["train"]] == c).sum() for client in dealt]
        counts = [count for count in counts if count]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_val_and_test_are_dealt_by_the_shares_of_train(kind):
    labels, uses = domain(rows=3000)
    labels = labels if kind in ("dirichlet", "pathological") else np.zeros_like(labels)
    dealt = partition(labels, uses, kind, 5, 0, alpha=0.2, classes_per_client=2, least={})
    for c in np.unique(labels):
        counts = {use: np.array([(labels[d[use]] == c).sum() for d in dealt]) for use in uses}
        shares = {use: count / count.sum() for use, count in counts.items()}
        for use in ("val", "test"):  # each is rounded by less than one row
            bound = 1 / counts["train"].sum() + 1 / counts[use].sum()
            assert np.abs(shares[use] - shares["train"]).max() < bound


@pytest.mark.parametrize("seed", range(20))
def test_rounding_is_by_largest_remainder(seed):
    random = np.random.RandomState(seed)
    shares = random.dirichlet([0.5] * 6, size=4).T
    shares[:, 0] = 1 / 6  # all remainders tie
    totals = np.array([8, 0, 1, 57])
    counts = largest_remainders(shares, totals, random)
    for g, total in enumerate(totals):
        floors, surely, maybe, lacking = naive.largest_remainders(shares[:, g], total)
        more = {k for k in range(6) if counts[k, g] == floors[k] + 1}
        assert counts[:, g].sum() == total and len(more) == lacking
        assert surely <= more <= surely | maybe


def test_ties_fall_on_everyone():
    random = np.random.RandomState(0)
    drawn = [largest_remainders(np.full((4, 1), 0.25), np.array([1]), random) for _ in range(400)]
    assert np.abs(np.sum(drawn, axis=0) - 100).max() < 4 * np.sqrt(400 * 0.25 * 0.75)


@pytest.mark.parametrize("seed", range(200))
def test_a_repair_that_is_possible_is_made_and_another_refused(seed):
    random = np.random.RandomState(seed)
    clients, groups, least = random.randint(1, 6), random.randint(1, 5), random.randint(1, 3)
    allowed = random.uniform(size=(clients, groups)) < 0.5
    allowed[random.randint(clients), :] = True
    counts = random.randint(4, size=(clients, groups)) * allowed
    totals = counts.sum(axis=0)
    before = counts.copy()
    if not naive.can_give(totals, allowed, least):
        with pytest.raises(ConfigError, match="cannot give|gets only"):
            repair(counts, allowed / 1.0, allowed, least, "here")
        return
    repair(counts, allowed / 1.0, allowed, least, "here")
    assert (counts >= 0).all() and (counts.sum(axis=1) >= least).all()
    assert not counts[~allowed].any() and (counts.sum(axis=0) == totals).all()
    if (before.sum(axis=1) >= least).all():
        assert np.array_equal(counts, before)


def test_a_poor_client_takes_of_the_class_it_has_most_share_in():
    counts, shares = np.array([[5, 5, 5], [0, 0, 0]]), np.array([[0.9, 0.7, 0.8], [0.1, 0.3, 0.2]])
    repair(counts, shares, np.ones((2, 3), bool), 2, "here")
    assert counts.tolist() == [[5, 3, 5], [0, 2, 0]]


def test_the_client_with_most_rows_gives():
    counts = np.array([[4], [9], [0], [5]])
    repair(counts, np.full((4, 1), 0.25), np.ones((4, 1), bool), 2, "here")
    assert counts.tolist() == [[4], [7], [2], [5]]


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_clients_as_rows_allow_and_not_one_more(kind):
    labels = np.zeros(60, np.int64)
    uses = {"train": np.arange(40), "val": np.arange(40, 60), "test": np.arange(0)}
    for alpha in (1e-3, 1.0):
        dealt = partition(labels, uses, kind, 20, 0, alpha=alpha)
        assert all(len(c["train"]) == 2 and len(c["val"]) == 1 for c in dealt)
    with pytest.raises(ConfigError, match="40 train rows cannot give 21 clients 2 each .42"):
        partition(labels, uses, kind, 21, 0)
    uses["val"] = uses["val"][:19]
    with pytest.raises(ConfigError, match="sketch: 19 val rows cannot give 20 clients 1 each"):
        partition(labels, uses, kind, 20, 0, name="sketch")


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_single_rows(kind):
    none = np.empty(0, np.int64)
    dealt = partition(none, {"test": none}, kind, 3, 0)
    assert [client["test"].tolist() for client in dealt] == [[], [], []]
    one = partition(np.array([4, 9]), {"test": np.array([1])}, kind, 3, 0)
    assert sorted(len(client["test"]) for client in one) == [0, 0, 1]
    assert partition(none, {}, kind, 2, 0) == [{}, {}]


def test_what_cannot_be_is_refused_with_numbers():
    labels, uses = domain(rows=6000, classes=196)
    with pytest.raises(
        ConfigError, match="10 clients of 5 classes hold at most 50 of its 196 classes"
    ):
        partition(labels, uses, "pathological", 10, 0, classes_per_client=5)
    with pytest.raises(ConfigError, match="'shard' is unknown; there are iid"):
        partition(labels, uses, "shard", 10, 0)
    for wrong in ({"alpha": 0.0}, {"alpha": float("nan")}, {"classes_per_client": 0}):
        with pytest.raises(ConfigError, match="must be"):
            partition(labels, uses, "dirichlet", 10, 0, **wrong)
    with pytest.raises(ConfigError, match="clients"):
        partition(labels, uses, "iid", 0, 0)
    rare = {"train": np.arange(20), "val": np.arange(20, 24)}  # class 1 has one val row
    with pytest.raises(ConfigError, match="client . gets only 0 of the 1 it needs"):
        partition(
            np.array(([0] * 10 + [1] * 10) + [0] * 3 + [1]),
            rare,
            "pathological",
            4,
            0,
            classes_per_client=1,
        )


@pytest.mark.parametrize("shots", [0, 1, 3, 1000])
def test_few_shot_keeps_that_many_of_each_class(shots):
    labels, uses = domain(rows=200, classes=30)
    kept = few_shot(uses["train"], labels, shots, seed=0)
    ref = naive.few_shot(uses["train"], labels, shots)
    found = naive.few_shot(kept, labels, 10**9)
    assert found == {label: count for label, count in ref.items() if count}
    order = [row for row in uses["train"] if row in set(kept.tolist())]
    assert kept.tolist() == order


def test_fewer_shots_are_among_more_and_seeds_differ():
    labels, uses = domain(rows=500)
    few, more, other = (few_shot(uses["train"], labels, k, s) for k, s in ((2, 0), (5, 0), (2, 1)))
    assert set(few) < set(more) and set(few) != set(other)
    assert few_shot(uses["train"][:0], labels, 4, 0).tolist() == []
