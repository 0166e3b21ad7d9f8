"""The words of a sweep: settings' names, their values, lists and ranges, --grid and --seeds."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.settings import RunConfig
from pipeline.sweeps.search import listed_trials
from pipeline.sweeps.space import (
    SWEEPABLE,
    Choices,
    Range,
    Steps,
    at,
    parse_value,
    parse_words,
    setting_name,
)
from pipeline.sweeps.spec import (
    MOST,
    check_ends,
    config_of,
    describe,
    from_options,
    size,
    trial_count,
)
from pipeline.sweeps.trials import configuration_id

BASE = RunConfig()


def refused(words, call, *args, **kwargs):
    with pytest.raises(ConfigError) as error:
        call(*args, **kwargs)
    assert words in str(error.value), error.value
    assert len(str(error.value)) < 600
    return str(error.value)


def test_every_plain_field_can_be_swept_and_no_other():
    plain = {f.name for f in dataclasses.fields(RunConfig) if type(f.default) is not tuple}
    assert plain == set(SWEEPABLE)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("lr", "lr"),
        ("weight-decay", "weight_decay"),
        ("--weight-decay", "weight_decay"),
        ("iters", "rounds"),
        ("wk_iters", "local_epochs"),
        ("wk-iters", "local_epochs"),
        ("datapercent", "split"),
        (" lr ", "lr"),
    ],
)
def test_settings_are_known_by_their_spellings(word, name):
    assert setting_name(word) == name


def test_an_unknown_setting_gets_the_nearest_name():
    refused("did you mean weight_decay?", setting_name, "weigth_decay")
    refused("cannot be swept", setting_name, "held-out")
    refused("cannot be swept", setting_name, "test_envs")
    refused("there are", setting_name, "ÜÜÜ")
    refused("not a setting", setting_name, "x" * 10**6)


@pytest.mark.parametrize(
    ("words", "domain"),
    [
        ("5e-5,3e-4, 1e-3", Choices((5e-5, 3e-4, 1e-3))),
        ("1", Choices((1.0,))),
        ("1,1.0,1e0", Choices((1.0,))),
        ("0,-0", Choices((0.0,))),
        ("1e-5..1e-2", Range(1e-5, 1e-2, log=True)),
        ("0..1", Range(0.0, 1.0)),
        ("1..9", Range(1.0, 9.0)),
        ("1..10", Range(1.0, 10.0, log=True)),
        ("-2..-1", Range(-2.0, -1.0)),
        ("uniform:1e-5..1e-2", Range(1e-5, 1e-2)),
        ("log:2..3", Range(2.0, 3.0, log=True)),
        ("int:1..4", Steps(1, 4)),
        ("2..2", Range(2.0, 2.0)),
    ],
)
def test_words_of_a_fraction(words, domain):
    assert parse_words("lr", words) == domain


@pytest.mark.parametrize(
    ("words", "domain"),
    [
        ("16,32", Choices((16, 32))),
        ("16.0,1e2", Choices((16, 100))),
        ("10..200", Steps(10, 200)),
        ("log:10..200", Steps(10, 200, log=True)),
    ],
)
def test_words_of_a_whole_number(words, domain):
    assert parse_words("batch", words) == domain


@pytest.mark.parametrize(
    "words",
    ["", "  ", "abc", "1,,2", ",", "1e-5..", "..1", "..", "1..abc", "2..1", "log:0..1", "log:-1..1"]
    + ["log:5", "exp:1..2", "nan", "inf", "1..inf", "1_0", "１e-3", "1\t2", "1\n2", "int:1.5..3"]
    + ["true", "9" * 5000, "-1e308..1e308", "1...5", "None", "1;2", "\0"],
)
def test_words_that_mean_no_fraction(words):
    refused("lr", parse_words, "lr", words)


@pytest.mark.parametrize("words", ["1.5", "1e999", "9" * 400, "9" * 5000, "1e30", "x", "1.5..3"])
def test_words_that_mean_no_whole_number(words):
    refused("batch", parse_words, "batch", words)


def test_minus_zero_is_zero():
    assert str(parse_words("lr", "-0").values) == str(parse_words("lr", "0").values) == "(0.0,)"


def test_a_word_has_no_range():
    refused("has no range", parse_words, "weighting", "rows..uniform")
    assert parse_words("weighting", "rows,uniform") == Choices(("rows", "uniform"))


@pytest.mark.parametrize("raw", [True, None, [], {}, b"1", 2**80, 1.5, float("nan")])
def test_yaml_values_of_another_type_are_no_whole_number(raw):
    refused("batch takes a whole number", parse_value, "batch", raw)
    if raw not in (1.5, 2**80):
        refused("lr takes a finite number", parse_value, "lr", raw)
    refused("weighting takes a word", parse_value, "weighting", raw)


@given(st.floats(1e-6, 1e3), st.floats(1.0, 1e6), st.booleans(), st.floats(0, 1, exclude_max=True))
def test_a_draw_lies_in_its_range_and_quantiles_rise(low, times, log, u):
    domain = Range(low, low * times, log)
    drawn = at("lr", domain, u)
    assert domain.low <= drawn <= domain.high
    assert at("lr", domain, u / 2) <= drawn
    middle = at("lr", domain, 0.5)
    mean = math.sqrt(domain.low * domain.high) if log else (domain.low + domain.high) / 2
    assert math.isclose(middle, mean, rel_tol=1e-5)


@given(st.integers(1, 50), st.integers(0, 50), st.booleans(), st.floats(0, 1, exclude_max=True))
def test_a_whole_draw_lies_in_its_range(first, more, log, u):
    drawn = at("batch", Steps(first, first + more, log=log), u)
    assert type(drawn) is int
    assert first <= drawn <= first + more


def test_every_value_of_a_list_and_of_steps_is_drawn_as_often():
    us = [(i + 0.5) / 600 for i in range(600)]
    for domain in (Choices((1, 2, 3)), Steps(1, 3)):
        drawn = [at("batch", domain, u) for u in us]
        assert [drawn.count(v) for v in (1, 2, 3)] == [200, 200, 200]


def test_steps_are_clean_multiples():
    drawn = {at("lr", Steps(0, 10, 0.1), i / 11 + 0.01) for i in range(11)}
    assert drawn == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}


def test_a_grid_crosses_everything_with_the_seeds():
    spec = from_options(["lr=5e-5,3e-4", "wk-iters=1,2,3"], seeds=2)
    trials = listed_trials(spec, BASE)
    assert trial_count(spec) == len(trials) == 12
    assert [t.number for t in trials] == list(range(12))
    assert {(t.settings["lr"], t.settings["local_epochs"], t.seed) for t in trials} == {
        (lr, epochs, seed) for lr in (5e-5, 3e-4) for epochs in (1, 2, 3) for seed in (0, 1)
    }
    assert [t.seed for t in trials[:4]] == [0, 1, 0, 1]
    assert len({t.id for t in trials}) == 12
    assert len({configuration_id(t.settings) for t in trials}) == 6
    assert config_of(trials[-1], BASE) == RunConfig(lr=3e-4, local_epochs=3, seed=1)


def test_the_order_of_grids_says_nothing():
    one = from_options(["lr=1e-4,1e-3", "batch=16,32"], seeds=3)
    other = from_options(["batch=16,32", "lr=1e-4,1e-3"], seeds=3)
    assert describe(one) == describe(other)
    assert listed_trials(one, BASE) == listed_trials(other, BASE)


def test_equal_settings_are_one_trial():
    trials = listed_trials(from_options(["lr=1,1.0,1e0,2", "iters=5,5.0"]), BASE)
    assert [t.settings["lr"] for t in trials] == [1.0, 2.0]


def test_a_trials_id_is_twelve_hex_digits_of_what_it_trains():
    (one, other) = listed_trials(from_options(["lr=1e-3"], seeds=2), BASE)
    assert one.id != other.id
    assert int(one.id, 16) >= 0 and len(one.id) == 12
    (again,) = listed_trials(from_options(["lr=0.001", "seed=1"]), BASE)
    assert again.id == other.id


def test_seeds_may_be_listed():
    spec = from_options(["lr=1e-3,1e-4", "seed=7,3"])
    assert [t.seed for t in listed_trials(spec, BASE)] == [7, 3, 7, 3]
    assert from_options([], seeds=3).seeds == (0, 1, 2)
    refused("set twice", from_options, ["seed=1,2"], seeds=2)
    refused("set twice", from_options, ["seed=1", "seed=2"])
    refused("list its values", from_options, ["seed=1..5"])
    refused("seed", listed_trials, from_options(["seed=-1"] + ["lr=1,2"]), BASE)


def test_random_draws_are_distinct_and_begin_alike():
    few = listed_trials(from_options(["lr=1e-5..1e-2", "batch=8..64"], draws=10), BASE)
    many = listed_trials(from_options(["lr=1e-5..1e-2", "batch=8..64"], draws=40), BASE)
    assert few == many[:10]
    assert len({t.id for t in many}) == 40
    other = from_options(["lr=1e-5..1e-2", "batch=8..64"], draws=10, draw_seed=1)
    assert not {t.id for t in listed_trials(other, BASE)} & {t.id for t in many}
    logs = [math.log10(t.settings["lr"]) for t in many]
    assert sum(x < -3.5 for x in logs) in range(8, 33)  # half of them, 40 draws, 4 sigma


def test_random_in_a_small_space_ends_when_it_is_searched():
    trials = listed_trials(from_options(["batch=8..10", "weighting=rows,uniform"], draws=50), BASE)
    assert len(trials) == 6


def test_random_leaves_out_what_cannot_be():
    from pipeline.sweeps.space import Normal
    from pipeline.sweeps.spec import SweepSpec

    spec = SweepSpec("random", (("lr", Normal(0.0, 1.0)),), count=20)
    trials = listed_trials(spec, BASE)
    assert len(trials) == 20
    assert all(t.settings["lr"] >= 0 for t in trials)


@pytest.mark.parametrize(
    ("words", "grid", "more"),
    [
        ("nothing is swept", [], {}),
        ("nothing is swept", [], {"draws": 5}),
        ("write name=", ["lr"], {}),
        ("write name=", ["=1"], {}),
        ("write name=", [""], {}),
        ("has no value", ["lr="], {}),
        ("takes a finite number", ["lr=abc"], {}),
        ("set twice", ["lr=1", "lr=2"], {}),
        ("set twice", ["rounds=1", "iters=2"], {}),
        ("draw some with --random", ["lr=1e-5..1e-2"], {}),
        ("seeds", ["lr=1"], {"seeds": 0}),
        ("seeds", ["lr=1"], {"seeds": -3}),
        ("seeds", ["lr=1"], {"seeds": 10**9}),
        ("configurations", ["lr=1..2"], {"draws": 0}),
        ("configurations", ["lr=1..2"], {"draws": 10**9}),
        ("halving", ["lr=1,2"], {"halving": 1}),
        ("rounds cannot be swept", ["rounds=10,20"], {"halving": 3}),
        ("= 1e+09 trials", [f"{n}=int:1..1000" for n in ("lr", "batch", "weight_decay")], {}),
        ("trials", ["batch=1..9000000000000000000"], {"seeds": 3}),
        ("trials", ["lr=1..2"], {"draws": MOST, "seeds": 2}),
    ],
)
def test_sweeps_that_cannot_be(words, grid, more):
    refused(words, from_options, grid, **more)


def test_values_that_cannot_be_are_refused_before_training():
    refused("lr must lie in", listed_trials, from_options(["lr=1e-3,-1"]), BASE)
    refused("lr must lie in", listed_trials, from_options(["lr=-1..1"], draws=3), BASE)
    refused("beta2", check_ends, from_options(["beta2=0.9..1"], draws=3), BASE)
    refused("weighting 'x'", listed_trials, from_options(["weighting=rows,x"]), BASE)


def test_sizes():
    assert size(Choices((1, 2))) == 2
    assert size(Steps(3, 7)) == 5
    assert size(Range(1.0, 2.0)) == math.inf
    assert size(Range(1.0, 1.0)) == 1


def test_ten_thousand_trials_are_listed():
    spec = from_options(["batch=int:2..100", "local_epochs=1..101"])
    assert len(listed_trials(spec, BASE)) == 99 * 101
