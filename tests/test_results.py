"""What federate, sweep and records return: typed, equal to their JSON, and frames."""

import json
import sys

import pytest

from pipeline import federate, sweep
from pipeline.errors import ConfigError
from pipeline.frames import frame
from pipeline.reports.tables import records
from pipeline.settings import RunConfig
from pipeline.sweeps.spec import from_options
from tests.packages import need
from tests.runs.small_runs import small

ON = {"device": "cpu", "backend": "torch"}
CONFIG = RunConfig(held_out=(("a",), ("b",)), rounds=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return federate(small(), CONFIG, runs=str(tmp_path_factory.mktemp("runs")), **ON)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    spec = from_options(["lr=1e-4,1e-3"], seeds=2)
    return sweep(small(), spec, CONFIG, runs=str(tmp_path_factory.mktemp("runs")), **ON)


def test_a_run_has_types_and_is_its_json(run):
    assert run == json.loads((run.folder / "summary.json").read_text())
    assert json.loads(json.dumps(run)) == run
    assert [fold.held_out for fold in run.folds] == ["a", "b"]
    for fold, one in zip(run.folds, run["results"], strict=True):
        assert fold.accuracy == (one["unseen"], one["participants"], one["overall"])
        assert fold.zero_shot.unseen == one["zero_shot"]["unseen"]
        assert fold.per_domain == one["per_domain"] and fold.best_round == one["best_round"]
    assert run.mean.unseen == run["mean"]["unseen"]
    again = federate(small(), CONFIG, runs="unused", out=str(run.folder), **ON)  # a finished one
    assert type(again) is type(run) and again == run


def test_a_run_without_held_out_domains_has_none_of_them(tmp_path):
    run = federate(small(), RunConfig(rounds=1), runs=tmp_path, **ON)
    assert run.folds[0].held_out is None and run.folds[0].accuracy.unseen is None


def test_a_sweep_has_types_and_is_its_json(swept):
    assert json.loads(json.dumps(swept)) == swept
    assert len(swept.trials) == 4 and {one.status for one in swept.trials} == {"done"}
    assert swept.best.settings == swept["best"]["settings"]
    assert swept.best.score == swept["best"]["val_accuracy"]["mean"]
    assert swept.best.command == swept["best"]["command"]
    assert swept.best.tested["overall"] == swept["best"]["tested"]["overall"]["mean"]


def test_frames_have_a_row_each(run, swept):
    need("pandas")
    shown = run.to_frame()
    assert list(shown.held_out) == ["a", "b"] and set(shown.method) == {"fedavg"}
    assert list(shown.unseen) == [fold.accuracy.unseen for fold in run.folds]
    assert list(shown.zero_shot_overall) == [fold.zero_shot.overall for fold in run.folds]
    trials = swept.to_frame()
    assert sorted(trials.lr) == [1e-4, 1e-4, 1e-3, 1e-3] and set(trials.seed) == {0, 1}
    assert "unseen" not in trials  # what was tested is no trial's to be chosen by
    cells = records([swept.folder], against="zero-shot")
    assert len(cells.to_frame()) == len(cells) > 2
    assert list(frame([{"a": 1}, {"b": 2}]).columns) == ["a", "b"] and frame([]).empty


def test_without_pandas_the_way_out_is_said(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"pip install -r requirements-notebook\.txt"):
        run.to_frame()
