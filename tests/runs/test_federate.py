"""Whole runs on small tables: what they compute, write, refuse and survive."""

import json

import numpy as np
import pytest
import torch

from kernels.heads.plain import Kind, as_rows, named
from pipeline.errors import ConfigError
from pipeline.federation.clients import split_domain
from pipeline.federation.plan import build_plan, round_rows, seeded_order, steps_a_round
from pipeline.runs.advice import beyond_noise, said_of_worse
from pipeline.runs.folder import read_adapters, read_first_adapter, write_adapters
from tests.naive import steps as naive
from tests.runs.small_runs import ALL, FILES, KIND, PARTS, config, figures, run, seeded_start, small


def test_same_seed_same_bytes_and_another_seed_others(table, tmp_path):
    first, second = run(table, tmp_path / "1"), run(table, tmp_path / "2")
    assert figures(first) == figures(second)
    for name in FILES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    run(table, tmp_path / "3", config(seed=1))
    adapters = [(tmp_path / n / "adapter.safetensors").read_bytes() for n in "13"]
    assert adapters[0] != adapters[1]


def test_a_fold_in_a_batch_equals_the_fold_alone(table, tmp_path):
    together = run(table, tmp_path / "all")["results"]
    for held_out, result in zip(ALL, together, strict=True):
        alone = run(table, tmp_path / held_out[0], config(held_out=(held_out,)))["results"]
        assert alone == [result]


def test_one_round_of_one_client_equals_the_twin(tmp_path):
    one = small(rows=(50,))
    settings = config(held_out=((),), rounds=1, local_epochs=2, lr=1e-2)
    document = run(one, tmp_path, settings)
    plan = build_plan(one, settings)
    rows = round_rows(plan.lanes, 0, seeded_order)[:, 0].numpy()
    batches = [batch[batch >= 0] for batch in rows]
    assert len(batches) == steps_a_round(plan.lanes[0]) == 8
    unit = one.text_features / np.linalg.norm(one.text_features, axis=1, keepdims=True)
    weights, losses = naive.train(
        [w.numpy() for w in named(KIND, seeded_start()).values()], batches, one.features,
        one.labels,
        unit.astype(float), one.logit_scale, 1e-2, 0.2, 0.9, 0.98, 1e-6,
    )  # fmt: skip
    tensors, facts = read_adapters(tmp_path / "adapter.safetensors")
    for name, wanted in zip(PARTS, weights, strict=True):
        found = tensors[f"last.{name}"]
        np.testing.assert_allclose(found[0], wanted, atol=2e-4)
    line = json.loads((tmp_path / "rounds.jsonl").read_text())
    assert line["folds"][0]["train_loss"]["a"] == pytest.approx(np.mean(losses), rel=1e-3)
    client = plan.folds[0].clients[0]
    answers = naive.top1(weights, one.features[client.test].astype(float), unit.astype(float))
    assert document["results"][0]["participants"] == np.mean(answers == one.labels[client.test])
    assert document["results"][0]["unseen"] is None and facts["rounds_done"] == 1


def test_aggregation_is_the_mean_over_clients_by_uniform_or_rows(table, tmp_path):
    for weighting in ("uniform", "rows"):
        settings = config(held_out=((),), rounds=1, weighting=weighting)
        run(table, tmp_path / weighting, settings)
        run(
            table, tmp_path / f"{weighting} local", config(held_out=((),), rounds=1, method="local")
        )
        average, _ = read_adapters(tmp_path / weighting / "adapter.safetensors")
        own, _ = read_adapters(tmp_path / f"{weighting} local" / "adapter.safetensors")
        sizes = np.array([36, 27, 48]) if weighting == "rows" else np.ones(3)
        for name in PARTS:
            each = own[f"last.{name}"].numpy().astype(float)
            wanted = np.tensordot(sizes / sizes.sum(), each, 1)
            np.testing.assert_allclose(average[f"last.{name}"][0], wanted, atol=1e-7)


@pytest.mark.parametrize("method", ["fedavg", "local", "central", "zero-shot"])
def test_methods_report_the_same_shape_and_hold_the_domain_out(table, tmp_path, method):
    document = run(table, tmp_path, config(method=method, eval="every"))
    for held_out, result in zip("abc", document["results"], strict=True):
        assert result["held_out"] == held_out
        assert set(result["per_domain"]) == set("abc") == set(result["zero_shot"]["per_domain"])
        assert result["unseen"] == result["per_domain"][held_out]
        seen = [v for k, v in result["per_domain"].items() if k != held_out]
        assert result["participants"] == pytest.approx(np.mean(seen))
        assert result["overall"] == pytest.approx(np.mean(list(result["per_domain"].values())))
        if method == "zero-shot":
            assert result["best_round"] is None
            assert result["per_domain"] == result["zero_shot"]["per_domain"]
    if method != "zero-shot":
        for line in (tmp_path / "rounds.jsonl").read_text().splitlines():
            for held_out, fold in zip("abc", json.loads(line)["folds"], strict=True):
                assert held_out not in fold["val_accuracy"] | fold["train_accuracy"]
                assert held_out in fold["test_accuracy"]


@pytest.mark.parametrize("method", ["fedavg", "ditto"])
def test_last_best_and_every_report_the_same_of_the_earliest_maximum(table, tmp_path, method):
    ways = ("last", "best", "every")
    last, best, every = (
        run(table, tmp_path / way, config(rounds=8, eval=way, method=method)) for way in ways
    )
    assert last["results"] == best["results"] == every["results"]
    facts = [read_adapters(tmp_path / way / "adapter.safetensors")[1]["chosen"] for way in ways]
    assert facts[0] == facts[1] == facts[2]
    for fold, result in zip(facts[0], last["results"], strict=True):
        assert fold["test_accuracy"] == result["per_domain"]
    told = (tmp_path / "last/rounds.jsonl").read_text().splitlines()
    assert all(fold["test_accuracy"] is None for x in told for fold in json.loads(x)["folds"])
    lines = [json.loads(x) for x in (tmp_path / "every/rounds.jsonl").read_text().splitlines()]
    for f, result in enumerate(every["results"]):
        means = [np.mean(list(line["folds"][f]["val_accuracy"].values())) for line in lines]
        assert result["best_round"] == int(np.argmax(means))
        assert result["per_domain"] == lines[result["best_round"]]["folds"][f]["test_accuracy"]
    tested = [
        json.loads(x)["folds"] for x in (tmp_path / "best/rounds.jsonl").read_text().splitlines()
    ]
    assert all(
        (fold["test_accuracy"] is not None) == fold["best"] for line in tested for fold in line
    )


def test_two_domains_held_out_of_one_training(table, tmp_path):
    (result,) = run(table, tmp_path, config(held_out=(("a", "c"),)))["results"]
    assert result["held_out"] == "a,c"
    assert result["unseen"] == pytest.approx(
        (result["per_domain"]["a"] + result["per_domain"]["c"]) / 2
    )


@pytest.mark.parametrize("count", [10, 11, 59, 60, 1670, 2048])
@pytest.mark.parametrize(("fraction", "seed"), [(0.6, 0), (0.8, 3), (0.3, 1)])
def test_split_equals_the_twin(count, fraction, seed):
    table = small(rows=(7, count))
    (client,) = split_domain(table, 1, config(split=fraction, seed=seed))
    for found, wanted in zip((client.train, client.val, client.test),
                             naive.split(count, fraction, seed), strict=True):  # fmt: skip
        np.testing.assert_array_equal(found, wanted + 7)


def test_a_split_that_the_cache_fixes_is_kept():
    split = np.array([0, 0, 0, 1, 2, 2, 0, 1], np.int8)
    (client,) = split_domain(small(rows=(8,), split=split), 0, config())
    assert [x.tolist() for x in (client.train, client.val, client.test)] == [
        [0, 1, 2, 6], [3, 7], [4, 5],
    ]  # fmt: skip


@pytest.mark.parametrize("batch", [2, 7, 8, 36, 100])
def test_every_row_once_an_epoch_but_a_lone_last_one(table, batch):
    plan = build_plan(table, config(batch=batch, local_epochs=3))
    rows = round_rows(plan.lanes, 5, seeded_order).numpy()
    for at, lane in enumerate(plan.lanes):
        own = rows[:, at]
        left = len(lane.train) % batch == 1
        counts = np.bincount(own[own >= 0], minlength=len(table.labels))[lane.train]
        assert counts.sum() == 3 * (len(lane.train) - left) and counts.max() <= 3
        assert (own[:, 0] >= 0).sum() == steps_a_round(lane)
        assert not ((own >= 0).sum(axis=1) == 1).any()
    steps = [steps_a_round(lane) for lane in plan.lanes]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("rows", [(0, 60, 60), (1, 60, 60), (4, 60, 60)])
def test_a_client_with_too_few_rows_is_named(tmp_path, rows):
    with pytest.raises(ConfigError, match=r"client 'a' has \d rows"):
        run(small(rows=rows), tmp_path, config(held_out=((),)))
    run(small(rows=rows), tmp_path / "held out", config(held_out=(("a",),)))


def test_nobody_left_to_train_is_refused(table, tmp_path):
    with pytest.raises(ConfigError, match="all of its domains"):
        run(table, tmp_path, config(held_out=(("a", "b", "c"),)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", float("nan")), ("batch", 1), ("rounds", 0), ("method", "x"), ("split", 1.0)]
    + [("seed", -1), ("beta2", 1.0), ("held_out", ())],
)
def test_settings_that_cannot_be_are_named(name, value):
    with pytest.raises(ConfigError, match=name):
        config(**{name: value})


def test_a_start_that_is_not_finite_is_refused_before_training(table, tmp_path):
    broken = seeded_start()
    broken[-3] = float("nan")
    with pytest.raises(ConfigError, match="adapter to start from .* not finite"):
        run(table, tmp_path / "run", first_adapter=broken)
    assert not (tmp_path / "run").exists()


def test_an_adapter_that_is_not_finite_stops_the_run(table, tmp_path):
    wild = config(optimizer="sgd", momentum=0.0, lr=1e6, weight_decay=1e3, head="linear")
    with pytest.raises(ConfigError, match=r"no client's adapter .* diverged at lr .*--lr or"):
        run(table, tmp_path, wild)
    assert not (tmp_path / "done").exists()


def test_a_run_that_ends_below_zero_shot_says_so(table, tmp_path, heard):
    document = run(table, tmp_path, config(lr=10.0))
    worse = [line for line in heard if "on validation, zero-shot CLIP" in line]
    assert worse and all("a smaller --lr, --start identity or --preset tuned" in w for w in worse)
    for result in document["results"]:
        assert all(np.isfinite(value) for value in result["per_domain"].values())
        named = any(line.startswith(f"held out {result['held_out']}:") for line in worse)
        changed = result["val_changed"]
        below = result["val_accuracy"] < result["zero_shot"]["val_accuracy"]
        assert below == (changed is not None)
        assert named == (below and beyond_noise(changed["lost"], changed["won"]))


@pytest.mark.parametrize(("lost", "won", "beyond"), [(3, 0, False), (5, 0, True), (9, 4, False)])
def test_a_few_lost_rows_are_noise(lost, won, beyond):
    changed = {"lost": lost, "won": won, "start": 0.4}
    said = said_of_worse("a", 0, 0.5, 0.6, changed, vars(config(weight_decay=0.2)))
    assert (said is not None) == beyond
    if said:  # above its start: what held it back is named, and no smaller lr
        assert "a larger --lr, more --rounds, --weight-decay 0" in said and "smaller" not in said


def test_what_changed_on_validation_is_counted_row_by_row(table, tmp_path):
    settings = config(held_out=((),), lr=10.0)
    (result,) = run(table, tmp_path, settings)["results"]
    lost, won = (result["val_changed"][name] for name in ("lost", "won"))
    fold = build_plan(table, settings).folds[0]
    rows = np.concatenate([client.val for client in fold.clients])
    text = table.text_features / np.linalg.norm(table.text_features, axis=1, keepdims=True)
    before = (table.features[rows] @ text.T).argmax(1) == table.labels[rows]
    sizes = [len(client.val) for client in fold.clients]
    log = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    reached = log[result["best_round"]]["folds"][0]["val_accuracy"].values()
    right = sum(value * size for value, size in zip(reached, sizes, strict=True))
    assert lost - won == pytest.approx(before.sum() - right) and 0 < lost <= before.sum()


def test_a_done_run_is_shown_another_one_refused_and_force_trains(table, tmp_path, heard):
    first = run(table, tmp_path / "run")
    heard.clear()
    assert run(table, tmp_path / "run") == first
    assert "--force" in heard[0]
    before = {name: (tmp_path / "run" / name).read_bytes() for name in FILES}
    with pytest.raises(ConfigError, match=r"settings.lr = 0.001, but 0.002"):
        run(table, tmp_path / "run", config(lr=2e-3))
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in FILES}
    run(table, tmp_path / "run", config(lr=2e-3), force=True)
    assert before["rounds.jsonl"] != (tmp_path / "run/rounds.jsonl").read_bytes()


def test_first_adapter_from_a_file(table, tmp_path):
    run(table, tmp_path / "one", config(held_out=(("a",),)))
    file = tmp_path / "one" / "adapter.safetensors"
    start = read_first_adapter(file, KIND)
    tensors, _ = read_adapters(file)
    best = {name.removeprefix("best."): t for name, t in tensors.items() if "best." in name}
    assert torch.equal(start, as_rows(KIND, best)[0])
    with pytest.raises(ConfigError, match=r"w1 of shape \(13, 13\); got \(1, 12, 12\)"):
        read_first_adapter(file, Kind("FedAtImg", "attention", 13, 4))
    write_adapters(tmp_path / "x", {"odd.w1": tensors["last.w1"]}, {})
    with pytest.raises(ConfigError, match="needs w1 of shape .* got nothing"):
        read_first_adapter(tmp_path / "x", KIND)
    with pytest.raises(ConfigError, match="no facts of a run"):
        read_adapters(tmp_path / "x")
    run(table, tmp_path / "three")
    with pytest.raises(ConfigError, match="contains 3 adapters"):
        read_first_adapter(tmp_path / "three" / "adapter.safetensors", KIND)
    (tmp_path / "y").write_text("<html>")
    with pytest.raises(ConfigError, match="needs a safetensors file"):
        read_first_adapter(tmp_path / "y", KIND)
    with pytest.raises(ConfigError, match="no such file"):
        read_first_adapter(tmp_path / "z", KIND)


def test_rounds_that_choose_nobody_send_noise_only(table, tmp_path):
    settings = config(clip=1.0, noise=1.0, client_fraction=1e-6)  # Poisson: 0 of 2 clients
    run(table, tmp_path / "run", settings)
    log = (tmp_path / "run" / "rounds.jsonl").read_text("utf-8")
    told = [json.loads(line) for line in log.splitlines()]
    assert len(told) == 4 and not any(fold["train_loss"] for fold in told[0]["folds"])
