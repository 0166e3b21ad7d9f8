"""Clipping and noise against a slow twin; epsilon against mathematics and another library."""

import functools
import html
import logging
import sys

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.federation.methods.privacy import clipped_updates, epsilon, private_mean
from pipeline.reports.data import read_run
from pipeline.reports.run import run_part
from pipeline.runs.results import table
from tests.naive import privacy as naive
from tests.naive.server import clipped
from tests.packages import need
from tests.runs.small_runs import config, run, small


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


@pytest.fixture
def accountant():
    need("dp_accounting")
    import dp_accounting

    return dp_accounting


@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (0, 5)])
@pytest.mark.parametrize("clip", [1e-6, 1.0, 1e3])
def test_updates_are_clipped(shape, clip):
    clients, server = draw(*shape), draw(shape[1], seed=1)
    comp = clipped_updates(clients, server, clip)
    assert comp.shape == shape
    for ours, client in zip(comp.numpy(), clients.numpy(), strict=True):
        ref = clipped(client.astype(float) - server.numpy(), clip)
        np.testing.assert_allclose(ours, ref, rtol=1e-5, atol=1e-6 * clip)
        assert np.linalg.norm(ours.astype(float)) <= clip * (1 + 1e-6)


def test_a_client_that_did_not_move_has_an_update_of_zeros():
    server = draw(4)
    assert not clipped_updates(server[None], server, 1.0).any()


def test_one_hostile_client_moves_the_mean_by_no_more_than_clip_over_cohort():
    clients, server = draw(5, 40) * 0.01, torch.zeros(40)
    settings = {"clip": 0.5, "noise": 0.0, "cohort_size": 5, "key": (0, 0, 0)}
    hostile = clients.clone()
    hostile[2] = 1e6
    gap = private_mean(hostile, server, **settings) - private_mean(clients, server, **settings)
    without = clients[[0, 1, 3, 4]]
    left = private_mean(hostile, server, **settings) - private_mean(without, server, **settings)
    assert gap.norm() <= 2 * 0.5 / 5 * (1 + 1e-5)
    assert left.norm() <= 0.5 / 5 * (1 + 1e-5)


def test_without_noise_and_with_a_wide_clip_it_is_the_plain_mean():
    clients, server = draw(4, 33), draw(33, seed=1)
    comp = private_mean(clients, server, clip=1e6, noise=0.0, cohort_size=4, key=(0, 0, 0))
    np.testing.assert_allclose(comp, clients.mean(dim=0), atol=1e-6)


def test_noise_has_the_stated_size_whoever_reports():
    server = torch.zeros(100_000)
    for count in (0, 3):
        clients = torch.zeros(count, len(server))
        comp = private_mean(clients, server, clip=2.0, noise=1.5, cohort_size=6, key=(0, 1, 2))
        deviation = 1.5 * 2.0 / 6
        assert comp.std() == pytest.approx(deviation, rel=4 / np.sqrt(2 * len(server)))
        assert abs(comp.mean()) < 4 * deviation / np.sqrt(len(server))
    tails = (comp.abs() > 2 * deviation).double().mean()
    assert tails == pytest.approx(0.0455, abs=4 * np.sqrt(0.0455 / len(server)))


def test_the_key_fixes_the_noise_and_each_part_of_it_counts():
    def noise(*key):
        server = torch.zeros(50)
        return private_mean(server[None], server, clip=1.0, noise=1.0, cohort_size=1, key=key)

    first = noise(1, 2, 3)
    torch.manual_seed(9)
    np.random.seed(9)
    assert torch.equal(first, noise(1, 2, 3))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert abs(np.corrcoef(first, noise(*other))[0, 1]) < 0.6


@pytest.mark.parametrize("wrong", [{"clip": 0.0}, {"noise": -1.0}, {"cohort_size": 0}])
def test_settings_that_cannot_be(wrong):
    settings = {"clip": 1.0, "noise": 1.0, "cohort_size": 2, "key": (0,)} | wrong
    with pytest.raises(ValueError, match="must be above 0"):
        private_mean(draw(2, 3), draw(3), **settings)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (1.0, 200), (5.0, 200), (0.7, 3)])
@pytest.mark.parametrize("delta", [1e-5, 1e-3])
def test_with_every_client_epsilon_is_the_exact_one(accountant, noise, rounds, delta):
    exact = naive.gaussian_epsilon(noise, rounds, delta)
    assert naive.gaussian_delta(exact, noise, rounds) == pytest.approx(delta, rel=1e-6)
    assert epsilon(noise, 1.0, rounds, delta) == pytest.approx(exact, rel=1e-6)


SAMPLED = [  # noise, fraction, rounds, epsilon at 1e-5 by opacus 1.6.0's RDP analysis
    (1.1, 256 / 60000, 14062, 2.5965558689607486),
    (1.0, 0.1, 200, 11.01567128229855),
    (2.0, 0.3, 100, 8.619507068062386),
]


@pytest.mark.parametrize(("noise", "fraction", "rounds", "opacus"), SAMPLED)
def test_with_sampling_epsilon_is_below_renyi_accounting(
    accountant, noise, fraction, rounds, opacus
):
    comp = epsilon(noise, fraction, rounds, 1e-5)
    ref = naive.sampled_gaussian_epsilon(noise, fraction, rounds, 1e-5)
    assert ref == pytest.approx(opacus, rel=0.05)
    assert 0.85 * opacus < comp < 0.95 * opacus


@pytest.mark.parametrize("delta", [1e-2, 1e-5])
@pytest.mark.parametrize(("noise", "fraction"), [(0.5, 0.1), (1.0, 0.5), (3.0, 0.9), (1.0, 1e-3)])
def test_one_sampled_round_is_the_twins_exact_one_from_above(accountant, noise, fraction, delta):
    exact = naive.sampled_gaussian_round(noise, fraction, delta)
    assert exact <= epsilon(noise, fraction, 1, delta) + 1e-9
    assert epsilon(noise, fraction, 1, delta) <= exact * 1.01 + 2e-4  # a step of the distribution


@pytest.mark.parametrize("noise", [0.7, 2.0])
def test_sampling_nearly_everybody_costs_what_everybody_does(accountant, noise):
    exact = naive.gaussian_epsilon(noise, 50, 1e-5)
    assert epsilon(noise, 1 - 1e-9, 50, 1e-5) == pytest.approx(exact, rel=0.01)


EXTREME = [(1e-3, 0.5, 10), (0.1, 0.5, 200), (1.0, 0.3, 10**5), (1e4, 0.3, 10)]


@pytest.mark.parametrize(("noise", "fraction", "rounds"), EXTREME)
def test_extreme_settings_are_answered_and_no_worse_than_renyi(accountant, noise, fraction, rounds):
    from dp_accounting.rdp import RdpAccountant

    gaussian = accountant.GaussianDpEvent(noise)
    event = accountant.PoissonSampledDpEvent(fraction, gaussian)
    bound = RdpAccountant().compose(event, rounds).get_epsilon(1e-5)
    assert 0 <= epsilon(noise, fraction, rounds, 1e-5) <= bound


@pytest.mark.parametrize("choose", ["accuracy", "loss", "last"])
def test_what_epsilon_does_not_cover_is_told_beside_it(accountant, tmp_path, choose, heard):
    settings = config(clip=0.1, noise=1.0, rounds=2, choose=choose)
    document = run(small(), tmp_path, settings)
    (line,) = (line for line in heard if line.startswith("central DP"))
    page = render(read_run(tmp_path))
    for text in (line, table(document), document["privacy"]["note"], page):
        assert "covers the clients' updates only" in html.unescape(text)
        assert "train losses" in text and "sweep" in text
        assert (f"choice of the round by {choose}" in text) == (choose != "last")
    assert f"epsilon {document['privacy']['epsilon']:.2f}" in page


def render(data):
    return str(run_part(data, "a", "no answers"))


def test_epsilon_falls_with_noise_and_rises_with_fraction_rounds_and_smaller_delta(accountant):
    def rises(values):
        assert values == sorted(values) and len(set(values)) == len(values)

    once = functools.cache(epsilon)
    rises([once(z, 0.3, 50, 1e-5) for z in (8.0, 1.0, 0.5)])
    rises([once(1.0, q, 50, 1e-5) for q in (0.05, 0.3, 1.0)])
    rises([once(1.0, 0.3, rounds, 1e-5) for rounds in (0, 10, 50)])
    rises([once(1.0, 0.3, 50, delta) for delta in (1e-2, 1e-5, 1e-9)])


def test_no_noise_no_privacy_and_hardly_any_noise_is_answered_at_once(accountant):
    assert epsilon(0.0, 0.5, 10, 1e-5) == float("inf")
    assert epsilon(0.01, 1.0, 200, 1e-5) > 1e5


def test_the_accountant_is_quiet_and_leaves_its_logger_as_it_was(accountant, caplog):
    level = logging.getLogger("absl").level
    epsilon(1.0, 0.1, 200, 1e-5)
    assert not caplog.records and logging.getLogger("absl").level == level


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ConfigError, match="requirements-dp.txt"):
        epsilon(1.0, 0.5, 10, 1e-5)


@pytest.mark.parametrize("wrong", [(-1, 0.5, 1, 0.1), (1, 0, 1, 0.1), (1, 2, 1, 0.1), (1, 1, 1, 0)])
def test_epsilon_refuses_settings_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match="epsilon needs"):
        epsilon(*wrong)
