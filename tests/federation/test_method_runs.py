"""Partitions, cohorts, memories and what results tell of every method, end to end."""

import json

import numpy as np
import pytest
import torch

from kernels.heads.plain import named
from pipeline.cli.options import given_settings
from pipeline.errors import ConfigError
from pipeline.federation.plan import build_plan, round_rows, seeded_order
from pipeline.federation.round import run_round
from pipeline.federation.state import first_state
from pipeline.federation.training import advance, begin
from pipeline.runs.folder import RunFolder
from pipeline.runs.outcomes import outcomes
from pipeline.settings import PRESETS, RunConfig
from tests.federation.twins import SGD, Twin, close, config
from tests.naive import heads as naive_heads
from tests.naive import server as naive_server
from tests.runs.small_runs import run, small, stopped_after


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
def test_a_stopped_run_of_every_memory_goes_on_with_the_same_bytes(
    method, tmp_path, monkeypatch, heard
):
    plain = SGD if method == "scaffold" else {"moments": "kept"}
    settings = config(**plain, method=method, rounds=4, payload="int8")
    table = small()
    run(table, tmp_path / "calm", settings)
    monkeypatch.setattr(RunFolder, "due", lambda folder: True)  # a checkpoint every round
    with stopped_after(2), pytest.raises(KeyboardInterrupt):
        run(table, tmp_path / "cut", settings)
    heard.clear()
    run(table, tmp_path / "cut", settings)
    assert "resuming after round" in heard[0]
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
        ({"noise": 1.0}, "pass --clip 1"),
        ({"noise": 1.0, "clip": 1.0, "method": "median"}, "uniform mean"),
        ({"loss": "hinge"}, "choose from contrastive, class, multi-positive"),
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
