"""Whole sweeps: trials in batches against trials alone, kills, memory, budget, divergence."""

import json
import math
import random
import signal
import subprocess
import sys
import time
from importlib import import_module

import pytest

from cache.store import read_table, write_table
from pipeline.config import ConfigError, RunConfig
from pipeline.federate import federate
from pipeline.halving import Halving
from pipeline.seals import unsealed
from pipeline.sweep_run import sweep
from pipeline.sweep_space import Range
from pipeline.sweep_spec import SweepSpec, from_options
from tests.conftest import ROOT
from tests.small_runs import small

runner = import_module("pipeline.sweep")  # the module; the package's is the function

BASE = RunConfig(held_out=(("a",), ("b",)), rounds=6, batch=8)
GRID = ["lr=1e-3,1e-2", "head=attention,low-rank", "method=fedavg,ditto", "batch=8,16"]


@pytest.fixture
def table(tmp_path):
    write_table(tmp_path / "small.h5", small())
    return read_table(tmp_path / "small.h5")


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
    pytest.importorskip("optuna", reason="bayes needs requirements-sweep.txt")
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


def test_combinations_that_cannot_be_are_left_out(table, tmp_path):
    run(table, tmp_path, ["mode=FedAtImg,FedAtTxt", "head=attention,cosine", "loss=class"])
    places = {(r["settings"]["mode"], r["settings"]["head"]) for r in records(tmp_path).values()}
    assert places == {("FedAtImg", "attention"), ("FedAtTxt", "attention"), ("FedAtTxt", "cosine")}
    with pytest.raises(ConfigError, match="no combination"):
        run(table, tmp_path / "none", ["head=cosine", "mode=FedAtImg,FedAtBoth"])


def test_a_budget_ends_it_between_rounds_and_the_same_command_goes_on(table, tmp_path):
    run(table, tmp_path / "calm")
    heard = []
    run(table, tmp_path / "cut", budget=0.0, say=heard.append)
    assert "16 trials are left" in heard[-1] and not records(tmp_path / "cut")
    run(table, tmp_path / "cut", budget=math.inf)
    assert records(tmp_path / "calm") == records(tmp_path / "cut")


@pytest.mark.parametrize("halving", [None, 2])
def test_stopped_anywhere_it_goes_on_to_the_same_records(table, tmp_path, monkeypatch, halving):
    run(table, tmp_path / "calm", halving=halving, seeds=2)
    original, draw = runner.advance, random.Random(0)
    stops = 0
    for _ in range(40):
        left = [draw.randint(1, 25)]

        def advance(engine, progress, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return original(engine, progress)

        monkeypatch.setattr(runner, "advance", advance)
        try:
            run(table, tmp_path / "cut", halving=halving, seeds=2, memory=draw.choice([0, 10**6]))
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
    for kill in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
        before = log.read_bytes().count(b"\n") if log.exists() else 0
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as child:
            waited = time.monotonic() + 120
            while not (log.exists() and log.read_bytes().count(b"\n") > before):
                assert time.monotonic() < waited and child.poll() is None
                time.sleep(0.01)
            child.send_signal(kill)
            message = child.communicate(timeout=60)[1]
    assert child.returncode == 128 + signal.SIGTERM and "goes on with them" in message
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["trials"]["done"] == 12 and len(records(tmp_path / "cut")) == 12
    assert document["best"]["command"].startswith("./run.sh federate")


def test_zero_shot_local_and_central_are_trials_like_others(table, tmp_path):
    run(table, tmp_path, ["method=zero-shot,local,central,fedavg"])
    found = {each["settings"]["method"]: each for each in records(tmp_path).values()}
    assert all(each["status"] == "done" for each in found.values())
    zero = found["zero-shot"]
    assert zero["results"][0]["unseen"] == zero["results"][0]["zero_shot"]["unseen"]
    assert zero["val_accuracy"] == pytest.approx(
        sum(r["zero_shot"]["val_accuracy"] for r in zero["results"]) / 2
    )
