"""Sweeps in the words of W&B, from YAML that may be hostile."""

import math

import pytest

from pipeline.errors import ConfigError
from pipeline.settings import RunConfig
from pipeline.sweeps.halving import Halving
from pipeline.sweeps.search import listed_trials
from pipeline.sweeps.space import Choices, Normal, Range, Steps
from pipeline.sweeps.spec import batch_size
from pipeline.sweeps.wandb import from_wandb, read_yaml

BASE = RunConfig()
WHOLE = """
method: random
metric: {name: val_accuracy, goal: maximize}
run_cap: 30
program: train.py
parameters:
  lr: {distribution: log_uniform_values, min: 1e-5, max: 1e-2}
  weight-decay: {values: [0, 0.2, 1e-3]}
  wk_iters: {min: 1, max: 4}
  iters: {value: 27}
  seed: {values: [0, 1, 2]}
early_terminate: {type: hyperband, eta: 3, min_iter: 3}
"""


def spec_of(parameters, method="grid", **more):
    rounds = more.pop("rounds", 200)
    return from_wandb({"method": method, "parameters": parameters, **more}, rounds=rounds)


def domain_of(name, words):
    return dict(spec_of({name: words}, "random", run_cap=5).parameters)[name]


def read(tmp_path, text):
    file = tmp_path / "sweep.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(file)


def test_a_whole_sweep(tmp_path, heard):
    heard.clear()
    spec = from_wandb(read(tmp_path, WHOLE), rounds=200)
    assert spec.method == "random"
    assert dict(spec.parameters) == {
        "lr": Range(1e-5, 1e-2, log=True),
        "weight_decay": Choices((0.0, 0.2, 1e-3)),
        "local_epochs": Steps(1, 4),
        "rounds": Choices((27,)),
    }
    assert spec.seeds == (0, 1, 2)
    assert spec.count == 10
    assert spec.halving == Halving(3, 3)
    said = " ".join(heard)
    assert "program: not used here" in said
    assert "run_cap 30: 10 configurations, 3 seeds each" in said
    assert "the same rounds (3, 9 of 27) and the best 1/3 continue" in said
    assert len(listed_trials(spec, BASE)) == 30


@pytest.mark.parametrize(
    ("words", "domain"),
    [
        ({"value": "1e-3"}, Choices((1e-3,))),
        ({"values": ["5e-5", 1, 1.0]}, Choices((5e-5, 1.0))),
        ({"distribution": "categorical", "values": [1, 2]}, Choices((1.0, 2.0))),
        ({"distribution": "constant", "value": 2}, Choices((2.0,))),
        ({"min": 0.0, "max": 100.0}, Range(0.0, 100.0)),
        ({"min": 1, "max": 100}, Range(1.0, 100.0)),
        ({"distribution": "uniform", "min": 1, "max": 100}, Range(1.0, 100.0)),
        ({"distribution": "int_uniform", "min": 1, "max": 5}, Steps(1, 5)),
        ({"distribution": "log_uniform_values", "min": 2, "max": 3}, Range(2.0, 3.0, log=True)),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.1}, Steps(0, 10, 0.1)),
        ({"distribution": "q_uniform", "min": 0, "max": 0.3, "q": 0.1}, Steps(0, 3, 0.1)),
        ({"distribution": "q_uniform", "min": 2.1, "max": 2.8, "q": 0.3}, Steps(7, 9, 0.3)),
        ({"distribution": "q_uniform", "min": 0.25, "max": 3.5}, Steps(1, 3, 1.0)),
        ({"distribution": "normal", "mu": 1, "sigma": 0.1}, Normal(1.0, 0.1)),
        ({"mu": 1, "sigma": 0.1}, Normal(1.0, 0.1)),
    ],
)
def test_distributions_of_a_fraction(words, domain):
    assert domain_of("lr", words) == domain


def test_log_uniform_has_exponents_and_says_so(heard):
    spec = spec_of(
        {"lr": {"distribution": "log_uniform", "min": -9, "max": -2}}, "random", run_cap=2
    )
    (domain,) = dict(spec.parameters).values()
    assert math.isclose(domain.low, math.exp(-9)) and math.isclose(domain.high, math.exp(-2))
    assert "exponents" in heard[0]


def test_whole_ends_of_a_fraction_are_told(heard):
    spec_of({"split": {"min": 0, "max": 1}}, "random", run_cap=1)
    assert "W&B would draw whole" in heard[0]


def test_max_iter_and_s_are_cuts(heard):
    early = {"type": "hyperband", "max_iter": 27, "s": 2}
    spec = spec_of({"lr": {"values": [1, 2]}}, early_terminate=early, rounds=27)
    assert spec.halving == Halving(3, 3, 2)
    assert "(3, 9 of 27)" in heard[0]


def test_a_grid_is_cut_to_run_cap():
    spec = spec_of({"lr": {"values": [1, 2, 3]}, "batch": {"min": 8, "max": 9}}, run_cap=4)
    assert [list(t.settings.values()) for t in listed_trials(spec, BASE)] == [
        [8, 1.0],
        [8, 2.0],
        [8, 3.0],
        [9, 1.0],
    ]


def test_bayes_asks_for_a_quarter_at_a_time():
    lr = {"lr": {"min": 0.1, "max": 0.2}}
    assert [batch_size(spec_of(lr, "bayes", run_cap=n)) for n in (1, 40, 1000)] == [1, 10, 32]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("parameters: lr is missing", None),
        ("not a mapping", 5),
        ("not a mapping", [1, 2]),
        ("give value, values, or min and max", {}),
        ("empty list", {"values": []}),
        ("not a list", {"values": 5}),
        ("not a list", {"values": "abc"}),
        ("takes a finite number; got 'abc'", {"values": ["abc"]}),
        ("takes a finite number", {"value": True}),
        ("takes a finite number", {"value": float("nan")}),
        ("takes a finite number", {"values": [[1]]}),
        ("max is missing", {"min": 1}),
        ("the first must be the smaller", {"min": 2, "max": 1}),
        ("starts above 0", {"distribution": "log_uniform_values", "min": 0, "max": 1}),
        ("is not finite", {"distribution": "log_uniform", "min": -9, "max": 10**6}),
        ("'beta' is not supported; there are", {"distribution": "beta", "min": 1, "max": 2}),
        ("is not supported", {"distribution": "q_log_uniform_values", "min": 1, "max": 2}),
        ("is not supported", {"distribution": ["uniform"], "min": 1, "max": 2}),
        ("nested", {"parameters": {"a": {"value": 1}}}),
        ("did you mean values?", {"valeus": [1]}),
        ("q must be above 0", {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}),
        ("no multiple", {"distribution": "q_uniform", "min": 0.1, "max": 0.2, "q": 1}),
        ("sigma must be above 0", {"mu": 0, "sigma": 0}),
        ("not a finite number", {"distribution": "normal", "mu": "x"}),
        ("value is missing", {"distribution": "constant", "values": [1]}),
    ],
)
def test_parameters_that_cannot_be(said, words):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        domain_of("lr", words)


@pytest.mark.parametrize(
    ("said", "more"),
    [
        ("did you mean parameters", {"paramaters": {}}),
        ("method None is unknown", {"method": None}),
        ("method 'anneal' is unknown", {"method": "anneal"}),
        ("is unbounded", {"method": "random"}),
        ("run_cap takes a whole number from 1", {"run_cap": 0}),
        ("run_cap takes a whole number from 1", {"run_cap": 1.5}),
        ("run_cap takes a whole number", {"run_cap": "x"}),
        ("chooses by val_accuracy alone", {"metric": {"name": "test_accuracy"}}),
        ("chooses by val_accuracy alone", {"metric": {"name": ["unseen"]}}),
        ("is maximized", {"metric": {"name": "val_accuracy", "goal": "minimize"}}),
        ("target: not supported", {"metric": {"target": 0.9}}),
        ("metric is a str", {"metric": "val_accuracy"}),
        ("type 'envelope' is not supported", {"early_terminate": {"type": "envelope"}}),
        ("give min_iter, or max_iter", {"early_terminate": {"type": "hyperband"}}),
        (
            "eta takes a whole number from 2",
            {"early_terminate": {"type": "hyperband", "eta": 1, "min_iter": 1}},
        ),
        ("min_iter takes", {"early_terminate": {"type": "hyperband", "min_iter": -3}}),
        ("s takes", {"early_terminate": {"type": "hyperband", "max_iter": 9, "s": 0}}),
        (
            "must lie in 1 to 64",
            {"early_terminate": {"type": "hyperband", "max_iter": 9, "eta": 10**7, "s": 10**7}},
        ),
        ("did you mean min_iter", {"early_terminate": {"type": "hyperband", "min_iters": 3}}),
        ("parameters is missing", {"parameters": None}),
        ("parameters is a list", {"parameters": [1]}),
        ("not a setting", {"parameters": {5: {"value": 1}}}),
        ("set twice", {"parameters": {"iters": {"value": 1}, "rounds": {"value": 2}}}),
        ("list its values", {"parameters": {"seed": {"min": 1, "max": 3}}}),
    ],
)
def test_sweeps_that_cannot_be(said, more):
    found = {"method": "grid", "parameters": {"lr": {"values": [1, 2]}}, **more}
    with pytest.raises(ConfigError, match=said):
        from_wandb(found, rounds=200)


def test_seeds_and_halving_are_said_once():
    found = {"method": "grid", "parameters": {"seed": {"values": [0, 1]}}}
    with pytest.raises(ConfigError, match="set twice"):
        from_wandb(found, rounds=200, seeds=3)
    found["early_terminate"] = {"type": "hyperband", "min_iter": 3}
    with pytest.raises(ConfigError, match="--halving set the same"):
        from_wandb(found, rounds=200, halving=3)


BOMB = "a: &a [x, x]\n" + "\n".join(
    f"{c}: &{c} [*{p}, *{p}]" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("uses the alias \\*a", BOMB),
        ("uses the alias \\*a", "a: &a [*a]"),
        ("line 3 gives lr a second time", "parameters:\n  lr: {value: 1}\n  lr: {value: 2}"),
        ("gives method a second time", "method: grid\nmethod: bayes"),
        ("invalid YAML in line 2: found character '\\\\t'", "method: grid\n\tparameters: 1"),
        ("holds a list", "- method: grid\n- parameters: {}"),
        ("holds a NoneType", ""),
        ("holds a str", "hello"),
        ("holds a dict", "1: 2"),
        ("invalid YAML", "a: [1, 2"),
        ("invalid YAML", "a: b: c"),
        ("invalid YAML", "--- 1\n--- 2"),
        ("could not determine a constructor", "a: !!python/object/apply:os.system [ls]"),
        ("invalid YAML", b"a: \xff\xfe"),
        ("invalid YAML", "a: \0"),
        ("invalid YAML", "!!int ''"),
        ("invalid YAML", "!!timestamp x"),
        ("invalid YAML", "!!bool x"),
        ("invalid YAML", "a: 2026-99-99"),
        ("invalid YAML", "a: " + "9" * 5000),
        ("deeper than 16", "[" * 60_000),
        ("invalid YAML", "{[a]: 1}"),
        ("500,000 bytes", "a: 1\n" * 100_000),
    ],
)
def test_yaml_that_cannot_be_read(tmp_path, said, text):
    with pytest.raises(ConfigError, match=said) as error:
        read(tmp_path, text)
    assert "sweep.yaml" in str(error.value)
    assert len(str(error.value)) < 600


def test_files_that_are_none(tmp_path):
    for file, why in ((tmp_path, "a folder"), (tmp_path / "missing.yaml", "cannot be read")):
        with pytest.raises(ConfigError, match=why):
            read_yaml(file)


def test_a_byte_order_mark_and_unicode_are_read(tmp_path):
    assert read(tmp_path, "\ufeffname: Größe 🦆\n") == {"name": "Größe 🦆"}
