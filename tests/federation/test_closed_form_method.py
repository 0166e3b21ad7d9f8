"""Method closed-form and start closed-form: the federated head, how it is chosen, training on."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from kernels.heads.plain import Kind, named
from pipeline.errors import ConfigError
from pipeline.federation.closed_form import tuned_on, with_closed_form
from pipeline.federation.local import Engine
from pipeline.federation.methods import closed_form_choice
from pipeline.federation.methods.closed_form import (
    SENSITIVITY,
    clipped_sums,
    released,
    sums_of,
)
from pipeline.federation.methods.closed_form_choice import (
    SHAPES,
    STRENGTHS,
    TEMPERATURES,
    Tried,
    best_of,
    heads_of,
    scored,
)
from pipeline.federation.plan import build_plan
from pipeline.federation.training import advance, begin, to_device
from pipeline.runs.folder import read_adapters
from pipeline.runs.results import mean_results
from pipeline.runs.results import table as results_table
from pipeline.settings import RunConfig
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options
from tests.naive import closed_form as naive
from tests.packages import need
from tests.runs.small_runs import ALL, config, figures, run, small

CPU = torch.device("cpu")
SOLVED = {"method": "closed-form", "held_out": ((),)}
ON = {"start": "closed-form", "head": "classifier", "mode": "FedAtTxt", "loss": "class",
      "optimizer": "sgd", "lr": 0.05, "weight_decay": 0.0, "weighting": "rows"}  # fmt: skip
PARTITIONS = {
    "iid": {"partition": "iid", "clients": 5},
    "dirichlet": {"partition": "dirichlet", "alpha": 0.05, "clients": 4},
    "one class a client": {"partition": "pathological", "classes_per_client": 1, "clients": 4},
    "many clients": {"partition": "iid", "clients": 30},
}


def folds_of(table, **changed):
    plan = build_plan(table, config(**{**SOLVED, **changed}))
    cached = to_device(table, CPU)
    return plan, cached, with_closed_form(plan, cached).folds


def parts_of(row, table):
    width, classes = table.features.shape[1], len(table.class_names)
    parts = named(Kind("FedAtTxt", "classifier", width, classes), row)
    return parts["text_w"].numpy(), parts["text_b"].numpy()


@pytest.mark.parametrize("solver", ["gda", "ridge", "prototype", "auto"])
@pytest.mark.parametrize("tune_on", ["rows", "domain", "validation"])
def test_the_federated_head_is_the_central_one(solver, tune_on, monkeypatch):
    monkeypatch.setattr(closed_form_choice, "SHAPES",
                        {name: shapes[::4] for name, shapes in SHAPES.items()})  # fmt: skip
    table = small()
    _, _, central = folds_of(table, solver=solver, tune_on=tune_on)
    for partition in PARTITIONS.values():
        _, _, comp = folds_of(table, solver=solver, tune_on=tune_on, **partition)
        assert len(comp[0].clients) > len(central[0].clients)
        agree(comp[0].closed_form, central[0].closed_form, table)


def agree(found, ref, table):
    """The same choice by as many rows, W and b to 1e-6, the same answers."""
    assert dataclasses.astuple(found.chosen)[:4] == dataclasses.astuple(ref.chosen)[:4]
    for ours, theirs in zip(parts_of(found.row, table), parts_of(ref.row, table), strict=True):
        assert abs(ours - theirs).max() <= 1e-6 * max(1, abs(theirs).max())
    x = normalize(torch.from_numpy(table.features), dim=1).numpy()
    answers = [(x @ w.T + b).argmax(1) for w, b in (parts_of(r.row, table) for r in (found, ref))]
    assert (answers[0] == answers[1]).all()


def cross_entropy(logits, y):
    top = logits.max(1, keepdims=True)
    return (np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(y)), y]).sum()


@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (7, 3), (33, 4), (3000, 97)])
def test_scores_are_those_of_the_definition(rows, classes):
    rng = np.random.default_rng(rows)
    zero, added = rng.normal(size=(2, rows, classes)) * 30
    y, strengths = rng.integers(0, classes, rows), (0.0, 0.3, 2.5)
    right, losses = scored(
        torch.from_numpy(zero).float(), torch.from_numpy(added), torch.from_numpy(y), strengths
    )
    for g, strength in enumerate(strengths):
        z = zero.astype(np.float32).astype(float) + strength * added
        assert right[g] == (z.argmax(1) == y).sum()
        ref = [cross_entropy(t * z, y) for t in TEMPERATURES]
        np.testing.assert_allclose(losses[g], ref, rtol=2e-5, atol=2e-5 * rows)


def test_rows_are_scored_by_heads_they_are_left_out_of():
    """Against twins that solve again without the row, at every point of the grid."""
    table = small(rows=(24,), width=5, classes=3)
    plan, cached, folds = folds_of(table, tune_on="rows", solver="ridge")
    client, scale = plan.folds[0].clients[0], table.logit_scale
    x = table.features.astype(float)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    text = table.text_features / np.linalg.norm(table.text_features, axis=1, keepdims=True)
    own, y = x[client.train], table.labels[client.train]
    by_key = {(t.shape, t.strength): t for t in folds[0].closed_form.tried}
    shapes = sorted({t.shape for t in folds[0].closed_form.tried})
    assert shapes == sorted(SHAPES["ridge"])
    for shape in shapes[::4]:
        diagonal = naive.ridge(own, y, 3, shape, scale)[1]
        added = np.array([
            naive.ridge(*naive.without(i, own, y), 3, shape, scale, diagonal=diagonal)[0](own[i])
            for i in range(len(own))
        ])  # fmt: skip
        whole = naive.ridge(own, y, 3, shape, scale)[0]
        added = np.concatenate([added, [whole(row) for row in x[client.val]]])
        at = np.concatenate([client.train, client.val])
        for strength in STRENGTHS["ridge"][::5]:
            z = scale * x[at] @ text.T + strength * added
            tried = by_key[shape, strength]
            assert tried.rows == len(at) and tried.right == (z.argmax(1) == table.labels[at]).sum()
            ref = [cross_entropy(t * z, table.labels[at]) for t in TEMPERATURES]
            np.testing.assert_allclose(tried.losses, ref, rtol=1e-4, atol=1e-4)


def test_domains_are_scored_by_heads_of_the_others():
    table = small()
    plan, cached, folds = folds_of(table, solver="gda")
    assert folds[0].closed_form.by == "domain"
    shape, strength, expected = 1.0, STRENGTHS["gda"][8], np.zeros(len(TEMPERATURES))
    rows = [client.train for client in plan.folds[0].clients]
    for k, own in enumerate(rows):
        others = np.concatenate([r for j, r in enumerate(rows) if j != k])
        head = next(heads_of("gda", sums_of(cached.features, cached.labels, 4,
                                            torch.from_numpy(others)), 20.0, shape))[2]  # fmt: skip
        x = normalize(cached.features[torch.from_numpy(own)].double(), dim=1)
        z = (20.0 * x @ cached.unit_text.double().T + strength * head(x)).numpy()
        weight = sum(map(len, rows)) / len(rows) / len(own)
        expected += [weight * cross_entropy(t * z, table.labels[own]) for t in TEMPERATURES]
    found = [t for t in folds[0].closed_form.tried if (t.shape, t.strength) == (shape, strength)]
    np.testing.assert_allclose(found[0].losses, expected, rtol=1e-4)


def test_what_chooses_by_default():
    table, one = small(), small(rows=(80,))
    assert tuned_on(folds_of(table)[0].folds[0]) == "domain"
    assert tuned_on(folds_of(one)[0].folds[0]) == "rows"
    assert tuned_on(folds_of(one, partition="iid", clients=3)[0].folds[0]) == "rows"
    assert tuned_on(folds_of(table, noise=0.5)[0].folds[0]) == "validation"
    assert tuned_on(folds_of(table, clip=9.0)[0].folds[0]) == "domain"
    assert tuned_on(folds_of(one, clip=9.0)[0].folds[0]) == "validation"
    trains = folds_of(one, **{**ON, "method": "fedavg", "clip": 9.0})[0]  # there clip is of updates
    assert tuned_on(trains.folds[0]) == "rows"
    with pytest.raises(ConfigError, match="two or more training domains"):
        folds_of(one, tune_on="domain")


def test_test_rows_are_never_looked_at():
    table = small()
    plan, _, folds = folds_of(table, held_out=ALL)
    tested = np.unique(
        np.concatenate([s.test for s in (*plan.folds[0].clients, *plan.folds[0].unseen)])
    )
    labels, features = table.labels.copy(), table.features.copy()
    labels[tested], features[tested] = 0, 7.0
    _, _, comp = folds_of(
        dataclasses.replace(table, labels=labels, features=features), held_out=ALL
    )
    assert torch.equal(comp[0].closed_form.row, folds[0].closed_form.row)
    assert not torch.equal(comp[1].closed_form.row, folds[1].closed_form.row)


def test_classes_without_rows_keep_zero_shot_and_neither_win_nor_vanish():
    table = small(rows=(90,), classes=6)
    keep = table.labels < 4
    table = dataclasses.replace(
        table, features=table.features[keep], labels=table.labels[keep], domains=table.domains[keep]
    )
    for solver in ("gda", "ridge", "prototype"):
        _, cached, folds = folds_of(table, solver=solver)
        w, b = parts_of(folds[0].closed_form.row, table)
        t = folds[0].closed_form.chosen.temperature
        np.testing.assert_allclose(w[4:], t * cached.unit_text[4:].numpy(), rtol=1e-5, atol=1e-6)
        assert (b[4:] == 0).all()
        images = small(rows=(90,), classes=6)
        x = normalize(torch.from_numpy(images.features), dim=1).numpy()
        answered = (x @ w.T + b).argmax(1)
        assert 0 < (answered >= 4).sum() < len(x) / 2


def test_the_temperature_is_near_the_best_of_a_fine_grid():
    rng = np.random.default_rng(0)
    z, y = torch.from_numpy(rng.normal(size=(400, 5)) * 4).float(), torch.arange(400) % 5
    z[torch.arange(400), y] += 3
    right, losses = scored(z, torch.zeros_like(z), y, (0.0,))
    tried = Tried("gda", 1.0, 0.0, 400, float(right[0]), tuple(losses[0].tolist()))
    fine = np.geomspace(1 / 16, 1, 400)
    best = fine[np.argmin([cross_entropy(t * z.double().numpy(), y.numpy()) for t in fine])]
    assert abs(np.log2(tried.temperature / best)) < 0.15
    assert best_of([tried]) is tried and tried.loss <= losses[0, -1] / 400


def test_a_run_a_sweep_and_its_adapter_agree(tmp_path):
    table = small()
    settings = config(method="closed-form")
    document = run(table, tmp_path / "run", settings)
    again = run(table, tmp_path / "again", settings)
    assert figures(document) == figures(again)
    result = document["results"][0]
    assert result["best_round"] == 0 and result["overall"] > result["zero_shot"]["overall"]
    assert len((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()) == 1
    numbers = 4 * 13 + 12 * 13 // 2
    scalars = len(result["closed_form"]["tried"]) * 7
    assert result["bytes_a_round"]["up"] == 8 * 2 * (numbers + scalars)
    tensors, _ = read_adapters(tmp_path / "run" / "adapter.safetensors")
    plan = build_plan(table, settings)
    fold = with_closed_form(plan, to_device(table, CPU)).folds[0]
    w, b = parts_of(fold.closed_form.row, table)
    assert (tensors["best.text_w"][0].numpy() == w).all()
    assert (tensors["best.text_b"][0].numpy() == b).all()

    spec = from_options(["solver=gda,ridge", "method=closed-form"])
    sweep(table, spec, config(), runs=tmp_path, out=tmp_path / "sweep", device="cpu")
    trials = [json.loads(t) for t in (tmp_path / "sweep" / "trials.jsonl").read_text().splitlines()]
    assert [trial["settings"]["solver"] for trial in trials] == ["gda", "ridge"]
    for trial in trials:
        alone = run(table, tmp_path / f"alone {trial['number']}",
                    config(method="closed-form", solver=trial["settings"]["solver"]))  # fmt: skip
        assert mean_results(trial["results"]) == alone["mean"]


def test_refit_adds_the_validation_rows_after_all_choices():
    table = small(rows=(60,))
    plan, cached, folds = folds_of(table, solver="gda")
    comp = folds_of(table, solver="gda", refit="yes")[2][0].closed_form
    ref = folds[0].closed_form
    assert comp.chosen == ref.chosen and not torch.equal(comp.row, ref.row)
    client = plan.folds[0].clients[0]
    rows = torch.from_numpy(np.concatenate([client.train, client.val]))
    sums = sums_of(cached.features, cached.labels, 4, rows)
    head = next(heads_of("gda", sums, 20.0, ref.chosen.shape))[2]
    w = cached.unit_text.double() + ref.chosen.strength / 20 * head.weight
    np.testing.assert_allclose(
        parts_of(comp.row, table)[0], ref.chosen.temperature * w, rtol=1e-4, atol=1e-6
    )


def test_refit_trains_on_validation_rows_where_nothing_is_chosen_by_them(tmp_path):
    table = small()
    plain = {**ON, "choose": "last", "rounds": 2, "held_out": (("a",),)}
    plan = build_plan(table, config(**plain, refit="yes"))
    for lane in plan.lanes:
        client = plan.folds[0].clients[lane.client]
        assert sorted(lane.train) == sorted([*client.train, *client.val])
    first = run(table, tmp_path / "no", config(**plain))
    second = run(table, tmp_path / "yes", config(**plain, refit="yes"))
    assert first["results"] != second["results"]
    assert "validation figures include them" in results_table(second)
    assert "validation figures include" not in results_table(first)
    with pytest.raises(ConfigError, match="choose last"):
        config(refit="yes")
    for grid in (["lr=0.1,0.2"], ["refit=no,yes"]):
        base = config(**plain, refit="yes" if grid[0].startswith("lr") else "no")
        with pytest.raises(ConfigError, match="that a sweep compares its trials by"):
            sweep(table, from_options(grid), base, runs=tmp_path, out=tmp_path / "s", device="cpu")
    sweep(table, from_options(["seed=0,1"]), config(**plain, refit="yes"), runs=tmp_path,
          out=tmp_path / "seeds", device="cpu")  # fmt: skip


# --- training on from the head


def test_a_step_is_a_step_in_whitened_features():
    """One step of SGD against the gradient worked out in float64 and turned by the metric P."""
    table = small(rows=(40,), width=6, classes=3)
    plan, cached, folds = folds_of(table, method="fedavg", **ON, batch=64, rounds=1)
    plan = dataclasses.replace(plan, folds=folds)
    after, _ = advance(Engine(plan, cached, "torch"), begin(plan, cached))
    metric, scale = folds[0].closed_form.metric, table.logit_scale
    w, b = (each.astype(float) for each in parts_of(folds[0].closed_form.row, table))
    own = plan.lanes[0].train
    x, y = table.features[own].astype(float), table.labels[own]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    root, mean = metric.root.double().numpy(), metric.mean.double().numpy()
    z = (x - mean) @ root
    logits = scale * (x @ w.T + b)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    step_v, step_c = -0.05 * p.T @ z / len(y), -0.05 * p.mean(0)
    expected_w = w + step_v @ root.T / scale
    expected_b = b + step_c / scale - (step_v @ root.T / scale) @ mean
    comp_w, comp_b = parts_of(after.state["server"][0], table)
    assert abs(expected_w - w).max() > 1e-4  # it moved
    np.testing.assert_allclose(comp_w, expected_w, atol=2e-6)
    np.testing.assert_allclose(comp_b, expected_b, atol=2e-6)


def test_the_metric_is_gda_s_precision_and_turns_back():
    table = small(rows=(50,))
    _, cached, folds = folds_of(table, method="fedavg", **ON)
    metric = folds[0].closed_form.metric
    found = (metric.root @ metric.root.T).double()
    assert abs(float(torch.linalg.eigvalsh(found).mean()) - 12) < 1e-3
    torch.testing.assert_close(metric.root @ metric.inverse.T, torch.eye(12), atol=1e-5, rtol=0)
    w, b = torch.randn(4, 12), torch.randn(4)
    back = metric.plain(*metric.whitened(w, b))
    torch.testing.assert_close(back[0], w, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back[1], b, atol=1e-5, rtol=1e-5)
    rows = (metric.place >= 0).nonzero()[:, 0]
    x = normalize(cached.features[rows], dim=1)
    v, c = metric.whitened(w, b)
    torch.testing.assert_close(
        metric.features[metric.place[rows]] @ v.T + c, x @ w.T + b, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("method", ["fedavg", "fedavgm", "fedprox", "scaffold", "median", "ditto"])
def test_any_method_trains_on_and_resumes_with_the_same_bytes(tmp_path, method, monkeypatch):
    table = small()
    extra = {"momentum": 0.0} if method == "scaffold" else {}
    settings = config(method=method, **{**ON, **extra}, rounds=3, held_out=(("a",), ("b",)))
    whole = run(table, tmp_path / "whole", settings)
    run(table, tmp_path / "cut", dataclasses.replace(settings, rounds=3))
    for name in ("rounds.jsonl", "adapter.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert all(r["closed_form"]["tuned_on"] for r in whole["results"])
    losses = [json.loads(line)["folds"][0]["train_loss"] for line in
              (tmp_path / "whole" / "rounds.jsonl").read_text().splitlines()]  # fmt: skip
    assert np.mean(list(losses[-1].values())) < np.mean(list(losses[0].values()))


def test_trials_that_train_on_share_heads_and_equal_single_runs(tmp_path):
    table = small()
    base = RunConfig(**{**ON, "held_out": ALL, "rounds": 2, "batch": 8})
    spec = from_options(["lr=0.01,0.1", "solver=gda,ridge"])
    sweep(table, spec, base, runs=tmp_path, out=tmp_path / "sweep", device="cpu")
    found = (tmp_path / "sweep" / "trials.jsonl").read_text().splitlines()
    assert len(found) == 4
    for trial in map(json.loads, found):
        alone = run(table, tmp_path / trial["id"], dataclasses.replace(base, **trial["settings"]))
        assert mean_results(trial["results"]) == alone["mean"]


@pytest.mark.parametrize(("settings", "words"), [
    ({"start": "closed-form"}, "head classifier"),
    ({"head": "classifier"}, "mode FedAtTxt"),
    ({**ON, "noise": 1.0, "clip": 1.0}, "protects the updates"),
    ({**ON, "method": "fedper"}, "one layer"),
    ({"method": "closed-form", "clip": 1.0, "tune_on": "rows"}, "exact only for unclipped sums"),
])  # fmt: skip
def test_what_cannot_be_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        config(**settings)


# --- privacy


def test_noise_has_the_stated_size_and_the_sums_stay_possible():
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(3000, 40))), torch.from_numpy(rng.integers(0, 5, 3000))
    sums = sums_of(x, y, 5)
    sigma = 0.5 * SENSITIVITY
    noisy = [released(sums, sigma, seed) for seed in range(40)]
    gram = torch.stack([n.gram - sums.gram for n in noisy])
    above = torch.triu_indices(40, 40, 1)
    assert abs(float(gram[:, above[0], above[1]].std()) / (sigma / 2**0.5) - 1) < 0.05
    assert abs(float(gram.diagonal(dim1=1, dim2=2).std()) / sigma - 1) < 0.1
    assert abs(float(torch.stack([n.count - sums.count for n in noisy]).std()) / sigma - 1) < 0.25
    large = released(sums, 900.0, 0)
    assert torch.linalg.eigvalsh(large.gram).min() > -1e-6 * abs(large.gram).max()
    assert (large.count >= 0).all()
    assert (large.by_class.norm(dim=1) <= large.count + 1e-9).all()
    assert torch.equal(released(sums, 0.5, 3).gram, released(sums, 0.5, 3).gram)


def test_one_row_moves_the_sums_by_no_more_than_the_sensitivity():
    x, y = torch.randn(20, 7), torch.arange(20) % 3
    whole, less = sums_of(x, y, 3), sums_of(x[1:], y[1:], 3)
    gone = whole - less
    moved = (gone.count**2).sum() + (gone.by_class**2).sum() + (gone.gram**2).sum()
    assert float(moved) ** 0.5 <= SENSITIVITY + 1e-9


@pytest.mark.parametrize("clip", [1e-3, 1.0, 30.0, 1e9])
def test_clipped_sums_are_no_longer_than_clip_and_keep_their_means(clip):
    sums = sums_of(torch.randn(60, 9), torch.arange(60) % 4, 5)
    short = clipped_sums(sums, clip)
    length = float((short.count**2).sum() + (short.by_class**2).sum() + (short.gram**2).sum())
    assert length**0.5 <= clip * (1 + 1e-12)
    scale = float(short.count.sum() / sums.count.sum())
    assert (scale == 1) == (clip == 1e9)
    for name in ("count", "by_class", "gram"):
        torch.testing.assert_close(getattr(short, name), scale * getattr(sums, name))


def test_clip_bounds_what_one_client_of_many_rows_weighs():
    """As a twin with scaled rows: row weights min(1, clip / length) of their client."""
    table = small(rows=(200, 40, 40))
    plan, cached, folds = folds_of(
        table, solver="ridge", shape=0.1, strength=1.0, clip=20.0, tune_on="validation"
    )
    x = normalize(cached.features.double(), dim=1).numpy()
    gram, by_class = 0.0, 0.0
    for client in plan.folds[0].clients:
        own, y = x[client.train], np.eye(4)[table.labels[client.train]]
        parts = y.sum(0), y.T @ own, own.T @ own
        weight = min(1.0, 20.0 / np.sqrt(sum((part**2).sum() for part in parts)))
        by_class, gram = by_class + weight * parts[1], gram + weight * parts[2]
    width = len(gram)
    added = np.linalg.solve(gram + 0.1 * np.trace(gram) / width * np.eye(width), by_class.T).T
    ref = cached.unit_text.double().numpy() + added
    row = folds[0].closed_form.row.numpy()[: ref.size].reshape(ref.shape)
    cosines = (row * ref).sum(1) / np.linalg.norm(row, axis=1) / np.linalg.norm(ref, axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-6)


def test_epsilon_with_clip_is_of_clients_and_says_so(tmp_path):
    need("dp_accounting")
    settings = {"method": "closed-form", "noise": 2.0, "tune_on": "validation"}
    rows, clients = (
        run(small(), tmp_path / str(clip), config(**settings, clip=clip))["privacy"]
        for clip in (0.0, 5.0)
    )
    assert rows["epsilon"] == clients["epsilon"]
    assert "one row more" in rows["note"] and "one client more" in clients["note"]


def test_epsilon_counts_one_release(tmp_path):
    need("dp_accounting")
    document = run(small(), tmp_path, config(method="closed-form", noise=2.0, rounds=200))
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    expected = from_gaussian_mechanism(2.0).get_epsilon_for_delta(1e-5)
    assert abs(document["privacy"]["epsilon"] / expected - 1) < 0.02
