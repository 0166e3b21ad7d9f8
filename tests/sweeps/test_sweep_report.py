"""What a sweep tells at its end; what was tested stays out of it unless the word oracle is said."""

import json
import shlex

import numpy as np
import pytest

from pipeline.cli.app import cli
from pipeline.cli.options import given_settings
from pipeline.errors import ConfigError
from pipeline.settings import RunConfig
from pipeline.sweeps.best import federate_command, sweep_report, sweep_table
from pipeline.sweeps.search import listed_trials
from pipeline.sweeps.space import SWEEPABLE
from pipeline.sweeps.spec import from_options
from pipeline.sweeps.trials import make_trial, record

BASE = RunConfig(rounds=20, held_out=(("art painting",), ("sketch", "photo")))
CACHE = ("my cache.h5",)
ZERO = {"unseen": 0.125, "participants": 0.25, "overall": 0.1875}


def result(tested):
    return {"unseen": tested, "participants": 0.5, "overall": (tested + 0.5) / 2, "zero_shot": ZERO}


def sweep(val, tested, seeds=2, statuses=None):
    """Records of one configuration a row, lr 1, 2, ..., with val and tested by (row, seed)."""
    grid = [f"lr={','.join(str(i + 1) for i in range(len(val)))}", "batch=16"]
    trials = listed_trials(from_options(grid, seeds=seeds), BASE)
    return [
        record(
            trial,
            status=(statuses or {}).get(trial.number, "done"),
            rounds=20,
            results=[result(t), result(t)],
            val_accuracy=v,
            seconds=1.0,
        )
        for trial, v, t in zip(
            trials, np.ravel(val).tolist(), np.ravel(tested).tolist(), strict=True
        )
    ]


VAL = [[0.60, 0.62], [0.70, 0.80], [0.76, 0.78]]
TESTED = [[0.901, 0.903], [0.301, 0.303], [0.401, 0.403]]


def test_the_best_is_that_of_the_mean_over_seeds_on_validation():
    document = sweep_report(sweep(VAL, TESTED), BASE, CACHE)
    best = document["best"]
    assert best["settings"] == {"batch": 16, "lr": 3.0}
    assert best["number"] == 4 and best["seeds"] == [0, 1]
    assert best["val_accuracy"]["mean"] == pytest.approx(0.77)
    assert best["val_accuracy"]["std"] == pytest.approx(0.02 / 2**0.5)
    assert best["tested"]["unseen"]["mean"] == pytest.approx(0.402)
    assert best["tested"]["participants"]["mean"] == pytest.approx(0.5)
    assert best["zero_shot"] == pytest.approx(ZERO)
    assert [row["settings"]["lr"] for row in document["top"]] == [3.0, 2.0, 1.0]
    assert document["trials"] == {"done": 6, "diverged": 0, "failed": 0, "pruned": 0}
    assert document["seconds"] == 6.0
    json.dumps(document, allow_nan=False)


def test_test_accuracy_is_told_of_the_chosen_one_alone():
    document = sweep_report(sweep(VAL, TESTED), BASE, CACHE)
    shown = sweep_table(document)
    assert "40.20" in shown
    for text in (shown, json.dumps(document)):
        for other in ("90.2", "0.90", "0.301", "30.2", "0.302"):
            assert other not in text
        assert "oracle" not in text
    assert all("tested" not in row for row in document["top"])


def test_what_looks_at_the_test_rows_is_called_oracle():
    document = sweep_report(sweep(VAL, TESTED), BASE, CACHE, select="oracle")
    assert document["select"] == "oracle"
    assert document["best"]["settings"]["lr"] == 1.0
    assert document["best"]["oracle_accuracy"]["mean"] == pytest.approx(0.902)
    assert "val_accuracy" not in json.dumps(document)
    for block in sweep_table(document).split("\n\n")[1:]:
        assert "oracle" in block
    with pytest.raises(ConfigError, match="validation, oracle"):
        sweep_report([], BASE, CACHE, select="test")


def test_oracle_without_a_held_out_domain_looks_at_the_participants():
    records = sweep(VAL, TESTED)
    for at, each in enumerate(records):
        for part in each.results:
            part |= {"unseen": None, "participants": at / 10, "overall": at / 10}
    document = sweep_report(records, BASE, CACHE, select="oracle")
    assert document["best"]["oracle_accuracy"]["mean"] == pytest.approx(0.45)
    assert "unseen" not in sweep_table(document)


@pytest.mark.parametrize("status", ["diverged", "failed", "pruned"])
def test_a_configuration_with_a_seed_that_did_not_end_well_is_not_chosen(status):
    document = sweep_report(sweep(VAL, TESTED, statuses={5: status}), BASE, CACHE)
    assert document["best"]["settings"]["lr"] == 2.0
    assert document["trials"][status] == 1
    assert f"6 trials: 5 done, 1 {status}" in sweep_table(document)


def test_a_sweep_that_was_broken_off_chooses_among_whole_configurations():
    assert sweep_report(sweep(VAL, TESTED)[:5], BASE, CACHE)["best"]["settings"]["lr"] == 2.0
    one = sweep_report(sweep(VAL, TESTED)[:1], BASE, CACHE)
    assert one["best"]["val_accuracy"] == {"mean": 0.6, "std": None}
    assert one["importance"] == []
    sweep_table(one)


def test_ties_go_to_the_earlier_trial_in_any_order_of_ends():
    records = sweep([[0.5, 0.5]] * 12, [[0.1, 0.1]] * 12)
    document = sweep_report(records[::-1], BASE, CACHE)
    assert [row["number"] for row in document["top"]] == list(range(0, 20, 2))
    assert document["configurations"] == 12
    assert document["importance"][0]["share"] is None


@pytest.mark.parametrize("statuses", [{}, dict.fromkeys(range(6), "diverged")])
def test_a_sweep_of_which_nothing_is_done_says_so(statuses):
    records = sweep(VAL, TESTED, statuses=statuses) if statuses else []
    document = sweep_report(records, BASE, CACHE)
    assert document["best"] is None and document["top"] == []
    assert "nothing can be selected" in sweep_table(document)


def test_importance_counts_done_trials_and_the_seed():
    document = sweep_report(sweep(VAL, TESTED), BASE, CACHE)
    assert [each["name"] for each in document["importance"]] == ["lr", "seed"]
    assert document["importance"][0]["share"] > 0.7
    assert "epsilon squared" in sweep_table(document)
    older = {("mattered" if key == "importance" else key): v for key, v in document.items()}
    assert sweep_table(older) == sweep_table(document)


def test_own_adapters_are_ranked_apart_and_said():
    names, values = ["fedavg", "ditto", "krum", "local"], [0.6, 0.9, 0.7, 0.9]
    trials = [make_trial(n, {"method": name}, 0) for n, name in enumerate(names)]
    records = [record(t, status="done", rounds=1, results=[result(0.5)], val_accuracy=v)
               for t, v in zip(trials, values, strict=True)]  # fmt: skip
    document = sweep_report(records, BASE, CACHE)
    assert document["best"]["settings"] == {"method": "krum"} and document["tied"] == []
    assert [each["number"] for each in document["top"]] == [2, 0]
    own = document["own_adapters"]
    assert own["best"]["number"] == 1 and own["tied"] == [3] and own["configurations"] == 2
    note = document["notes"][0]
    assert note.startswith("ranked apart: ditto, local validate") and "krum, fedavg one" in note
    shown = sweep_table(document)
    assert "tied with trial 1, the earliest: 3" in shown and "--method ditto" in shown
    assert note in shown
    alone = sweep_report(records[1::2], BASE, CACHE)
    assert alone["best"]["number"] == 1 and alone["own_adapters"] is None


def read_command(line):
    """The cache, the held-out words and the RunConfig that federate's parser makes of a line."""
    words = shlex.split(line)
    assert words[:2] == ["./run.sh", "federate"]
    params = cli.commands["federate"].make_context("federate", words[2:]).params
    fields = RunConfig.__dataclass_fields__.keys() - {"held_out"}
    settings = given_settings(params["preset"], {name: params[name] for name in fields})
    return str(params["cache"]), params["held_out"], settings


SETTINGS = [
    {},
    {"lr": 0.1 + 0.2, "weight_decay": 0.0, "batch": 2, "local_epochs": 3},
    {"lr": 1e-300, "eps": 1e-30, "split": 0.98, "beta1": 0.0},
    {"method": "local", "weighting": "rows", "eval": "every", "rounds": 200},
    {"method": "fedprox", "mu": 0.01, "loss": "class", "optimizer": "sgd", "momentum": 0.9},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("held_out", [((),), BASE.held_out, (("it's; $(rm)",), ())])
def test_the_command_line_trains_the_same_again(settings, held_out):
    base = RunConfig(rounds=20, held_out=held_out)
    line = federate_command(base, settings, 7, CACHE)
    cache, folds, read = read_command(line)
    assert cache == "my cache.h5"
    assert folds == tuple(",".join(fold) or "none" for fold in held_out)
    wanted = {"rounds": 20, **settings, "held_out": held_out, "seed": 7}
    assert RunConfig(**read, held_out=held_out) == RunConfig(**wanted)


def test_every_setting_has_its_option():
    options = {option for p in cli.commands["federate"].params for option in p.opts}
    assert {f"--{name.replace('_', '-')}" for name in SWEEPABLE} <= options


def test_the_command_line_has_no_default_in_it():
    line = federate_command(RunConfig(), {"lr": RunConfig.lr, "weight_decay": 0.0}, 0, ("c.h5",))
    assert line == "./run.sh federate c.h5 --held-out none --weight-decay 0.0"


def test_the_table_is_aligned_and_shows_what_varies():
    shown = sweep_table(sweep_report(sweep(VAL, TESTED), BASE, CACHE))
    lines = shown.split("\n\n")[1].splitlines()
    assert lines[1].split() == ["trial", "lr", "val_accuracy", "%", "std", "of", "2", "seeds"]
    assert len({len(line) for line in lines[1:-1]}) == 1
    assert lines[-1] == "the same for all: batch 16"
    assert "./run.sh federate 'my cache.h5' --held-out 'art painting'" in shown
