"""The geometric median against a slow twin, what must hold of one, and whole rounds of it."""

import math

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.federation.methods.rfa import ITERATIONS, SMOOTHING, geometric_median
from pipeline.flower.run_config import refuse_what_cannot_travel
from pipeline.settings import RunConfig
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options
from tests.federation.twins import SGD, Twin, close, config
from tests.runs.small_runs import run, small


def twin(clients, shares, iterations=ITERATIONS, smoothing=SMOOTHING):
    """Smoothed Weiszfeld steps from the median, in loops of float64; (K, P), (K,) -> (P,)."""
    centre = np.median(clients, axis=0)
    for _ in range(iterations):
        pulls = []
        for share, client in zip(shares, clients, strict=True):
            gap = math.sqrt(sum((a - b) ** 2 for a, b in zip(client, centre, strict=True)))
            pulls.append(share / max(smoothing, gap))
        centre = sum(p / sum(pulls) * c for p, c in zip(pulls, clients, strict=True))
    return centre


def spread(centre, clients, shares):
    """sum_k share_k |centre - client_k|."""
    return sum(s * np.linalg.norm(c - centre) for s, c in zip(shares, clients, strict=True))


def draw(shape, seed=0):
    numbers = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    shares = np.random.RandomState(seed + 1).uniform(0.5, 2, shape[0])
    return torch.from_numpy(numbers), numbers.astype(float), shares / shares.sum()


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 33), (7, 5), (10, 130)])
def test_it_is_the_twin_s(shape):
    clients, plain, shares = draw(shape)
    found = geometric_median(clients, tuple(shares))
    # A float32 mean of K clients each step, from a centre that is off by as much.
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(found, twin(plain, shares), rtol=0, atol=8 * shape[0] * eps * 4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(3, 2), (5, 3), (9, 40)])
def test_nothing_nearby_is_nearer_to_all_clients(shape, seed):
    clients, plain, shares = draw(shape, seed)
    found = geometric_median(clients, tuple(shares)).double().numpy()
    least = spread(found, plain, shares)
    rng = np.random.RandomState(seed)
    others = [*plain, plain.mean(axis=0), *(found + 0.05 * rng.standard_normal((50, shape[1])))]
    for other in others:
        assert least <= 1.01 * spread(other, plain, shares)  # near a client steps get short


def test_known_medians():
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(0.75)]])  # Fermat's point
    found = geometric_median(corners, (1 / 3,) * 3)
    torch.testing.assert_close(found, corners.mean(dim=0), atol=1e-5, rtol=0)
    line = torch.tensor([[0.0], [1.0], [50.0]])  # on a line: the median
    assert geometric_median(line, (1 / 3,) * 3).item() == pytest.approx(1, abs=1e-3)
    same = torch.full((4, 9), 0.3)
    torch.testing.assert_close(geometric_median(same, (0.25,) * 4), same[0])


def test_a_client_of_share_two_counts_as_two():
    clients, _, _ = draw((4, 6), seed=3)
    twice = geometric_median(clients, (0.4, 0.2, 0.2, 0.2))
    copied = geometric_median(torch.cat([clients, clients[:1]]), (0.2,) * 5)
    torch.testing.assert_close(twice, copied, atol=5e-3, rtol=0)  # they start elsewhere


@pytest.mark.parametrize("liars", [1, 2, 3])
@pytest.mark.parametrize("far", [10.0, 900.0, -1e6])
def test_fewer_than_half_cannot_carry_it_away(liars, far):
    clients, _, _ = draw((7, 12), seed=liars)
    clients *= 0.1
    honest = clients[liars:].clone()
    clients[:liars] = far
    found = geometric_median(clients, (1 / 7,) * 7)
    centre = honest.mean(dim=0)
    radius = (honest - centre).norm(dim=1).max()
    # Lopuhaa and Rousseeuw: 2 (1 - a) / (1 - 2 a) times the honest radius, a the liars' share.
    share = liars / 7
    assert (found - centre).norm() <= 2 * (1 - share) / (1 - 2 * share) * radius
    assert (clients.mean(dim=0) - centre).norm() > 2 * radius


@pytest.mark.parametrize("weighting", ["uniform", "rows"])
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_rounds_are_the_twin_s(weighting, clip):
    made = Twin(config(**SGD, method="rfa", weighting=weighting, clip=clip))
    server = made.start
    rows = [len(client.train) for client in made.fold.clients]
    weights = [1 / 3] * 3 if weighting == "uniform" else [n / sum(rows) for n in rows]
    for round, state in enumerate(made.rounds(2)):
        clients = np.array([made.sgd(server, k, round) for k in range(3)])
        if clip:
            lengths = np.linalg.norm(clients - server, axis=1)[:, None]
            clients = server + (clients - server) * np.minimum(1, clip / lengths)
        server = twin(clients, weights)
        close(state["server"][0], server)


@pytest.mark.parametrize("changed", [{}, {"payload": "int8"}, {"personalise": 1, "clip": 0.01}])
def test_it_runs_alone_and_in_a_sweep_with_the_same_results(changed, tmp_path):
    table = small(rows=(20, 30, 26, 24))
    settings = config(method="rfa", rounds=2, lr=1e-2, **changed)
    alone = run(table, tmp_path / "alone", settings)
    found = sweep(
        table, from_options(["method=fedavg,rfa,median", "lr=1e-3,1e-2"]),
        config(rounds=2, **changed), runs=tmp_path, out=tmp_path / "sweep", device="cpu",
    )  # fmt: skip
    assert found["trials"]["done"] == 6
    lines = (tmp_path / "sweep" / "trials.jsonl").read_text()
    value = alone["results"][0]["val_accuracy"]
    assert f'"val_accuracy": {value}' in lines


def test_it_goes_to_sites_and_is_refused_with_noise():
    refuse_what_cannot_travel(RunConfig(held_out=(("a",),), method="rfa"))
    with pytest.raises(ConfigError, match="uniform mean"):
        RunConfig(method="rfa", clip=1.0, noise=1.0)


def test_who_is_told_that_two_clients_outvote_nobody(tmp_path, heard):
    run(small(rows=(40, 45, 50)), tmp_path, config(method="rfa", rounds=1))
    assert any("only among 3 or more; there are 2" in s for s in heard)
