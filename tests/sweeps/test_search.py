"""Grid and random searches: asked in any portions they give every trial once."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.settings import RunConfig
from pipeline.sweeps.search import listed, listed_trials, open_search
from pipeline.sweeps.spec import SweepSpec, from_options
from pipeline.sweeps.trials import record
from tests.conftest import ROOT

BASE = RunConfig()
SPEC = from_options(["lr=1,2,3,4,5", "batch=8,16"], seeds=3)
TRIALS = listed_trials(SPEC, BASE)


def ended(trial, status="done", accuracy=0.5):
    return record(trial, status=status, rounds=1, results=[], val_accuracy=accuracy, seconds=0.0)


@given(st.lists(st.integers(1, 5), min_size=10), st.sets(st.integers(0, 29)))
def test_every_trial_that_has_not_ended_is_asked_once_in_order(portions, done):
    search = listed(TRIALS, 3, {TRIALS[i].id: ended(TRIALS[i]) for i in done})
    asked = []
    for n in portions:
        part = search.ask(n)
        assert len({trial.number // 3 for trial in part}) <= n
        asked += part
    assert asked == [trial for trial in TRIALS if trial.number not in done]
    assert search.ask(1) == ()
    assert search.most() == 30


def test_failed_trials_are_asked_again_and_others_are_not(tmp_path):
    statuses = ["done", "diverged", "pruned", "failed"]
    held = {t.id: ended(t, s) for t, s in zip(TRIALS, statuses, strict=False)}
    assert open_search(SPEC, BASE, tmp_path, held).ask(100) == TRIALS[3:]


def test_bayes_without_optuna_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "pipeline.sweeps.bayes", raising=False)
    spec = SweepSpec("bayes", SPEC.parameters, count=5)
    with pytest.raises(ConfigError, match="pip install -r requirements-sweep.txt"):
        open_search(spec, BASE, tmp_path, {})
    assert (ROOT / "requirements-sweep.txt").exists()
