"""Which round is kept: by validation accuracy, by validation loss, or the last."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from kernels.heads.plain import named
from pipeline.errors import ConfigError
from pipeline.federation.evaluate import validation_losses
from pipeline.federation.local import Engine
from pipeline.federation.plan import build_plan
from pipeline.federation.round import run_round
from pipeline.federation.state import first_state, model_rows
from pipeline.federation.training import Chosen, advance, begin, is_better, to_device
from pipeline.runs.checkpoint import from_tensors, to_tensors
from pipeline.settings import PRESETS, RunConfig, as_json, from_json
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options
from tests.naive import heads as naive_heads
from tests.runs.small_runs import config, run, small, stopped_after

CPU = torch.device("cpu")
RULES = ("accuracy", "loss", "last")
KINDS = {
    "fedavg": {},
    "ditto": {"method": "ditto"},
    "fedper": {"method": "fedper"},
    "local": {"method": "local"},
    "central": {"method": "central"},
    "partition": {"partition": "iid", "clients": 2},
    "on text": {"mode": "FedAtTxt", "head": "cosine", "loss": "class"},
    "on both": {"mode": "FedAtBoth", "head": "low-rank", "optimizer": "sgd"},
}


def lines(folder, name="rounds.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


def without_validation():
    return small(split=np.tile(np.array([0, 0, 2], np.int8), 62)[:185])


def twin_losses(table, plan, rows) -> list[dict[str, float]]:
    """By client of each fold, row by row in float64."""
    kind, found = plan.work.kind, [{} for _ in plan.folds]
    for model, adapter in zip(plan.models, rows.double(), strict=True):
        parts = {name: part.numpy() for name, part in named(kind, adapter).items()}
        for client in (plan.folds[model.fold].clients[k] for k in model.clients):
            z = naive_heads.logits(
                kind.mode, kind.head, parts, table.features[client.val].astype(float),
                table.text_features.astype(float), table.logit_scale,
            )  # fmt: skip
            right = z[np.arange(len(z)), table.labels[client.val]]
            losses = np.log(np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)) + z.max(axis=1)
            found[model.fold][client.name] = float(np.mean(losses - right))
    return found


@pytest.mark.parametrize("name", KINDS)
def test_the_validation_loss_is_the_twins_client_by_client(name):
    table, settings = small(), config(choose="loss", lr=5e-3, rounds=3, **KINDS[name])
    plan = build_plan(table, settings)
    engine = Engine(plan, to_device(table, CPU), "torch")
    state = first_state(plan, engine.cached.text, None)
    for round in range(2):
        state, _ = run_round(state, engine, round)
        rows = model_rows(plan, state)
        found = validation_losses(plan, rows, engine.cached, range(len(plan.folds)))
        for ours, theirs, fold in zip(
            found, twin_losses(table, plan, rows), plan.folds, strict=True
        ):
            assert set(ours) == set(theirs) == {c.name for c in fold.clients}
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)  # logits of 20 in float32


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("rule", RULES)
def test_the_kept_round_is_the_earliest_best_of_its_rule(tmp_path, rule, backend):
    settings = config(choose=rule, rounds=8, lr=2e-2, eval="best")  # up and down
    document = run(small(), tmp_path / "run", settings, backend=backend)
    told = lines(tmp_path / "run")
    rounds = []
    for f, result in enumerate(document["results"]):
        folds = [line["folds"][f] for line in told]
        assert all(("val_loss" in fold) == (rule == "loss") for fold in folds)
        accuracy = [np.mean(list(fold["val_accuracy"].values())) for fold in folds]
        wanted = {
            "accuracy": lambda accuracy=accuracy: int(np.argmax(accuracy)),
            "loss": lambda folds=folds: int(
                np.argmin([np.mean(list(fold["val_loss"].values())) for fold in folds])
            ),
            "last": lambda: 7,
        }[rule]()
        assert result["best_round"] == wanted and result["chosen_by"] == rule
        assert result["val_accuracy"] == pytest.approx(accuracy[wanted])
        assert result["per_domain"] == folds[wanted]["test_accuracy"]
        assert ("val_loss" in result) == (rule == "loss")
        rounds.append(wanted)
    assert rule == "last" or set(rounds) - {0, 7}  # neither end is the best by accident


def test_rules_do_not_change_what_is_trained(tmp_path):
    for rule in RULES:
        run(small(), tmp_path / rule, config(choose=rule))
    losses = {
        rule: [fold["train_loss"] for line in lines(tmp_path / rule) for fold in line["folds"]]
        for rule in RULES
    }
    assert losses["accuracy"] == losses["loss"] == losses["last"]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("rule", "values", "kept"),
    [
        ("accuracy", [0.5, 0.7, 0.7, 0.6], 1),
        ("accuracy", [0.0, 0.0], 0),
        ("loss", [2.0, 1.0, 1.0, 3.0], 1),
        ("loss", [NAN, 2.0, NAN, 1.0, NAN], 3),
        ("loss", [INF, INF, 5.0], 2),
        ("loss", [NAN, INF], None),
        ("last", [2.0, 1.0, 3.0], 2),
        ("last", [None, None], 1),
    ],
)
def test_ties_stay_with_the_earlier_and_nan_never_wins(rule, values, kept):
    chosen = None
    for round, value in enumerate(values):
        now = Chosen(round, value if rule == "accuracy" else 0.9, {}, value)
        chosen = now if is_better(rule, now, chosen) else chosen
    assert (chosen.round if chosen else None) == kept


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", ["fedavg", "ditto"])
def test_a_stopped_run_of_each_rule_ends_with_the_same_bytes(tmp_path, rule, method):
    settings = config(choose=rule, method=method, lr=1e-2, rounds=5)
    run(small(), tmp_path / "calm", settings)
    with stopped_after(3), pytest.raises(KeyboardInterrupt):
        run(small(), tmp_path / "cut", settings)
    run(small(), tmp_path / "cut", settings)
    for name in ("config.json", "rounds.jsonl", "adapter.safetensors"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_runs_of_earlier_releases_keep_their_settings_facts_and_id():
    settings = config()
    assert not {"choose", "keep"} & as_json(settings).keys()
    assert from_json(as_json(settings)) == settings
    other = config(choose="last", method="krum", keep=2)
    assert from_json(as_json(other)) == other and as_json(other)["choose"] == "last"
    table = small()
    engine = Engine(build_plan(table, settings), to_device(table, CPU), "torch")
    first = begin(engine.plan, engine.cached)
    progress, _ = advance(engine, first)
    tensors, facts = to_tensors(engine.plan, progress)
    assert set(facts["chosen"][0]) == {"round", "val_accuracy", "test_accuracy"}
    assert from_tensors(engine.plan, tensors, facts, first).chosen == progress.chosen
    assert PRESETS["cosine"]["choose"] == "loss" and asdict(RunConfig())["choose"] == "accuracy"


@pytest.mark.parametrize("method", ["fedavg", "local", "ditto", "fedper", "central"])
@pytest.mark.parametrize("clients", [1, 2])
def test_the_last_round_needs_no_validation_rows(tmp_path, method, clients):
    table = without_validation()
    parts = {"partition": "iid", "clients": clients} if clients > 1 else {}
    settings = config(choose="last", method=method, rounds=3, **parts)
    document = run(table, tmp_path, settings)
    for result in document["results"]:
        assert result["best_round"] == 2 and result["val_accuracy"] is None
        assert result["zero_shot"]["val_accuracy"] is None and result["overall"] > 0
    assert [fold["val_accuracy"] for line in lines(tmp_path) for fold in line["folds"]] == [{}] * 9


@pytest.mark.parametrize("rule", ["accuracy", "loss"])
def test_the_other_rules_need_them(tmp_path, rule):
    with pytest.raises(ConfigError, match="0 validate"):
        run(without_validation(), tmp_path, config(choose=rule))


def swept(tmp_path, base, grid=("lr=1e-4,1e-3,1e-2,3e-2",), table=None, **options):
    spec = from_options(grid, **options)
    return sweep(table or small(), spec, base, runs=tmp_path, out=tmp_path / "sweep", device="cpu")


def test_a_sweep_ranks_by_the_rule_that_chooses_rounds(tmp_path):
    document = swept(tmp_path, config(choose="loss", rounds=3))
    records = lines(tmp_path / "sweep", "trials.jsonl")
    least = min(records, key=lambda record: record["val_loss"])
    assert document["best"]["settings"] == least["settings"]
    assert document["best"]["val_accuracy"]["mean"] == least["val_accuracy"]
    assert "--choose loss" in document["best"]["command"]
    for record in records:
        found = [result["val_loss"] for result in record["results"]]
        assert record["val_loss"] == pytest.approx(np.mean(found))


def test_halving_cuts_by_loss_where_rounds_are_chosen_by_it(tmp_path):
    grid = ("lr=1e-5,1e-4,1e-3,3e-3,1e-2,3e-2",)
    swept(tmp_path / "loss", config(choose="loss", rounds=4), grid, halving=2)
    records = lines(tmp_path / "loss" / "sweep", "trials.jsonl")
    for rounds in {record["rounds"] for record in records if record["status"] == "pruned"}:
        cut = [r["val_loss"] for r in records if r["status"] == "pruned" and r["rounds"] == rounds]
        after = [r for r in records if r["rounds"] > rounds]
        assert max(r["val_loss"] for r in after) <= min(cut) + 1e-12  # it falls with rounds


def test_trials_of_several_rules_are_ranked_by_accuracy(tmp_path):
    document = swept(tmp_path, config(rounds=3), ("choose=accuracy,loss,last", "lr=1e-3,1e-2"))
    records = lines(tmp_path / "sweep", "trials.jsonl")
    best = max(record["val_accuracy"] for record in records)
    assert document["best"]["val_accuracy"]["mean"] == best
    alone = run(small(), tmp_path / "alone", config(rounds=3, choose="loss", lr=1e-2))
    (same,) = (r for r in records if r["settings"] == {"choose": "loss", "lr": 1e-2})
    assert same["results"] == alone["results"]


def test_a_sweep_without_validation_rows_says_so(tmp_path):
    with pytest.raises(ConfigError, match="no client has any"):
        swept(tmp_path, config(choose="last", rounds=1), table=without_validation())
    assert not (tmp_path / "sweep").exists()
