"""Federated methods end to end: rounds as the run makes them, against twins client by client."""

import json
from importlib import import_module

import numpy as np
import pytest
import torch

from kernels.heads import first_row, named
from kernels.local_steps_torch import losses_of
from pipeline.config import PRESETS, ConfigError, RunConfig
from pipeline.lanes import build_plan, round_rows, seeded_order, settings_of
from pipeline.local_round import Engine, stream_of
from pipeline.options import given_settings
from pipeline.outcomes import outcomes
from pipeline.payload import received
from pipeline.privacy import private_mean
from pipeline.rounds import run_round
from pipeline.state import first_state, model_rows, own_part
from pipeline.training import advance, begin, to_device
from tests import naive_heads, naive_server
from tests.test_federate import run, small

SGD = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.05, "weight_decay": 0.0}
CPU = torch.device("cpu")


def config(**changed) -> RunConfig:
    return RunConfig(
        **(
            {"held_out": (("a",),), "rounds": 3, "batch": 16, "head": "low-rank", "rank": 2}
            | changed
        )
    )


class Twin:
    """The same table and config with gradients in float64 and everything else in loops."""

    def __init__(self, settings: RunConfig) -> None:
        self.table = small(rows=(40, 45, 50, 40))
        self.config, self.plan = settings, build_plan(self.table, settings)
        self.fold = self.plan.folds[0]
        self.cached = to_device(self.table, CPU)
        self.engine = Engine(self.plan, self.cached, "torch")
        kind = self.plan.work.kind
        text = torch.from_numpy(self.table.text_features)
        self.start = first_row(kind, settings.start, settings.seed, text).double().numpy()

    def batches(self, client: int, round: int) -> list[torch.Tensor]:
        lane = next(x for x in self.plan.lanes if x.client == client and not x.personal)
        rows = round_rows([lane], round, seeded_order)[:, 0].long()
        return [batch for batch in rows if batch[0] >= 0]

    def gradient(self, weights: np.ndarray, batch: torch.Tensor) -> np.ndarray:
        row = torch.from_numpy(np.array(weights))[None].requires_grad_()
        loss = losses_of(
            self.plan.work, row, self.cached.features.double(), self.cached.labels,
            self.cached.text.double(), batch[None], self.cached.logit_scale,
        )  # fmt: skip
        return torch.autograd.grad(loss.sum(), row)[0][0].numpy()

    def sgd(self, start, client, round, extra=lambda w: 0.0, lr=None):
        weights = np.array(start)
        for batch in self.batches(client, round):
            step = self.gradient(weights, batch) + extra(weights)
            weights = weights - (lr or self.config.lr) * step
        return weights

    def rounds(self, count: int) -> list[dict]:
        state, found = first_state(self.plan, self.cached.text, None), []
        for round in range(count):
            state, _ = run_round(state, self.engine, round)
            found.append(state)
        return found


def close(found: torch.Tensor, wanted: np.ndarray) -> None:
    # The twin works in float64; float32 gradients at scale 20 differ by about 1e-6 of their size.
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-4, atol=2e-6)


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


@pytest.mark.parametrize(
    "changed",
    [
        {"partition": "dirichlet", "clients": 4, "alpha": 0.3},
        {"partition": "pathological", "clients": 4, "classes_per_client": 2},
        {"partition": "quantity", "clients": 3},
        {"partition": "iid", "clients": 3, "shots": 2},
    ],
)
def test_partitions_give_every_row_to_one_client_of_its_domain(changed):
    table = small(rows=(200, 180, 220))
    whole = build_plan(table, config()).folds[0]
    fold = build_plan(table, config(**changed)).folds[0]
    for domain in (1, 2):
        own = [c for c in fold.clients if c.domain == domain]
        (all_of_it,) = (c for c in whole.clients if c.domain == domain)
        assert [c.name for c in own] == [f"{'abc'[domain]}/{k}" for k in range(len(own))]
        for use in ("train", "val", "test"):
            dealt = np.concatenate([getattr(c, use) for c in own])
            if use == "train" and "shots" in changed:
                for c in own:
                    assert np.bincount(table.labels[c.train]).max() <= 2
            else:
                assert sorted(dealt) == sorted(getattr(all_of_it, use))
    streams = [c.stream for c in fold.clients]
    assert len(set(streams)) == len(streams) and min(streams) > 2
    lanes = build_plan(table, config(**changed)).lanes
    assert all(len(lane.train) >= 2 for lane in lanes)


def test_holdout_validates_on_train_rows_and_tests_on_the_others():
    split = np.repeat(np.array([0, 1, 2, 0], np.int8), 20)
    table = small(rows=(80,), split=split)
    settings = config(held_out=((),), fixed_split="holdout", split=0.6)
    (client,) = build_plan(table, settings).folds[0].clients
    assert len(client.val) == 8 and len(client.train) == 32
    assert set(client.train) | set(client.val) == set(np.flatnonzero(split == 0))
    assert set(client.test) == set(np.flatnonzero(split > 0))
    with pytest.raises(ConfigError, match="fixes none"):
        build_plan(small(), config(fixed_split="holdout"))


def test_a_client_that_is_not_finite_is_left_out_by_name_and_the_round_goes_on():
    twin = Twin(config(**SGD))
    sick = twin.fold.clients[1].train
    twin.cached.features[sick[:3]] = float("nan")
    state, (told,) = run_round(first_state(twin.plan, twin.cached.text, None), twin.engine, 0)
    assert list(told.rejected) == ["c"] and "not finite" in told.rejected["c"]
    clients = np.array([twin.sgd(twin.start, k, 0) for k in (0, 2)])
    close(state["server"][0], naive_server.mean(clients, [0.5, 0.5]))
    twin.cached.features[:] = float("nan")
    _, (told,) = run_round(state, twin.engine, 1)
    assert "no client's adapter" in told.diverged


def test_cohorts_train_some_clients_only_and_repeat_by_seed():
    twin = Twin(config(**SGD, client_fraction=0.4, stragglers=0.5, dropout=0.3))
    again = Twin(twin.config)
    for one, two in zip(twin.rounds(3), again.rounds(3), strict=True):
        assert torch.equal(one["server"], two["server"])
    clients = [twin.sgd(twin.start, k, 0) for k in range(3)]
    (first, *_) = Twin(config(**SGD, client_fraction=0.4)).rounds(1)
    assert sum(np.allclose(first["server"][0], c, atol=1e-5) for c in clients) == 1


@pytest.mark.parametrize("method", ["fedavg", "ditto", "fedper", "scaffold", "fedyogi"])
def test_a_stopped_run_of_every_memory_goes_on_with_the_same_bytes(method, tmp_path, monkeypatch):
    plain = SGD if method == "scaffold" else {"moments": "kept"}
    settings = config(**plain, method=method, rounds=4, payload="int8")
    table = small()
    run(table, tmp_path / "calm", settings)
    module = import_module("pipeline.federate")

    calls, original = [], module.advance

    def broken(engine, progress):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(engine, progress)

    monkeypatch.setattr(module, "advance", broken)
    with pytest.raises(KeyboardInterrupt):
        run(table, tmp_path / "cut", settings)
    monkeypatch.setattr(module, "advance", original)
    heard = []
    run(table, tmp_path / "cut", settings, say=heard.append)
    assert "going on after round" in heard[0]
    for name in ("rounds.jsonl", "adapter.safetensors"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


@pytest.mark.parametrize("method", ["fedavg", "local", "central", "ditto", "fedper"])
def test_personalised_is_each_client_s_own_tuning_of_the_chosen_adapter(method):
    twin = Twin(config(**SGD, method=method, personalise=2, rounds=1))
    progress, _ = advance(twin.engine, begin(twin.plan, twin.cached))
    (result,) = outcomes(twin.engine, progress)
    told = result["personalised"]
    assert told["epochs"] == 2
    if method != "central":
        names = [c.name for c in twin.fold.clients]
        assert list(told["after"]["accuracy"]) == names == list(told["before"]["accuracy"])
    for k, client in enumerate(twin.fold.clients):
        (m,) = (m for m in twin.fold.models if k in twin.plan.models[m].clients)
        weights = progress.best[m].double().numpy()
        for found in ("before", "after"):
            parts = {
                n: p.numpy() for n, p in named(twin.plan.work.kind, torch.tensor(weights)).items()
            }
            z = naive_heads.logits(
                "FedAtImg", "low-rank", parts, twin.table.features[client.test].astype(float),
                twin.table.text_features.astype(float), 20.0,
            )  # fmt: skip
            right = (z.argmax(axis=1) == twin.table.labels[client.test]).mean()
            assert told[found]["accuracy"][client.name] == pytest.approx(right)
            lane = next(x for x in build_plan(twin.table, config(**SGD)).lanes if x.client == k)
            rows = round_rows([lane], 1, seeded_order, epochs=2)[:, 0].long()
            for batch in rows:
                weights = weights - 0.05 * twin.gradient(weights, batch)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"head": "cosine"}, "--mode FedAtTxt"),
        ({"head": "clip-adapter", "start": "identity"}, "never train"),
        ({"method": "scaffold"}, "--optimizer sgd --momentum 0"),
        ({"method": "fedper", "head": "linear"}, "one layer"),
        ({"clients": 3}, "partition domain"),
        ({"noise": 1.0}, "needs --clip"),
        ({"noise": 1.0, "clip": 1.0, "method": "median"}, "uniform mean"),
        ({"loss": "hinge"}, "there are contrastive, class, multi-positive"),
        ({"clients": 2.5}, "whole number"),
        ({"trim": 0.5}, "0 to 0.499"),
    ],
)
def test_settings_that_do_not_go_together_are_named(changed, match):
    with pytest.raises(ConfigError, match=match):
        config(**changed)


def test_results_tell_quality_clients_and_bytes(tmp_path):
    table = small()
    settings = RunConfig(held_out=(("a",),), rounds=2, batch=8, partition="iid", clients=2)
    (result,) = run(table, tmp_path, settings)["results"]
    names = {"b/0", "b/1", "c/0", "c/1"}
    for where in (result, result["zero_shot"]):
        assert set(where["clients"]["accuracy"]) == names
        assert 0 <= where["macro_f1"] <= 1 and 0 <= where["calibration_error"] <= 1
        accuracies = list(where["clients"]["accuracy"].values())
        assert where["clients"]["worst"] == min(accuracies)
    assert result["bytes_a_round"] == {"up": 4 * 4 * 312, "down": 4 * 4 * 312, "clip": None}
    json.dumps(result, allow_nan=False)


def test_presets_can_be_and_named_options_win_over_them():
    for name, settings in PRESETS.items():
        config = RunConfig(**given_settings(name, dict.fromkeys(settings)))
        assert all(getattr(config, field) == value for field, value in settings.items())
    assert RunConfig(**given_settings("released", {})) == RunConfig()
    assert given_settings("tuned", {"lr": 0.5, "mode": None})["lr"] == 0.5
