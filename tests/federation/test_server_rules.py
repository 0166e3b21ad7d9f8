"""Aggregation rules and server optimizers against slow twins, and what must hold of any rule."""

import numpy as np
import pytest
import torch

from pipeline.federation.methods.guard import unsound
from pipeline.federation.methods.mean import mean, shares_of
from pipeline.federation.methods.robust import krum, krum_scores, median, trimmed_mean
from pipeline.federation.methods.scaffold import client_controls, server_control
from pipeline.federation.methods.server_optimizers import fedadagrad, fedadam, fedavgm, fedyogi
from pipeline.settings import RunConfig
from tests.naive import server as naive


def first(server: torch.Tensor, tau: float = 0.0) -> dict[str, torch.Tensor]:
    return {"momentum": torch.zeros_like(server), "second": torch.full_like(server, tau**2)}


SHAPES = [(1, 1), (2, 7), (3, 33), (7, 5), (10, 130)]
EPS = np.finfo(np.float32).eps


def draw(shape, seed=0):
    numbers = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(numbers), numbers.astype(float)


def assert_near(comp, ref, terms=8):
    """As near as `terms` roundings of float32 at the scale of the values leave it."""
    scale = max(1.0, float(np.abs(ref).max()))
    assert np.abs(np.asarray(comp, float) - ref).max() <= terms * EPS * scale


@pytest.mark.parametrize("shape", SHAPES)
def test_mean_is_the_twins_and_the_bits_of_the_released_sum(shape):
    clients, plain = draw(shape)
    shares = shares_of(np.arange(1, shape[0] + 1))
    comp = mean(clients, shares)
    assert_near(comp, naive.mean(plain, shares), terms=shape[0] + 2)
    released = torch.zeros(shape[1])  # fedclip/utils/aggregation.py: zeros, then += in order
    for client, share in zip(clients, shares, strict=True):
        released.add_(client, alpha=share)
    assert torch.equal(comp, released)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("trim", [0, 0.1, 0.2, 0.34, 0.499])
def test_median_and_trimmed_mean(shape, trim):
    clients, plain = draw(shape)
    assert_near(median(clients), naive.median(plain))
    cut = int(trim * shape[0])
    assert_near(trimmed_mean(clients, trim), naive.trimmed_mean(plain, cut), terms=shape[0])


def test_trim_counts_clients_without_float_surprises():
    clients = torch.zeros(100, 1)
    clients[:29] = 100  # 0.29 * 100 is 28.999999999999996
    assert trimmed_mean(clients, 0.29) == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("byzantine", [0, 1, 3])
@pytest.mark.parametrize("keep", [1, 2, 10])
def test_krum(shape, byzantine, keep):
    clients, plain = draw(shape, seed=byzantine)
    keep = min(keep, shape[0])
    weights = np.arange(1.0, shape[0] + 1)
    scores = naive.krum_scores(plain, byzantine)
    assert_near(krum_scores(clients, byzantine), scores, terms=shape[1])
    ref = naive.krum(plain, weights, byzantine, keep)
    assert_near(krum(clients, shares_of(weights), byzantine, keep), ref, terms=keep + 4)


def test_krum_tells_apart_clients_that_differ_in_their_last_digits():
    clients = torch.ones(5, 3)
    clients[1:, 0] += torch.tensor([1, 2, 3, 9]) * 2**-20
    assert krum(clients, (0.2,) * 5, 1)[0] in clients[1:3, 0]


@pytest.mark.parametrize("rule", ["median", "trimmed mean", "krum"])
def test_robust_rules_stay_among_the_honest(rule):
    honest, _ = draw((7, 40))
    hostile = torch.full((2, 40), 1e6)
    everyone = torch.cat([hostile[:1], honest, hostile[1:]])
    comp = {
        "median": lambda: median(everyone),
        "trimmed mean": lambda: trimmed_mean(everyone, 0.25),
        "krum": lambda: krum(everyone, (1 / 9,) * 9, byzantine=2),
    }[rule]()
    assert (comp >= honest.amin(dim=0)).all() and (comp <= honest.amax(dim=0)).all()
    assert mean(everyone, (1 / 9,) * 9).max() > 1e5


@pytest.mark.parametrize(
    "rule", [median, lambda c: trimmed_mean(c, 0.2), lambda c: krum_scores(c, 1)]
)
def test_robust_rules_do_not_ask_in_which_order_clients_come(rule):
    clients, _ = draw((6, 9))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    comp, ref = rule(clients[order]), rule(clients)
    assert_near(comp, (ref[order] if len(ref) == 6 else ref).numpy())


def test_rules_refuse_what_cannot_be():
    clients = torch.zeros(3, 2)
    for trim in (-0.1, 0.5, float("nan")):
        with pytest.raises(ValueError, match="trim"):
            trimmed_mean(clients, trim)
    with pytest.raises(ValueError, match="3 clients"):
        mean(clients, (0.5, 0.5))
    with pytest.raises(ValueError, match="sum"):
        mean(clients, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="keep 4"):
        krum(clients, (1 / 3,) * 3, 0, keep=4)
    with pytest.raises(ValueError, match="at least 1"):
        median(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="one above 0"):
        shares_of([0.0, 0.0])


def test_unsound_clients_are_named_and_the_sound_are_not():
    server = torch.ones(4)
    clients = torch.ones(5, 4)
    clients[1, 2] = float("nan")
    clients[3] = torch.tensor([float("inf"), -float("inf"), 1, 1])
    clients[4] = 1 + 3
    assert list(unsound(clients, server)) == [1, 3]
    found = unsound(clients, server)
    assert "1 of its 4" in found[1] and "2 of its 4" in found[3]
    assert unsound(clients[:0], server) == {}


def test_an_update_too_long_for_float32_is_still_measured():
    clients = torch.full((1, 4), 1e30)  # its square is not a float32
    assert unsound(clients, torch.zeros(4)) == {}
    assert unsound(clients * 1e8, torch.zeros(4)) == {}  # nor is their sum
    found = unsound(torch.tensor([[1e30] * 4, [1.0] * 4]), torch.zeros(4))
    assert list(found) == [0] and "2e+30 long" in found[0]


STEPS = {"fedavgm": fedavgm, "fedadagrad": fedadagrad, "fedadam": fedadam, "fedyogi": fedyogi}
SETTINGS = RunConfig(
    server_lr=0.7, server_momentum=0.9, server_beta1=0.9, server_beta2=0.99, tau=1e-3
)


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("width", [1, 33])
def test_server_optimizers_over_rounds(kind, width):
    server, plain = draw((width,))
    means, plain_means = draw((6, width), seed=1)
    means[2], plain_means[2] = server, plain  # and a round in which hardly anything moves
    refs = naive.server_rounds(kind, plain, plain_means, 0.7, 0.9, 0.99, 1e-3, second=1e-6)
    state = first(server, tau=1e-3)
    for target, ref in zip(means, refs, strict=True):
        given = server, *state.values()
        before = [each.clone() for each in given]
        server, state = STEPS[kind](SETTINGS, server, target, state)
        assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))
        assert server.dtype == torch.float32
        assert_near(server, ref, terms=200)  # 1 / (sqrt(v) + tau) may magnify a rounding


@pytest.mark.parametrize("kind", STEPS)
def test_servers_side_by_side_are_servers_alone(kind):
    servers, _ = draw((3, 11))
    means, _ = draw((3, 11), seed=1)
    comp, state = STEPS[kind](SETTINGS, servers, means, first(servers, 1e-3))
    for s in range(3):
        one, own = STEPS[kind](SETTINGS, servers[s], means[s], first(servers[s], 1e-3))
        assert torch.equal(one, comp[s])
        assert all(torch.equal(value, state[name][s]) for name, value in own.items())


def test_fedavgm_without_momentum_is_fedavg():
    server, _ = draw((50,))
    target, plain = draw((50,), seed=1)
    comp, _ = fedavgm(RunConfig(server_momentum=0), server, target, first(server))
    assert_near(comp, plain)


@pytest.mark.parametrize("kind", STEPS)
def test_a_server_at_its_clients_mean_stays(kind):
    server, _ = draw((5,))
    comp, _ = STEPS[kind](SETTINGS, server, server, first(server, 1e-3))
    assert torch.equal(comp, server)


def quadratics(count, width, seed):
    """K gradients a_k * (x - b_k), of losses whose optima differ from client to client."""
    random = np.random.RandomState(seed)
    curve, best = random.uniform(0.5, 2, (count, width)), random.standard_normal((count, width))
    return curve, best, [lambda x, a=a, b=b: a * (x - b) for a, b in zip(curve, best, strict=True)]


def test_scaffold_follows_its_twin():
    _, _, gradients = quadratics(3, 4, seed=0)
    server, control = np.zeros(4), np.zeros(4)
    controls = np.zeros((3, 4))
    for _ in range(4):
        refs = naive.scaffold(gradients, server, controls, control, (2, 5, 0), 0.1, 1.0)
        clients, new, new_control, server_after = refs
        as_torch = [torch.from_numpy(a) for a in (controls, control, clients, server)]
        comp = client_controls(*as_torch, torch.tensor([2, 5, 0]), 0.1)
        np.testing.assert_allclose(comp, new, atol=1e-12)
        after = server_control(as_torch[1], as_torch[0], comp, (1 / 3,) * 3)
        np.testing.assert_allclose(after, new_control, atol=1e-12)
        controls, control, server = new, new_control, server_after


def test_scaffold_finds_the_optimum_where_fedavg_does_not():
    curve, best, gradients = quadratics(4, 3, seed=1)
    optimum = (curve * best).sum(axis=0) / curve.sum(axis=0)

    def run(corrected):
        server, control, controls = np.zeros(3), np.zeros(3), np.zeros((4, 3))
        for _ in range(300):
            clients, new, new_control, server = naive.scaffold(
                gradients, server, controls, control, (10,) * 4, 0.1, 1.0
            )
            if corrected:
                controls, control = new, new_control
        return np.abs(server - optimum).max()

    assert run(corrected=True) < 1e-9 < 1e-3 < run(corrected=False)


def test_scaffold_refuses_what_cannot_be():
    two = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="lr"):
        client_controls(two, two[0], two, two[0], torch.tensor([1, 1]), 0.0)
    with pytest.raises(ValueError, match="2 clients"):
        server_control(two[0], two, two, (1.0,))
    with pytest.raises(ValueError, match="sum 1.5"):
        server_control(two[0], two, two, (0.75, 0.75))


def test_the_proximal_twins_gradient_is_the_slope_of_its_loss():
    random = np.random.RandomState(0)
    weights, anchor, gradient = random.standard_normal((3, 5))
    comp = naive.proximal_gradient(gradient, weights, anchor, mu=0.3)
    for p in range(5):
        step = np.eye(5)[p] * 1e-5
        up, down = (
            gradient @ (weights + sign * step)
            + naive.proximal_loss(weights + sign * step, anchor, 0.3)
            for sign in (1, -1)
        )
        assert comp[p] == pytest.approx((up - down) / 2e-5, abs=1e-8)


def test_ditto_lies_between_its_own_optimum_and_the_server():
    own, anchor = np.array([1.0, -2.0]), np.zeros(2)
    for mu, share in ((0.0, 1.0), (1.0, 0.5), (3.0, 0.25)):  # argmin of 1/2|v-own|^2 + mu/2|v|^2
        comp = naive.ditto(lambda v: v - own, np.ones(2), anchor, steps=200, lr=0.2, mu=mu)
        np.testing.assert_allclose(comp, share * own, atol=1e-9)
