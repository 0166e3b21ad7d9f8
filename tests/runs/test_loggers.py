"""Figures that go to other programs: the same for all, never at the cost of a run."""

import json
import logging
import os
import types

import numpy as np
import pytest

from cache.store import write_table
from kernels.cpu import numba_cache
from pipeline.errors import ConfigError
from pipeline.federation.record import FoldRound, RoundReport
from pipeline.progress import Bar
from pipeline.runs import loggers
from pipeline.runs.federate import federate
from pipeline.runs.loggers import LOGGERS, Logger, figures_of
from tests.cli.commands import call
from tests.packages import need
from tests.reports.report_folders import HOSTILE
from tests.runs.small_runs import config, small


def fold(held_out, val, test=None, loss=None):
    return FoldRound(held_out, loss or {}, val, True, test, None, {})


def test_figures_are_means_by_training_and_over_all():
    one = fold("a", {"b": 0.5, "c": 0.7}, {"a": 0.2, "b": 0.9}, {"b": 1.0, "c": 3.0})
    other = fold("b,c", {"a": 0.1}, {"b": 0.4, "c": 0.6, "a": 1.0})
    found = figures_of(RoundReport(3, (one, other)))
    assert found == pytest.approx(
        {"validation/a": 0.6, "test/a": 0.2, "loss/a": 2.0, "validation/b_c": 0.1,
         "test/b_c": 0.5, "validation": 0.35, "test": 0.35}
    )  # fmt: skip
    alone = figures_of(RoundReport(0, (fold(None, {}, {"a": 0.5, "b": 0.7}),)))
    assert alone == pytest.approx({"test/none": 0.6})
    for name in HOSTILE:
        (key,) = figures_of(RoundReport(0, (fold(name, {"a": 1.0}),)))
        assert key.isascii() and not set(key) & set("<>\"'()=") and key.count("/") == 1


def recording(monkeypatch, kept, *, fails=None):
    def made(folder, name, settings):
        if fails == "open":
            raise OSError("no server")
        kept.append((name, settings["rounds"]))

        def log(round, figures):
            if fails == "log" and round == 1:
                raise RuntimeError("lost\nthe server")
            kept.append((round, figures))

        return Logger(log, lambda: kept.append("closed"))

    monkeypatch.setattr(loggers, "LOGGERS", {**LOGGERS, "kept": made})


def test_every_round_is_logged_once_and_no_byte_of_the_run_changes(tmp_path, monkeypatch):
    kept = []
    recording(monkeypatch, kept)
    table, settings = small(), config(rounds=3)
    federate(table, settings, runs=tmp_path, out=tmp_path / "plain")
    federate(table, settings, runs=tmp_path, out=tmp_path / "run", log_to=["kept"], name="n")
    assert kept[0] == ("n", 3) and kept[-1] == "closed" and len(kept) == 5
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    for (round, figures), line in zip(kept[1:-1], map(json.loads, lines), strict=True):
        assert round == line["round"]
        wanted = [np.mean(list(each["val_accuracy"].values())) for each in line["folds"]]
        assert [v for k, v in figures.items() if k.startswith("validation/")] == pytest.approx(
            wanted
        )
    for name in ("config.json", "rounds.jsonl", "adapter.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def test_one_that_fails_is_left_out_and_training_goes_on(tmp_path, monkeypatch, heard):
    kept = []
    recording(monkeypatch, kept, fails="log")
    federate(small(), config(rounds=3), runs=tmp_path, out=tmp_path / "run", log_to=["kept"])
    assert [each for each in kept[1:] if each != "closed"][0][0] == 0 and len(kept) == 2
    (said,) = [line for line in heard if "is dropped" in line]
    assert "lost the server" in said and (tmp_path / "run" / "done").exists()


@pytest.mark.parametrize("names", [["no such"], ["kept"]])
def test_one_that_cannot_start_is_one_line(tmp_path, monkeypatch, names):
    recording(monkeypatch, [], fails="open")
    with pytest.raises(ConfigError, match="--log-to") as error:
        federate(small(), config(rounds=1), runs=tmp_path, out=tmp_path / "run", log_to=names)
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "done").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    monkeypatch.delitem(__import__("sys").modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ConfigError, match="requirements-loggers.txt"):
        federate(small(), config(rounds=1), runs=tmp_path, out=tmp_path / "run", log_to=[name])


def test_the_real_ones_have_every_round(tmp_path):
    need("wandb", "mlflow", "tensorboard")
    import mlflow
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_table(tmp_path / "c.h5", small())
    words = [word for name in LOGGERS for word in ("--log-to", name)]
    given = {"WANDB_MODE": "offline", "WANDB_DISABLE_GIT": "true"}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        call("federate", tmp_path / "c.h5", "--held-out", "none", "--rounds", 3, *words,
             "--out", tmp_path / "run", "--json")  # fmt: skip
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    lines = [json.loads(e) for e in (tmp_path / "run/rounds.jsonl").read_text().splitlines()]
    wanted = [np.mean(list(line["folds"][0]["val_accuracy"].values())) for line in lines]
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [e.value for e in found.Scalars("validation/none")] == pytest.approx(wanted)
    client = mlflow.MlflowClient((tmp_path / "run" / "mlflow").resolve().as_uri())
    experiment = client.get_experiment_by_name("fedclip")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "validation/none")
    assert [each.value for each in history] == pytest.approx(wanted)
    assert run.info.status == "FINISHED" and run.data.params["rounds"] == "3"
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert kept.stat().st_size > 1000 and b"validation/none" in kept.read_bytes()


def test_lines_of_the_log_come_every_n_rounds(tmp_path, heard):
    federate(small(), config(rounds=7), runs=tmp_path, out=tmp_path / "run", log_every=3)
    said = [line for line in heard if line.startswith("round ")]
    assert [line.split(":")[0] for line in said] == ["round 3 of 7", "round 6 of 7"]
    assert all("validation" in line and "%" in line for line in said)


def test_the_time_left_leaves_out_what_came_before_the_second_round():
    import io

    bar = Bar(total=100, file=io.StringIO(), mininterval=0)
    now = bar.start_t
    bar._time = lambda: now
    now += 10.0  # compiled
    bar.started()
    assert bar.left is None and bar.n == 1
    for _ in range(10):
        now += 0.05
        bar.update()
    assert bar.left == pytest.approx(89 * 0.05)
    assert bar.format_dict["elapsed"] == pytest.approx(0.5)
    quiet = Bar(total=3, disable=True)
    quiet.started()
    assert quiet.left is None
    for each in (bar, quiet):
        each.close()


def test_compiling_is_said_once(caplog):
    listener = numba_cache._Uncollected()

    def event(module):
        return types.SimpleNamespace(data={"dispatcher": types.SimpleNamespace(
            py_func=types.SimpleNamespace(__module__=module))})  # fmt: skip

    with caplog.at_level(logging.INFO, "kernels"):
        for module in ("numba.x", "kernels.cpu.math", "kernels.local.cpu", "kernels.local.cpu"):
            listener.on_start(event(module))
            listener.on_end(event(module))
        listener.on_start(types.SimpleNamespace(data=None))
        listener.on_end(None)
    assert [r.message for r in caplog.records] == ["compiling kernels, about 10 s, once"]
