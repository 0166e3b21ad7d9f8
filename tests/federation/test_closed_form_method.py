"""Method closed-form: the federated head is the central one, and how it is chosen."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from pipeline.errors import ConfigError
from pipeline.federation.closed_form import tuned_on, with_closed_form
from pipeline.federation.methods import closed_form_choice
from pipeline.federation.methods.closed_form import sums_of
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
from pipeline.federation.training import to_device
from pipeline.runs.folder import read_adapters
from pipeline.runs.results import mean_results
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options
from tests.federation.closed_form_folds import CPU, ON, folds_of, parts_of
from tests.naive import closed_form as naive
from tests.runs.small_runs import ALL, config, figures, run, small

PARTITIONS = {
    "iid": {"partition": "iid", "clients": 5},
    "dirichlet": {"partition": "dirichlet", "alpha": 0.05, "clients": 4},
    "one class a client": {"partition": "pathological", "classes_per_client": 1, "clients": 4},
    "many clients": {"partition": "iid", "clients": 30},
}


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
