"""Start closed-form: any method trains on from the head, in features whitened by its metric."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from pipeline.errors import ConfigError
from pipeline.federation.local import Engine
from pipeline.federation.plan import build_plan
from pipeline.federation.training import advance, begin
from pipeline.runs.results import mean_results
from pipeline.runs.results import table as results_table
from pipeline.settings import RunConfig
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options
from tests.federation.closed_form_folds import ON, folds_of, parts_of
from tests.runs.small_runs import ALL, config, run, small


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
