"""Settings that are named in vain are told; the table of which they are holds in real runs."""

import dataclasses
import json

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.federation.methods import METHODS
from pipeline.federation.methods.method import Above
from pipeline.runs.federate import federate
from pipeline.runs.folder import read_adapters
from pipeline.runs.notes import length_warning
from pipeline.settings import RunConfig
from pipeline.settings_used import FIELDS, USED_BY, possible, unused, ways_of
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options
from tests.runs.small_runs import run, small

OTHER = {  # a value that differs from the default, and from that of `base`
    "rounds": 3, "local_epochs": 2, "lr": 3e-3, "batch": 5, "weight_decay": 0.01, "beta1": 0.5,
    "beta2": 0.7, "eps": 1e-2, "split": 0.5, "seed": 3, "weighting": "rows", "eval": "every",
    "choose": "last", "mode": "FedAtBoth", "head": "linear", "start": "identity", "rank": 3,
    "loss": "class", "optimizer": "adamw", "momentum": 0.5, "moments": "kept",
    "schedule": "cosine", "mu": 0.7, "server_lr": 0.3, "server_momentum": 0.2,
    "server_beta1": 0.3, "server_beta2": 0.5, "tau": 0.2, "trim": 0.1, "byzantine": 4, "keep": 2,
    "client_fraction": 0.5, "dropout": 0.6, "stragglers": 0.9, "clip": 1e-3, "noise": 0.5,
    "payload": "int8", "alpha": 0.05, "classes_per_client": 3, "shots": 2, "personalise": 1,
    "solver": "prototype", "tune_on": "validation", "shape": 30.0, "strength": 0.7, "refit": "yes",
}  # fmt: skip
NEEDS = {"noise": {"clip": 1e-3}, "keep": {"byzantine": 0}, "eval": {}, "choose": {"rounds": 4}}
USED = {name: ways_of(name) for name in OTHER if name not in ("split", "seed")}
CASES = [(name, at) for name, ways in USED.items() for at in range(len(ways))]


def base(**changed) -> RunConfig:
    """Seven clients, so that trims and cohorts have someone to leave out."""
    fixed = {"held_out": (("a",),), "rounds": 2, "batch": 8, "lr": 1e-2, "partition": "dirichlet",
             "clients": 4, "head": "attention"}  # fmt: skip
    changed = fixed | changed
    if changed.get("partition") == "domain":
        changed["clients"] = 1
    if changed.get("method") == "scaffold":
        changed |= {"optimizer": "sgd", "momentum": 0.0}
    if changed.get("refit") == "yes":
        changed["choose"] = "last"
    if changed.get("start") == "closed-form":
        changed |= {"head": "classifier", "mode": "FedAtTxt", "loss": "class"}
    return RunConfig(**changed)


def trained(settings: RunConfig, tmp_path, name: str) -> dict:
    """What a run tells and makes, without the words of its settings."""
    document = run(small(rows=(20, 65, 70)), tmp_path / name, settings)
    told = [json.dumps(result, sort_keys=True) for result in document["results"]]
    file = tmp_path / name / "adapter.safetensors"
    tensors = read_adapters(file)[0] if file.exists() else {}
    rounds = tmp_path / name / "rounds.jsonl"
    return {
        "results": told,
        "rounds": rounds.read_bytes() if rounds.exists() else b"",
        **{n: t.numpy().tobytes() for n, t in tensors.items() if n.startswith(("best.", "last."))},
    }


def meeting(way) -> dict:
    return {n: max(wanted.low * 3, 0.5) if isinstance(wanted, Above) else wanted[0]
            for n, wanted in way.items()}  # fmt: skip


@pytest.mark.parametrize(("name", "at"), CASES)
def test_a_setting_that_is_used_changes_the_run(tmp_path, name, at):
    settings = base(**{**NEEDS.get(name, {}), **meeting(USED[name][at])})
    other = dataclasses.replace(settings, **{name: OTHER[name]})
    assert not [note for note in unused(possible(other)) if note.startswith(f"{name} ")]
    first, second = trained(settings, tmp_path, "one"), trained(other, tmp_path, "two")
    if name == "personalise":
        assert first["results"] != second["results"]
    else:
        assert first != second


def missing(name: str) -> list[dict]:
    """Settings in which each way to use a setting lacks one of its conditions."""
    found = []
    for lacking in sorted({n for way in USED[name] for n in way}):
        values = FIELDS[lacking].metadata.get("choices", ())
        wanted = USED[name][0].get(lacking)
        outside = {"clients": 1, "keep": 1, "momentum": 0.0}.get(lacking)
        if values and wanted is not None and not isinstance(wanted, Above):
            outside = next((v for v in values if v not in wanted), None)
        if outside is None:
            continue
        others = {n: v for n, v in meeting(USED[name][-1]).items() if n != lacking}
        case = {**others, lacking: outside}
        if not any(meets(case, way) for way in USED[name]):
            found.append(case)
    return found


def meets(case: dict, way) -> bool:
    """Whether a case that names every condition of a way meets them all."""
    return all(
        n in case and (case[n] > w.low if isinstance(w, Above) else case[n] in w)
        for n, w in way.items()
    )


VAIN = [(name, at) for name in USED for at in range(len(missing(name)))]


@pytest.mark.parametrize(("name", "at"), VAIN)
def test_a_setting_in_vain_is_told_and_changes_nothing(tmp_path, name, at):
    changed = missing(name)[at]
    try:
        settings = base(**changed)
        other = dataclasses.replace(settings, **{name: OTHER[name]})
    except ConfigError:
        assert name in ("noise", "start")  # refused, which is told as well
        return
    notes = [note for note in unused(possible(other)) if note.startswith(f"{name} has no effect")]
    assert len(notes) == 1, (name, changed)
    assert trained(settings, tmp_path, "one") == trained(other, tmp_path, "two")


def test_every_setting_is_in_these_tests_and_the_table_names_only_settings():
    sure = {"held_out", "method", "fixed_split", "partition", "clients"}
    assert set(FIELDS) == set(OTHER) | sure
    assert set(USED_BY) <= set(FIELDS)
    for name in FIELDS:
        for way in ways_of(name):
            for other, wanted in way.items():
                if not isinstance(wanted, Above):
                    assert set(wanted) <= set(FIELDS[other].metadata["choices"])


def notes(**changed):
    return unused(possible(RunConfig(**changed)))


def test_the_sentence_names_what_is_asked_and_who_uses_it():
    assert notes() == []
    assert notes(mu=0.5) == ["mu has no effect with method fedavg; used by fedprox, ditto"]
    assert notes(momentum=0.5) == ["momentum has no effect with optimizer adam; used by sgd"]
    assert notes(rounds=3, method="zero-shot") == [
        "rounds has no effect with method zero-shot; used by methods that train"
    ]
    (note,) = notes(weighting="rows", method="krum")
    assert "method krum, keep 1" in note and note.endswith("keep above 1 with method krum")
    assert notes(weighting="rows", method="krum", keep=2, byzantine=2) == []
    (note,) = notes(alpha=0.1, partition="dirichlet")
    assert note == "alpha has no effect with clients 1; used by above 1"


def test_a_split_that_the_cache_fixes_leaves_split_without_effect():
    table = small(split=np.repeat(np.array([0, 1, 2], np.int8), 62)[:185])
    (note,) = unused(possible(RunConfig(split=0.7)), table)
    assert "the cache fixes its own" in note
    assert unused(possible(RunConfig(split=0.7, fixed_split="holdout")), table) == []
    assert unused(possible(RunConfig(split=0.7)), small()) == []


def test_federate_and_sweep_tell_it_once(tmp_path, heard):
    federate(small(), base(mu=0.3, rounds=1), runs=tmp_path, device="cpu")
    assert sum("mu has no effect" in line for line in heard) == 1

    def sweeping(*grid, **changed):
        heard.clear()
        out = tmp_path / "-".join(grid).replace("=", "")
        sweep(small(), from_options(grid), base(rounds=1, **changed), runs=tmp_path, out=out,
              device="cpu")  # fmt: skip
        return [line for line in heard if "no effect" in line]

    assert len(sweeping("mu=0.1,0.2,0.3", "lr=1e-3,1e-2")) == 1
    assert sweeping("mu=0.1,0.2", "method=fedavg,fedprox") == []
    (note,) = sweeping("method=fedavg,median", mu=0.4)
    assert "with method fedavg, median" in note


def of_length(length, spread=0.0):
    table = small()
    features = np.array(table.features, np.float64)
    features *= length / np.linalg.norm(features, axis=1, keepdims=True)
    features *= 1 + spread * np.random.RandomState(0).standard_normal((len(features), 1))
    return dataclasses.replace(table, features=features.astype(np.float32), block_crc32=None)


@pytest.mark.parametrize("length", [1, 1.005, 0.9, 3, 10])
@pytest.mark.parametrize("spread", [0, 0.1])
def test_unit_features_are_told_by_their_rows(length, spread):
    said = length_warning(of_length(length, spread), RunConfig())
    assert (said is not None) == (abs(length - 1) < 0.01 and not spread)
    assert said is None or "--feature-scale" in said


def test_heads_that_bring_features_to_length_1_need_no_warning():
    """Told for exactly those whose answers change with the length of an image's feature."""
    unit = of_length(1)
    for changed in (
        *({"head": head} for head in ("attention", "clip-adapter", "linear", "low-rank")),
        *({"mode": mode, "head": "attention"} for mode in ("FedAtTxt", "FedAtBoth")),
        {"mode": "FedAtTxt", "head": "cosine"},
    ):
        reads = _answers_differ(unit, of_length(10), changed)
        assert (length_warning(unit, RunConfig(**changed)) is not None) == reads, changed
    assert length_warning(unit, RunConfig(method="zero-shot")) is None
    assert set(METHODS) >= {"zero-shot"}


def _answers_differ(one, two, changed) -> bool:
    import torch

    from kernels.answers import unit_features
    from kernels.heads.plain import first_row
    from pipeline.federation.plan import kind_of

    kind = kind_of(one, RunConfig(**changed))
    row = first_row(kind, "default", 1, torch.from_numpy(one.text_features))
    row = row + 0.1 * torch.from_numpy(np.random.RandomState(2).standard_normal(len(row))).float()
    rows = torch.arange(len(one.labels))
    found = [unit_features(kind, row, torch.from_numpy(t.features), rows) for t in (one, two)]
    return not torch.allclose(*found, atol=1e-4)


def test_the_warning_reaches_who_trains(tmp_path, heard):
    federate(of_length(1), base(rounds=1), runs=tmp_path, device="cpu")
    sweep(of_length(1), from_options(["lr=1e-3,1e-2"]), base(rounds=1), runs=tmp_path,
          out=tmp_path / "sweep", device="cpu")  # fmt: skip
    assert sum("features have length 1" in line for line in heard) == 2
