"""Our server arithmetic against Flower's own strategies, called without a network."""

import numpy as np
import pytest
import torch

from pipeline.federation.methods.mean import mean, shares_of
from pipeline.federation.methods.robust import krum, median, trimmed_mean
from pipeline.federation.methods.server_optimizers import fedadagrad, fedadam, fedavgm, fedyogi
from pipeline.settings import RunConfig
from tests.flower.conftest import outside_of_runs
from tests.packages import need

need("flwr")

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict  # noqa: E402
from flwr.serverapp import strategy as flower  # noqa: E402

K, P, ROUNDS = 9, 40, 5
ROWS = np.arange(1, K + 1)


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    outside_of_runs(monkeypatch)


def draw(seed):
    return np.random.RandomState(seed).standard_normal((K, P)).astype(np.float32)


def replies(clients):
    """What K clients send: their arrays and how many rows they trained on."""
    for k, client in enumerate(clients):
        content = RecordDict(
            {
                "arrays": ArrayRecord({"w": Array(client.copy())}),
                "metrics": MetricRecord({"num-examples": int(ROWS[k])}),
            }
        )
        yield Message(content, dst_node_id=k + 1, message_type="train")


def aggregated(strategy, clients, number=1):
    arrays, _ = strategy.aggregate_train(number, list(replies(clients)))
    return arrays["w"].numpy()


@pytest.mark.parametrize(
    ("strategy", "ours"),
    [
        (flower.FedAvg(), lambda c: mean(c, shares_of(ROWS))),
        (flower.FedMedian(), median),
        (flower.FedTrimmedAvg(beta=0.2), lambda c: trimmed_mean(c, 0.2)),
        (flower.Krum(num_malicious_nodes=2), lambda c: krum(c, shares_of(ROWS), 2)),
        (
            flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=4),
            lambda c: krum(c, shares_of(ROWS), 2, keep=4),
        ),
    ],
    ids=["FedAvg", "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum"],
)
def test_rules(strategy, ours):
    for seed in range(5):
        clients = draw(seed)
        ref = aggregated(strategy, clients)
        np.testing.assert_allclose(ours(torch.from_numpy(clients)), ref, atol=2e-6)


def fedadam_factor(number):
    """Flower's FedAdam alone corrects a bias, as if a round had gone before the first one."""
    return np.sqrt(1 - 0.99 ** (number + 1.0)) / (1 - 0.9 ** (number + 1.0))


# (Flower's, ours, our settings, Flower's factor on the server's learning rate)
ADAPTIVE = {"server_beta1": 0.9, "server_beta2": 0.99, "tau": 1e-2}
OPTIMIZERS = {
    "FedAvgM": (
        lambda: flower.FedAvgM(server_learning_rate=0.7, server_momentum=0.9),
        fedavgm,
        {"server_momentum": 0.9},
        lambda number: 1.0,
    ),
    "FedAdagrad": (
        lambda: flower.FedAdagrad(eta=0.7, tau=1e-2),
        fedadagrad,
        {"server_beta1": 0.0, "tau": 1e-2},
        lambda number: 1.0,
    ),
    "FedAdam": (
        lambda: flower.FedAdam(eta=0.7, beta_1=0.9, beta_2=0.99, tau=1e-2),
        fedadam,
        ADAPTIVE,
        fedadam_factor,
    ),
    "FedYogi": (
        lambda: flower.FedYogi(eta=0.7, beta_1=0.9, beta_2=0.99, tau=1e-2),
        fedyogi,
        ADAPTIVE,
        lambda number: 1.0,
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_server_optimizers(name):
    make, ours, settings, factor = OPTIMIZERS[name]
    strategy, shares = make(), shares_of(ROWS)
    server = torch.from_numpy(draw(100)[0])
    # Flower starts the second moment at 0, we at tau ** 2.
    state = {name: torch.zeros_like(server) for name in ("momentum", "second")}
    for number in range(1, ROUNDS + 1):
        clients = draw(number)
        arrays = ArrayRecord({"w": Array(server.numpy().copy())})
        strategy.current_arrays = arrays if name == "FedAvgM" else {"w": server.numpy()}
        ref = aggregated(strategy, clients, number)
        target = mean(torch.from_numpy(clients), shares)
        config = RunConfig(**settings, server_lr=0.7 * factor(number))
        server, state = ours(config, server, target, state)
        np.testing.assert_allclose(server, ref, atol=2e-5)
        server = torch.from_numpy(np.array(ref, np.float32))


def test_clipping():
    from flwr.supercore.differential_privacy import compute_clip_model_update

    from pipeline.federation.methods.privacy import clipped_updates

    server, clients = draw(0)[0], draw(1)
    for clip in (1.0, 6.0, 100.0):
        comp = clipped_updates(torch.from_numpy(clients), torch.from_numpy(server), clip)
        for client, ours in zip(clients, comp, strict=True):
            theirs = [client.copy()]
            compute_clip_model_update(theirs, [server], clip)
            np.testing.assert_allclose(ours, theirs[0] - server, atol=2e-6)
