"""Federated methods end to end: rounds as the run makes them, against twins client by client."""

import numpy as np
import pytest
import torch

from kernels.heads.plain import named
from pipeline.federation.local import stream_of
from pipeline.federation.methods.privacy import private_mean
from pipeline.federation.payload import received
from pipeline.federation.plan import build_plan, settings_of
from pipeline.federation.state import model_rows, own_part
from tests.federation.twins import CPU, SGD, Twin, close, config
from tests.naive import server as naive_server
from tests.runs.small_runs import small


@pytest.mark.parametrize("method", ["fedavg", "median", "trimmed-mean", "krum"])
def test_averaging_rules(method):
    twin = Twin(config(**SGD, method=method, trim=0.34, byzantine=0))
    server = twin.start
    for round, state in enumerate(twin.rounds(2)):
        clients = np.array([twin.sgd(server, k, round) for k in range(3)])
        server = {
            "fedavg": lambda c: naive_server.mean(c, [1 / 3] * 3),
            "median": naive_server.median,
            "trimmed-mean": lambda c: naive_server.trimmed_mean(c, 1),
            "krum": lambda c: naive_server.krum(c, [1 / 3] * 3, 0, 1),
        }[method](clients)
        close(state["server"][0], server)


@pytest.mark.parametrize("method", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_server_optimizers(method):
    twin = Twin(config(**SGD, method=method, server_lr=0.05, tau=1e-2, server_momentum=0.9))
    server, means = twin.start, []
    for round, state in enumerate(twin.rounds(3)):
        clients = np.array([twin.sgd(server, k, round) for k in range(3)])
        means.append(naive_server.mean(clients, [1 / 3] * 3))
        visited = naive_server.server_rounds(
            method, twin.start, np.array(means), 0.05, 0.9, 0.99, 1e-2, 1e-4
        )
        server = visited[-1]
        close(state["server"][0], server)


def test_fedprox_pulls_towards_the_server():
    twin = Twin(config(**SGD, method="fedprox", mu=0.7))
    server = twin.start
    for round, state in enumerate(twin.rounds(2)):
        anchor = server
        clients = [
            twin.sgd(anchor, k, round, lambda w, anchor=anchor: 0.7 * (w - anchor))
            for k in range(3)
        ]
        server = naive_server.mean(np.array(clients), [1 / 3] * 3)
        close(state["server"][0], server)


def test_ditto_keeps_a_personal_adapter_beside_the_server_s():
    twin = Twin(config(**SGD, method="ditto", mu=0.7))
    server, personal = twin.start, [twin.start] * 3
    for round, state in enumerate(twin.rounds(2)):
        anchor = server
        clients = [twin.sgd(anchor, k, round) for k in range(3)]
        personal = [
            twin.sgd(personal[k], k, round, lambda w, anchor=anchor: 0.7 * (w - anchor))
            for k in range(3)
        ]
        server = naive_server.mean(np.array(clients), [1 / 3] * 3)
        rows = model_rows(twin.plan, state)
        close(rows[0], server)
        assert [model.clients for model in twin.plan.models] == [(), (0,), (1,), (2,)]
        for k in range(3):
            close(rows[1 + k], personal[k])
    assert [model.unseen for model in twin.plan.models] == [True, False, False, False]


def test_fedper_shares_all_but_the_last_layer():
    twin = Twin(config(**SGD, method="fedper"))
    mask = own_part(twin.plan, CPU).numpy()
    parts = named(twin.plan.work.kind, torch.from_numpy(mask))
    assert parts["b"].all() and not parts["a"].any()
    models = [twin.start] * 3
    for round, state in enumerate(twin.rounds(2)):
        clients = np.array([twin.sgd(models[k], k, round) for k in range(3)])
        shared = naive_server.mean(clients, [1 / 3] * 3)
        models = [np.where(mask, own, shared) for own in clients]
        for row, wanted in zip(model_rows(twin.plan, state), models, strict=True):
            close(row, wanted)


def test_scaffold():
    twin = Twin(config(**SGD, method="scaffold", server_lr=0.8))
    server, control, controls = twin.start, 0 * twin.start, np.zeros((3, len(twin.start)))
    for round, state in enumerate(twin.rounds(3)):
        gradients, steps = [], []
        for k in range(3):
            queue = iter(twin.batches(k, round))
            gradients.append(lambda w, queue=queue: twin.gradient(w, next(queue)))
            steps.append(len(twin.batches(k, round)))
        _, controls, control, server = naive_server.scaffold(
            gradients, server, controls, control, steps, 0.05, 0.8
        )
        close(state["server"][0], server)
        np.testing.assert_allclose(state["control"][0], control, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("payload", ["fp16", "int8"])
def test_payloads_travel_both_ways(payload):
    twin = Twin(config(**SGD, payload=payload))
    first = torch.from_numpy(twin.start).float()
    server = first
    for round, state in enumerate(twin.rounds(2)):
        start = received(server, first, payload)
        sent = []
        for k in range(3):
            own = torch.from_numpy(twin.sgd(start.double().numpy(), k, round)).float()
            sent.append(received(own, start, payload))
        step = (torch.stack(sent) - start).abs().max() / 127 if payload == "int8" else 1e-3
        server = torch.stack(sent).mean(dim=0)
        # A float32 gradient may fall on the other side of a rounding: one step of one client.
        assert (state["server"][0] - server).abs().max() <= step
        server = state["server"][0]


def test_private_mean_clips_and_adds_the_noise_of_its_key():
    twin = Twin(config(**SGD, clip=0.01, noise=0.5))
    server = torch.from_numpy(twin.start).float()
    (state,) = twin.rounds(1)
    clients = np.array([twin.sgd(twin.start, k, 0) for k in range(3)])
    wanted = private_mean(
        torch.from_numpy(clients).float(), server, clip=0.01, noise=0.5, cohort_size=3.0,
        key=(0, 0, stream_of(twin.fold)),
    )  # fmt: skip
    close(state["server"][0], wanted.numpy())
    assert (state["server"][0] - server).norm() < 0.05


def test_moments_kept_are_those_of_one_long_optimizer():
    twin = Twin(config(method="local", moments="kept", lr=1e-2))
    weights = torch.from_numpy(twin.start)[None].clone().requires_grad_()
    adam = torch.optim.Adam([weights], lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
    for round, state in enumerate(twin.rounds(3)):
        for batch in twin.batches(0, round):
            gradient = twin.gradient(weights.detach()[0].numpy(), batch)
            weights.grad = torch.from_numpy(gradient)[None]
            adam.step()
        np.testing.assert_allclose(
            model_rows(twin.plan, state)[0], weights.detach()[0], rtol=2e-3, atol=2e-4
        )


def test_cosine_schedule_lowers_the_rate_round_by_round():
    plan = build_plan(small(), config(schedule="cosine", rounds=4, lr=1.0))
    rates = [settings_of(plan.lanes, round).lr[0].item() for round in range(4)]
    np.testing.assert_allclose(rates, [1, 0.85355339, 0.5, 0.14644661])
