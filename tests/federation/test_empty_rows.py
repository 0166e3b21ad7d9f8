"""Every set of rows may be empty: the run works and tells None, or one line says what cures it."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from pipeline.errors import ConfigError, ConflictError, RowsError
from pipeline.federation.cures import cures
from pipeline.federation.methods import METHODS
from pipeline.federation.plan import build_plan
from pipeline.reports.sweep import sweep_part
from pipeline.reports.trials import read_sweep
from pipeline.runs.federate import federate
from pipeline.runs.notes import row_notes
from pipeline.settings import RunConfig
from pipeline.sweeps.best import sweep_table
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options
from tests.federation.empty_rows import (
    MISSING,
    advised,
    lacking,
    refusal,
    run_and_report,
    stored,
    with_options,
)

EACH = (("a",), ("b",), ("c",))
PARTITIONS = {
    "domain": {},
    "pathological": {"partition": "pathological", "clients": 3, "classes_per_client": 2},
    "too many": {"partition": "dirichlet", "clients": 30},
}


def config_of(**changed) -> RunConfig:
    if changed.get("method") == "scaffold":
        changed |= {"optimizer": "sgd", "momentum": 0.0}
    return RunConfig(**({"held_out": ((),), "rounds": 1, "batch": 8, "lr": 1e-2} | changed))


def check_cures(table, config, message):
    """Each alternative that a refusal names makes the very same command's plan."""
    named = advised(message)
    assert named or "No setting fixes that" in message, message
    for words in named:
        build_plan(table, with_options(table, config, words))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("partition", PARTITIONS)
def test_whatever_is_missing_a_run_works_or_says_what_cures_it(missing, partition, tmp_path):
    table = stored(lacking(missing, rows=(24, 24, 24)), tmp_path / "c.h5")
    for at, method in enumerate(METHODS):
        config = config_of(
            method=method,
            held_out=(((),), (("b",),), (("a",), ("c",)))[at % 3],
            personalise=int(method in ("fedavg", "local", "ditto", "central")),
            fixed_split=("keep", "holdout")[at % 5 == 4],
            **PARTITIONS[partition],
        )
        said = refusal(table, config, tmp_path / "run", page=at % 4 == 0)
        if said:
            check_cures(table, config, said)
            assert method != "zero-shot"


@pytest.mark.parametrize("missing", ["test", "all but test", "a domain", "all but a row"])
def test_a_sweep_works_or_says_why(missing, tmp_path):
    table = stored(lacking(missing), tmp_path / "c.h5")
    grid = ["method=fedavg,ditto,local,central,fedper,krum,zero-shot,scaffold", "personalise=0,1"]
    document = sweep(
        table, from_options(grid), config_of(head="low-rank"), runs=tmp_path,
        out=tmp_path / "s", device="cpu",
    )  # fmt: skip
    json.dumps(document, allow_nan=False)
    assert sum(document["trials"].values()) == 16 and document["trials"]["failed"] >= 2
    assert "nan" not in sweep_table(document)
    page = str(sweep_part(read_sweep(tmp_path / "s"), "s"))
    assert ">nan<" not in page and "--optimizer sgd --momentum 0" in page
    trains = missing == "test"
    assert document["trials"]["done"] == (14 if trains else 2)
    assert (document["best"] is not None) == (missing in ("test", "a domain"))
    if document["best"] is None:
        assert "nothing can be selected" in sweep_table(document) and "hing can be selected" in page


TABLES = st.fixed_dictionaries(
    {
        "missing": st.sampled_from(list(MISSING)),
        "fixed": st.booleans(),
        "rows": st.sampled_from([(48, 24, 24), (24, 0, 12), (12, 3, 1), (40,), (4,), (1,), (5, 4)]),
        "width": st.sampled_from([1, 3]),
    }
)
CONFIGS = st.fixed_dictionaries(
    {"method": st.sampled_from(list(METHODS)), "held_out": st.integers(0, 3)},
    optional={
        "rounds": st.just(2),
        "split": st.sampled_from([0.01, 0.5, 0.98]),
        "fixed_split": st.just("holdout"),
        "partition": st.sampled_from(["iid", "dirichlet", "pathological", "quantity"]),
        "clients": st.sampled_from([1, 2, 3, 7, 500]),
        "alpha": st.sampled_from([1e-6, 100.0]),
        "classes_per_client": st.sampled_from([1, 9]),
        "shots": st.sampled_from([1, 2, 10**6]),
        "personalise": st.just(1),
        "client_fraction": st.sampled_from([1e-6, 0.5]),
        "dropout": st.just(1.0),
        "stragglers": st.just(1.0),
        "eval": st.just("every"),
        "weighting": st.just("rows"),
        "mode": st.sampled_from(["FedAtTxt", "FedAtBoth"]),
        "head": st.sampled_from(["low-rank", "linear", "clip-adapter"]),
        "moments": st.just("kept"),
        "byzantine": st.sampled_from([0, 9]),
        "payload": st.just("int8"),
        "clip": st.just(1.0),
        "noise": st.just(0.1),
    },
)


@settings(
    derandomize=True,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=TABLES, chosen=CONFIGS)
def test_any_command_on_any_rows_works_or_says_what_cures_it(tmp_path, drawn, chosen):
    assume(len(lacking(**drawn).labels))  # without a row it is no cache
    table = stored(lacking(**drawn), tmp_path / "c.h5")
    names = table.domain_names
    folds = (((),), tuple((name,) for name in names), (names[:1],), (names,))[chosen["held_out"]]
    try:
        config = config_of(**{**chosen, "held_out": folds})
    except ConflictError as error:
        assert advised(str(error))
        return
    said = refusal(table, config, tmp_path / "run")
    if said and "are held out" not in said:
        check_cures(table, config, said)


CONFLICTS = [
    {"head": "cosine"},
    {"head": "clip-adapter", "start": "identity"},
    {"method": "scaffold", "optimizer": "adam"},
    {"method": "scaffold", "optimizer": "sgd", "momentum": 0.9},
    {"method": "scaffold", "optimizer": "sgd", "momentum": 0.0, "lr": 0.0},
    {"method": "fedper", "head": "linear"},
    {"method": "fedper", "head": "cosine", "mode": "FedAtTxt"},
    {"clients": 4},
    {"noise": 1.0},
    {"noise": 1.0, "clip": 1.0, "weighting": "rows"},
    {"noise": 1.0, "clip": 1.0, "method": "median"},
    {"noise": 1.0, "clip": 1.0, "method": "local", "weighting": "rows"},
    {"head": "classifier"},
    {"start": "closed-form"},
    {"start": "closed-form", "head": "classifier", "mode": "FedAtTxt", "noise": 1.0, "clip": 1.0},
    {"refit": "yes"},
    {"method": "closed-form", "noise": 1.0, "refit": "yes"},
    {"method": "closed-form", "noise": 1.0, "tune_on": "domain"},
    {"method": "closed-form", "clip": 1.0, "tune_on": "rows"},
]


@pytest.mark.parametrize("conflict", CONFLICTS, ids=str)
def test_what_a_conflict_advises_ends_it(conflict):
    with pytest.raises(ConflictError) as error:
        RunConfig(**conflict)
    named = advised(str(error.value))
    assert named, error.value
    for words in named:
        changes = dataclasses.asdict(with_options(None, RunConfig(), words))
        given = {f"--{name.replace('_', '-')}" for name in changes} & set(words)
        own = {name: changes[name] for name in changes if f"--{name.replace('_', '-')}" in given}
        RunConfig(**{**conflict, **own})


def test_every_conflict_is_provoked():
    from kernels.heads import HEADS
    from pipeline.federation.methods import METHODS
    from pipeline.settings import _CONFLICTS

    said = set()
    for conflict in CONFLICTS:
        with pytest.raises(ConflictError) as error:
            RunConfig(**conflict)
        said.add(str(error.value))
    every = [*METHODS.values(), *HEADS.values()]
    refusals = [*_CONFLICTS, *(refusal for each in every for refusal in each.refusals)]
    assert said == {message for _, message in refusals}


def test_rows_that_no_setting_can_split_get_no_advice(tmp_path):
    table = lacking("nothing", fixed=False, rows=(3,))
    with pytest.raises(RowsError, match="No setting fixes that"):
        build_plan(table, config_of())
    for share in range(1, 99):
        with pytest.raises(RowsError):
            build_plan(table, config_of(split=share / 100))


def test_a_cure_is_the_most_clients_that_the_rows_suffice_for():
    table, config = lacking("nothing"), config_of(partition="iid", clients=100)
    assert cures(table, config) == "Pass --clients 6"  # 12 train rows in domains b and c
    with pytest.raises(RowsError):
        build_plan(table, dataclasses.replace(config, clients=7))


@pytest.mark.parametrize(
    ("missing", "changed", "said"),
    [
        ("test", {}, "no test rows, so nothing is tested; --fixed-split holdout gives"),
        ("a class", {}, "held out none: 1 of 3 classes have no train rows: class 2"),
        ("a class's train", {"held_out": EACH}, "held out b: 1 of 3 classes have no train rows"),
        ("a domain", {"held_out": (("b",),)}, "held-out domains without rows, not tested: b"),
        ("a domain's test", {}, "1 of 3 clients: no test rows, so each is not tested: b"),
        (
            "nothing",
            {"partition": "pathological", "classes_per_client": 9},
            "domain a: 9 classes per client requested, but there are 3",
        ),
        (
            "all but a class",
            {"partition": "iid", "clients": 2, "held_out": (("c",),)},
            "2 of 3 classes have no train rows: class 1, class 2",
        ),
        ("nothing", {"held_out": (("a", "b"),)}, "c is the only client, so nothing is averaged"),
        ("nothing", {"partition": "quantity", "clients": 6}, "clients: no val rows, so each does"),
    ],
)
def test_odd_rows_are_said_in_a_bounded_number_of_lines(missing, changed, said):
    table, config = lacking(missing), config_of(**changed)
    notes = row_notes(table, build_plan(table, config))
    assert any(said in note for note in notes), notes
    assert len(notes) < 10 and all(len(note) < 200 for note in notes)
    assert not row_notes(lacking("nothing"), build_plan(lacking("nothing"), config_of()))


def test_many_names_are_cut_short():
    table = dataclasses.replace(lacking("nothing"), class_names=tuple(map(str, range(40))))
    (note,) = row_notes(table, build_plan(table, config_of()))
    assert note.endswith("37 of 40 classes have no train rows: 3, 4, 5, 6, 7 and 32 more")


def test_zero_shot_without_test_rows_shows_validation(tmp_path):
    from pipeline.runs.results import table as text

    table = stored(lacking("test"), tmp_path / "c.h5")
    document = run_and_report(table, config_of(method="zero-shot"), tmp_path / "run")
    head, _, line, *_ = text(document).splitlines()
    assert head.split()[2:5] == ["round", "validation", "unseen"]
    reached = document["results"][0]["zero_shot"]["val_accuracy"]
    assert line.split()[:3] == ["none", "-", f"{100 * reached:.2f}"]


def test_a_fixed_split_is_asked_for_where_there_is_none(tmp_path):
    table, config = lacking("nothing", fixed=False), config_of(fixed_split="holdout")
    with pytest.raises(ConfigError) as error:
        build_plan(table, config)
    check_cures(table, config, str(error.value))


@pytest.mark.parametrize("batch", [4, 1024])
def test_a_proximal_term_that_never_acts_is_said_and_does_nothing(batch, tmp_path):
    """With one step a round FedProx is FedAvg to the bit; with more steps it is not."""
    results = {}
    for method, mu in (("fedavg", 0.01), ("fedprox", 10.0)):
        config = config_of(method=method, mu=mu, batch=batch, rounds=3, lr=1e-2, optimizer="sgd")
        plan = build_plan(lacking("nothing"), config)
        said = [note for note in row_notes(lacking("nothing"), plan) if note.startswith("mu")]
        assert len(said) == (method == "fedprox" and batch == 1024)
        federate(lacking("nothing"), config, runs=tmp_path, out=tmp_path / method, device="cpu")
        tensors = load_file(tmp_path / method / "adapter.safetensors")
        results[method] = {n: t for n, t in tensors.items() if n.startswith("last")}
    same = [np.array_equal(results["fedavg"][n], results["fedprox"][n]) for n in results["fedavg"]]
    assert all(same) == (batch == 1024)
