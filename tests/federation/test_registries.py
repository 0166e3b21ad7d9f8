"""Methods and heads as their files describe them: what each must say, and whole runs of each."""

import dataclasses
import json
import shutil

import pytest
import torch

from kernels.heads import HEADS
from kernels.names import MODES
from pipeline.errors import ConfigError
from pipeline.federation.methods import METHODS
from pipeline.federation.plan import build_plan
from pipeline.federation.training import pick_plan_backend
from pipeline.runs.folder import read_adapters
from pipeline.settings import RunConfig
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options
from tests.conftest import ROOT
from tests.processes import python
from tests.runs.small_runs import run, small

FIELDS = {each.name: each for each in dataclasses.fields(RunConfig)}
TABLE = small(rows=(20, 30, 26, 24))
FITTING = {n: next(m for m in MODES if not head.refuse(m, "default")) for n, head in HEADS.items()}
ROUNDS = {"held_out": (("a",),), "rounds": 2, "batch": 8, "lr": 1e-2}


def settings(**changed) -> RunConfig:
    return RunConfig(**ROUNDS | changed)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_names_settings_there_are_and_keeps_what_it_says(name):
    method = METHODS[name]
    assert set(method.uses) <= set(FIELDS)
    assert method.averages or not (method.memory or method.keeps)
    assert method.lanes == "joint" or not method.averages
    assert bool(method.controls) == ("control" in method.sends)


def test_every_method_trains_alone_as_it_does_beside_others_in_a_sweep(tmp_path):
    """A trial has the figures of the run alone, whatever trains beside it."""
    same = {"head": "low-rank", "payload": "int8", "optimizer": "sgd", "momentum": 0.0, "lr": 1e-2}
    tried = from_options([f"method={','.join(METHODS)}", "lr=1e-2,3e-2"])
    found = sweep(TABLE, tried, RunConfig(**ROUNDS | same), runs=tmp_path, out=tmp_path / "sweep",
                  device="cpu")  # fmt: skip
    assert found["trials"]["failed"] == found["trials"]["diverged"] == 0
    lines = (tmp_path / "sweep" / "trials.jsonl").read_text().splitlines()
    trials = {one["settings"]["method"]: one for one in map(json.loads, lines)
              if one["settings"]["lr"] == 1e-2}  # fmt: skip
    assert set(trials) == set(METHODS)
    for name, trial in trials.items():
        alone = run(TABLE, tmp_path / name, RunConfig(**ROUNDS | same | {"method": name}))
        assert trial["val_accuracy"] == mean_val(alone), name
        for theirs, ours in zip(trial["results"], alone["results"], strict=True):
            assert theirs["per_domain"] == ours["per_domain"], name


def mean_val(document: dict) -> float:
    (result,) = document["results"]
    return result["val_accuracy"] or result["zero_shot"]["val_accuracy"]


@pytest.mark.parametrize("name", HEADS)
def test_a_head_trains_and_is_kept(name, tmp_path):
    run(TABLE, tmp_path, settings(head=name, mode=FITTING[name], payload="fp16", loss="class"))
    tensors, _ = read_adapters(tmp_path / "adapter.safetensors")
    assert any(part.any() for n, part in tensors.items() if n.startswith("best."))
    assert all(part.isfinite().all() for part in tensors.values())


@pytest.mark.parametrize("name", HEADS)
def test_a_layer_stays_at_the_client_where_the_head_has_a_last_one(name, tmp_path):
    if HEADS[name].last:
        run(TABLE, tmp_path, settings(method="fedper", head=name, mode=FITTING[name]))
    else:
        with pytest.raises(ConfigError, match=f"{name}.* have one layer only"):
            settings(method="fedper", head=name, mode=FITTING[name])


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("loss", ["contrastive", "class"])
def test_auto_runs_what_has_code_for_the_head(name, loss):
    plan = build_plan(TABLE, settings(head=name, mode=FITTING[name], loss=loss))
    found = pick_plan_backend(plan, "auto", torch.device("cpu"))
    assert found == ("torch" if HEADS[name].numba is None else "numba")


def test_a_file_in_the_folder_is_all_that_a_method_and_a_head_need(tmp_path):
    """A copy of both folders with one more file each: --help offers it, a run can be configured."""
    copied = tmp_path / "project"
    ignore = shutil.ignore_patterns("__pycache__")
    for package in ("pipeline", "kernels", "cache"):
        shutil.copytree(ROOT / package, copied / package, ignore=ignore)
    (copied / "pipeline/federation/methods/stranger.py").write_text(
        "from pipeline.federation.methods.method import Method\n"
        "METHODS = (Method('stranger', 'The first client.',\n"
        "                  combine=lambda config, heard: heard.clients[0]),)\n"
    )
    (copied / "kernels/heads/odd.py").write_text(
        "from kernels.heads.head import Head\n"
        "HEAD = Head('odd', 'Turned round.', lambda d, c, r: {'v': (d,)}, lambda parts, x: -x)\n"
    )
    code = (
        "import sys\n"
        "from pipeline.cli.app import cli\n"
        "from pipeline.settings import RunConfig\n"
        "RunConfig(method='stranger', head='odd')\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
        "cli(['federate', '--help'], standalone_mode=False)\n"
    )
    shown = python(code, cwd=copied).replace("\n", "").replace(" ", "")
    assert "stranger" in shown and "odd" in shown
