"""Whole sweeps: trials in batches against trials alone, kills, memory, budget, divergence."""

import json
import math
import random
import signal
import statistics
import subprocess
import sys
import time
import weakref
from importlib import import_module

import pytest

from pipeline.digests import unsealed
from pipeline.errors import ConfigError
from pipeline.federation import training
from pipeline.runs.federate import federate
from pipeline.settings import RunConfig
from pipeline.sweeps.best import sweep_table
from pipeline.sweeps.halving import Halving
from pipeline.sweeps.run import sweep
from pipeline.sweeps.search import base_of
from pipeline.sweeps.space import Range
from pipeline.sweeps.spec import SweepSpec, from_options
from tests.conftest import ROOT
from tests.packages import need
from tests.runs.small_runs import stopped_after

runner = import_module("pipeline.sweeps.train")

BASE = RunConfig(held_out=(("a",), ("b",)), rounds=6, batch=8)
GRID = ["lr=1e-3,1e-2", "head=attention,low-rank", "method=fedavg,ditto", "batch=8,16"]


def run(table, out, grid=GRID, base=BASE, seeds=1, halving=None, draws=None, **options) -> dict:
    spec = from_options(grid, seeds=seeds, halving=halving, draws=draws)
    return sweep(table, spec, base, runs=out, out=out, device="cpu", **options)


def records(out) -> dict[str, dict]:
    lines = (out / "trials.jsonl").read_text().splitlines()
    found = {}
    for line in lines:
        each = unsealed(json.loads(line))
        del each["seconds"]
        assert each["id"] not in found
        found[each["id"]] = each
    return found


def test_every_trial_equals_the_same_settings_alone(table, tmp_path):
    run(table, tmp_path / "s", seeds=2)
    found = records(tmp_path / "s")
    assert len(found) == 32
    for at, each in enumerate(found.values()):
        assert each["status"] == "done"
        alone = federate(
            table,
            RunConfig(**{**vars(BASE), **each["settings"], "seed": each["seed"]}),
            runs=tmp_path,
            out=tmp_path / f"run{at}",
            device="cpu",
        )
        assert alone["results"] == each["results"]
        log = (tmp_path / f"run{at}" / "rounds.jsonl").read_text().splitlines()
        folds = [json.loads(line)["folds"] for line in log]
        means = [statistics.mean(statistics.mean(f["val_accuracy"].values()) for f in own)
                 for own in folds]  # fmt: skip
        assert each["curves"] == {"every": 1, "val_accuracy": pytest.approx(means, abs=6e-6)}


@pytest.mark.parametrize("memory", [0, 200_000])
def test_memory_splits_the_batch_and_changes_nothing(table, tmp_path, memory):
    run(table, tmp_path / "whole", halving=2)
    run(table, tmp_path / "parts", halving=2, memory=memory)
    assert records(tmp_path / "whole") == records(tmp_path / "parts")
    assert not list((tmp_path / "parts" / "parked").glob("*"))


def test_the_best_goes_on_at_each_rung(table, tmp_path):
    document = run(table, tmp_path, ["lr=1e-4,1e-3,3e-3,1e-2,3e-2,1e-1"], halving=2, seeds=2)
    found = records(tmp_path).values()
    statuses = [each["status"] for each in found]
    assert statuses.count("done") == 2 and statuses.count("pruned") == 10
    cuts = sorted({each["rounds"] for each in found})
    assert cuts[-1] == 6
    for cut in cuts[:-1]:  # whoever was cut was no better than any that went on
        gone = [e for e in found if e["rounds"] == cut]
        there = [e for e in found if e["rounds"] > cut]
        assert gone and there
    best = document["best"]
    assert best["seeds"] == [0, 1] and "--lr" in best["command"]


def test_bayes_cuts_every_batch_that_it_asks_for(table, tmp_path):
    need("optuna")
    rate = (("lr", Range(1e-4, 1e-1, log=True)),)
    spec = SweepSpec("bayes", rate, (0,), 16, Halving(2, 2, 1))
    sweep(table, spec, BASE, runs=tmp_path, out=tmp_path / "s", device="cpu")
    statuses = [
        each["status"]
        for each in sorted(records(tmp_path / "s").values(), key=lambda each: each["number"])
    ]
    for batch in range(4):
        own = statuses[4 * batch : 4 * batch + 4]
        assert own.count("pruned") == own.count("done") == 2


def test_one_diverging_trial_harms_no_other(table, tmp_path):
    grid = ["optimizer=sgd", "momentum=0", "lr=1e-3,1e6", "weight_decay=1000", "head=linear"]
    run(table, tmp_path / "both", grid)
    run(table, tmp_path / "calm", [g.replace(",1e6", "") for g in grid])
    found = {each["settings"]["lr"]: each for each in records(tmp_path / "both").values()}
    assert found[1e6]["status"] == "diverged" and "diverged at lr" in found[1e6]["error"]
    (calm,) = records(tmp_path / "calm").values()
    assert found[1e-3]["results"] == calm["results"] and calm["status"] == "done"


def test_a_trial_that_cannot_be_is_recorded_and_the_others_train(table, tmp_path):
    run(table, tmp_path, ["partition=iid", "clients=2,1000"])
    found = {each["settings"]["clients"]: each for each in records(tmp_path).values()}
    assert found[2]["status"] == "done"
    assert found[1000]["status"] == "failed" and "1000 clients" in found[1000]["error"]


def test_combinations_that_conflict_fail_with_the_reason_and_are_counted(table, tmp_path):
    grid = ["mode=FedAtImg,FedAtTxt", "head=attention,cosine", "loss=class"]
    document = run(table, tmp_path / "s", grid, seeds=2)
    found = list(records(tmp_path / "s").values())
    failed = [each for each in found if each["status"] == "failed"]
    assert len(found) == 8 and [each["number"] for each in failed] == [6, 7]
    for each in failed:
        assert (each["settings"]["mode"], each["settings"]["head"]) == ("FedAtImg", "cosine")
        assert "pass --mode FedAtTxt" in each["error"] and not each["results"]
    assert document["trials"] == {"done": 6, "diverged": 0, "failed": 2, "pruned": 0}
    assert "8 trials: 6 done, 2 failed: head cosine replaces the text features" in sweep_table(
        document
    )
    before = (tmp_path / "s" / "trials.jsonl").read_bytes()
    run(table, tmp_path / "s", grid, seeds=2)  # what cannot be fails again, and adds no line
    assert (tmp_path / "s" / "trials.jsonl").read_bytes() == before


@pytest.mark.parametrize("more", [{}, {"halving": 2}, {"draws": 20}])
def test_a_combination_that_conflicts_changes_no_other(table, tmp_path, more):
    run(table, tmp_path / "both", ["method=fedavg,scaffold", "lr=1e-3,1e-2,1e-1"], **more)
    run(table, tmp_path / "one", ["method=fedavg", "lr=1e-3,1e-2,1e-1"], **more)
    both, one = ([r for r in records(tmp_path / n).values()] for n in ("both", "one"))
    failed = [each for each in both if each["status"] == "failed"]
    assert len(failed) == 3 and {each["settings"]["method"] for each in failed} == {"scaffold"}
    assert "--optimizer sgd" in failed[0]["error"]
    ended = {e["settings"]["lr"]: (e["status"], e["results"]) for e in both if e not in failed}
    assert ended == {e["settings"]["lr"]: (e["status"], e["results"]) for e in one}


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (["head=cosine", "mode=FedAtImg,FedAtBoth"], "head cosine .* .2."),
        (
            ["partition=iid", "clients=500,1000"],
            "cannot give .* clients .*; .*cannot give .* clients",
        ),
        (["method=scaffold", "lr=-1"], "lr must lie in"),
    ],
)
@pytest.mark.parametrize("draws", [None, 3])
def test_a_sweep_of_which_nothing_can_be_leaves_no_folder(table, tmp_path, grid, words, draws):
    with pytest.raises(ConfigError, match=words):
        run(table, tmp_path / "none", grid, draws=draws)
    assert not (tmp_path / "none").exists()


def test_settings_that_no_trial_has_are_not_checked(tmp_path):
    given = {"clients": 4, "rounds": 2}
    base = base_of(from_options(["partition=iid,dirichlet"]), given)
    assert (base.partition, base.clients, base.rounds) == ("iid", 4, 2)
    spec = from_options(["partition=domain,quantity", "clients=4"])
    assert base_of(spec, {}) == RunConfig()  # the base itself can be, and is kept
    with pytest.raises(ConfigError, match="partition domain makes each domain one client"):
        base_of(from_options(["lr=1,2"]), given)


def test_a_budget_ends_it_between_rounds_and_the_same_command_goes_on(table, tmp_path, heard):
    run(table, tmp_path / "calm")
    run(table, tmp_path / "cut", budget=0.0)
    assert "16 trials are left" in heard[-1] and not records(tmp_path / "cut")
    run(table, tmp_path / "cut", budget=math.inf)
    assert records(tmp_path / "calm") == records(tmp_path / "cut")


@pytest.mark.parametrize("halving", [None, 2])
def test_stopped_anywhere_it_goes_on_to_the_same_records(table, tmp_path, halving):
    run(table, tmp_path / "calm", halving=halving, seeds=2)
    stops, draw = 0, random.Random(0)
    for _ in range(40):
        rounds, memory = draw.randint(1, 25), draw.choice([0, 10**6])
        try:
            with stopped_after(rounds):
                run(table, tmp_path / "cut", halving=halving, seeds=2, memory=memory)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops > 2
    assert records(tmp_path / "calm") == records(tmp_path / "cut")


def test_killed_for_real_it_skips_what_is_done(table, tmp_path):
    command = [
        sys.executable, "-m", "pipeline", "sweep", table.source, "--grid", "lr=1e-3,2e-3,3e-3,4e-3",
        "--grid", "weight_decay=0,0.1,0.2", "--rounds", "60", "--batch", "8", "--memory", "200k",
        "--out", str(tmp_path / "cut"), "--device", "cpu", "--json",
    ]  # fmt: skip
    log = tmp_path / "cut" / "trials.jsonl"
    for kill in (signal.SIGKILL, signal.SIGTERM):
        before = log.read_bytes().count(b"\n") if log.exists() else 0
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as child:
            waited = time.monotonic() + 120
            while not (log.exists() and log.read_bytes().count(b"\n") > before):
                assert time.monotonic() < waited and child.poll() is None
                time.sleep(0.01)
            child.send_signal(kill)
            message = child.communicate(timeout=60)[1]
    assert child.returncode == 128 + signal.SIGTERM and "run the same command to resume" in message
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["trials"]["done"] == 12 and len(records(tmp_path / "cut")) == 12
    assert document["best"]["command"].startswith("./run.sh federate")


def test_zero_shot_local_and_central_are_trials_like_others(table, tmp_path):
    run(table, tmp_path / "s", ["method=zero-shot,local,central,fedavg"])
    found = {each["settings"]["method"]: each for each in records(tmp_path / "s").values()}
    assert all(each["status"] == "done" for each in found.values())
    start = found["zero-shot"]["val_accuracy"]
    # Two chunks at each rung: zero-shot has no adapter to put aside, and is ranked by what it has.
    run(table, tmp_path / "h", ["method=zero-shot,fedavg", "lr=0,1e3"], halving=2)
    cut = [each for each in records(tmp_path / "h").values() if each["status"] == "pruned"]
    known = [each["val_accuracy"] for each in cut if each["settings"]["method"] == "zero-shot"]
    assert known and all(value == start for value in known)
    zero = found["zero-shot"]
    assert zero["results"][0]["unseen"] == zero["results"][0]["zero_shot"]["unseen"]
    assert zero["val_accuracy"] == pytest.approx(
        sum(r["zero_shot"]["val_accuracy"] for r in zero["results"]) / 2
    )


def test_a_graph_is_let_go_before_the_next_is_captured(table, tmp_path, monkeypatch):
    """Each holds the memory of all its lanes: two at once would need twice as much."""
    graphs = []

    class Graph:
        replay = None

    def capture(*_):
        assert not any(kept() for kept in graphs)
        graph = Graph()
        graphs.append(weakref.ref(graph))
        return graph

    real = training.advance
    monkeypatch.setattr(runner, "capture_rounds", capture)
    monkeypatch.setattr(
        training, "advance", lambda engine, progress: real(engine._replace(graph=None), progress)
    )
    grid = ["optimizer=sgd", "momentum=0", "lr=1e-3,1e6", "weight_decay=1000", "head=linear"]
    run(table, tmp_path / "out", grid)
    assert len(graphs) > 1
