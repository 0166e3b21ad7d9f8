"""Runs over sites against the same runs in one process; lost, unlike and hostile sites."""

import json

import numpy as np
import pytest
import torch

from cache.store import read_table, write_table
from kernels.heads import HEADS
from pipeline.errors import ConfigError
from pipeline.federation.methods import METHODS
from pipeline.flower.site import Site
from pipeline.runs.adapters import read_trained
from pipeline.runs.federate import federate
from pipeline.runs.folder import read_adapters
from pipeline.settings import PRESETS
from tests.flower.sites import Network, config, copied, cut, lines, run, sites


def both(table, files, tmp_path, settings):
    """(tensors, facts), rounds and results of a run in one process, and over three sites."""
    held = read_table(files[3])
    ref = federate(table, settings, runs=tmp_path, out=tmp_path / "one", device="cpu",
                   backend="torch")  # fmt: skip
    comp = run(Network(*sites(files[:3])), settings, tmp_path / "many", held)
    return [
        (read_adapters(tmp_path / name / "adapter.safetensors"), lines(tmp_path / name), document)
        for name, document in (("one", ref), ("many", comp))
    ]


TUNED = {**PRESETS["tuned"], "rounds": 3, "lr": 0.1}
EXACT = {
    "fedavg": {},
    "rows": {"weighting": "rows"},
    "fedprox": {"method": "fedprox", "mu": 0.5},
    "fedavgm": {"method": "fedavgm", "server_lr": 2.0},
    "fedadam": {"method": "fedadam", "server_lr": 1e-2},
    "fedyogi": {"method": "fedyogi", "server_lr": 1e-2},
    "fedadagrad": {"method": "fedadagrad", "server_lr": 1e-2},
    "median": {"method": "median"},
    "by loss": {"choose": "loss", "partition": "dirichlet", "clients": 4},
    "cosine, by loss": {"mode": "FedAtTxt", "head": "cosine", "loss": "class", "choose": "loss"},
    "trimmed-mean": {"method": "trimmed-mean", "trim": 0.34},
    "krum": {"method": "krum", "byzantine": 0},
    "scaffold": {"method": "scaffold", "optimizer": "sgd", "momentum": 0.0, "lr": 0.05},
    "moments": {"moments": "kept", "local_epochs": 2},
    "cosine": {"mode": "FedAtTxt", "head": "cosine", "loss": "class"},
    "dirichlet": {"partition": "dirichlet", "clients": 3, "alpha": 1.0},
    "cohort": {"partition": "iid", "clients": 3, "client_fraction": 0.5, "stragglers": 0.5,
               "dropout": 0.3, "rounds": 6},
    "private": {"clip": 0.1, "noise": 0.5, "client_fraction": 0.7},
    "every": {"eval": "every"},
    "refit": {"refit": "yes", "choose": "last", "weighting": "rows"},
    "tuned": {**TUNED, "choose": "accuracy", "refit": "no"},
    "tuned, refit": TUNED,
    "tuned, adam": {**TUNED, "optimizer": "adam", "lr": 1e-3, "partition": "iid", "clients": 3},
    "tuned, scaffold": {**TUNED, "method": "scaffold", "momentum": 0.0, "eval": "every"},
    "shots": {"shots": 3},
}  # fmt: skip
EXACT |= {
    n: {"method": n} for n, method in METHODS.items() if not method.at_home and n not in EXACT
}
SOLVED = {
    "gda, chosen": {"solver": "gda"},
    "ridge by rows": {"solver": "ridge", "tune_on": "rows"},
    "prototype by validation": {"solver": "prototype", "tune_on": "validation"},
    "given": {"solver": "gda", "shape": 1.0, "strength": 0.3},
    "given, by rows": {"solver": "ridge", "shape": 0.1, "strength": 1.0, "tune_on": "rows"},
    "refit": {"refit": "yes", "tune_on": "rows"},
    "noise": {"noise": 0.1},
    "partition": {"partition": "dirichlet", "clients": 3, "alpha": 0.5},
    "few shots": {"shots": 1, "tune_on": "rows"},
}  # fmt: skip
EXACT |= {f"closed-form, {n}": {"method": "closed-form", **s} for n, s in SOLVED.items()}
EXACT |= {
    f"head {name}": {"head": name} for name in HEADS if not HEADS[name].refuse("FedAtImg", "")
}


@pytest.mark.parametrize("name", EXACT)
def test_sites_end_with_the_numbers_of_one_process(table, files, tmp_path, name):
    (ref, ref_lines, _), (comp, comp_lines, _) = both(table, files, tmp_path, config(**EXACT[name]))
    for part in ref[0]:
        if part.startswith(("best.", "last.")):
            torch.testing.assert_close(comp[0][part], ref[0][part], rtol=1e-6, atol=1e-7)
    assert comp[1]["chosen"] == ref[1]["chosen"] and comp[1]["rounds_done"] == len(ref_lines)
    for ours, theirs in zip(comp_lines, ref_lines, strict=True):
        assert ours.pop("train_loss") == pytest.approx(theirs.pop("train_loss"), rel=1e-6)
        assert ours == theirs


@pytest.mark.parametrize("payload", ["fp16", "int8"])
def test_small_payloads_travel_small(table, files, tmp_path, payload):
    (ref, _, _), (comp, _, _) = both(table, files, tmp_path, config(payload=payload))
    start = read_adapters(tmp_path / "one" / "adapter.safetensors")[0]["state.origin"]
    learned = float((ref[0]["last.w1"].reshape(-1) - start[0, : 12 * 12]).abs().max())
    gap = float((comp[0]["last.w1"] - ref[0]["last.w1"]).abs().max())
    assert gap <= learned / 127  # one step of int8, of what was learned
    network = Network(*sites(files[:3]))
    run(network, config(payload=payload, rounds=1), tmp_path / "sent")
    arrays, _, _ = copied(network.sent[1][2][100])
    assert arrays["adapter"].dtype == {"fp16": np.float16, "int8": np.int8}[payload]


def test_results_are_those_of_one_process_as_far_as_counts_go(table, files, tmp_path):
    (_, _, ref), (_, _, comp) = both(table, files, tmp_path, config())
    (ref_result,), (result,) = ref["results"], comp["results"]
    for name in ("unseen", "participants", "overall", "per_domain", "val_accuracy", "best_round",
                 "bytes_a_round", "held_out"):  # fmt: skip
        assert result[name] == ref_result[name], name
    for name in ("unseen", "overall", "per_domain", "val_accuracy"):
        assert result["zero_shot"][name] == ref_result["zero_shot"][name], name
    assert result["clients"] == ref_result["clients"]
    assert comp["mean"]["unseen"] == ref["mean"]["unseen"]
    assert comp["run"] == str(tmp_path / "many") and (tmp_path / "many" / "done").exists()
    assert comp["cache"]["rows"] == 185  # of the three sites: with two domains' odd rows unused


def test_without_held_out_rows_at_the_server_nothing_unseen_is_told(files, tmp_path):
    document = run(Network(*sites(files[:3])), config(), tmp_path / "run")
    assert document["results"][0]["unseen"] is None
    assert document["results"][0]["zero_shot"]["unseen"] is None
    assert set(document["results"][0]["per_domain"]) == {"a", "b", "c"}


def test_one_cache_at_several_sites(table, files, tmp_path):
    whole = tmp_path / "whole.h5"
    write_table(whole, table)
    parts = [Site(whole, domain=name, backend="torch") for name in "abc"]
    settings = config()
    run(Network(*parts), settings, tmp_path / "parts", table)
    run(Network(Site(whole, backend="torch")), settings, tmp_path / "alone", table)
    (ref, _), (comp, _) = (
        read_adapters(tmp_path / name / "adapter.safetensors") for name in ("alone", "parts")
    )
    assert torch.equal(ref["last.w1"], comp["last.w1"])
    settings = config(partition="iid", clients=2)
    own = [Site(whole, domain=d, client=f"{d}/{k}", backend="torch") for d in "abc" for k in (0, 1)]
    run(Network(*own), settings, tmp_path / "own", table)
    run(Network(Site(whole, backend="torch")), settings, tmp_path / "all", table)
    (ref, _), (comp, _) = (
        read_adapters(tmp_path / name / "adapter.safetensors") for name in ("all", "own")
    )
    assert torch.equal(ref["last.w1"], comp["last.w1"])


def test_nothing_but_adapters_counts_and_names_leaves_a_site(files, tmp_path):
    network = Network(*sites(files[:3]))
    run(network, config(rounds=2), tmp_path / "run")
    assert len(network.came) == 3 * (1 + 2 + 1)  # who it is, two rounds, the last one's counts
    facts = {"demand", "preprocessing", "dataset", "model"}
    known = {"content_sha256", "clients", "domain", "round", "nonce"}
    counts = {"train", "val", "test", "domain_rows", "loss", "val_loss", "num-examples",
              "right_val", "right_test", "zero_shot_val", "zero_shot_test"}  # fmt: skip
    for content in network.came:
        arrays, metrics, told = copied(content)
        assert len(json.dumps([metrics, told])) < 2000
        names = {name.split(".")[0]: array.shape for name, array in arrays.items()}
        assert names in ({"text": (4, 12)}, {"update": (2 * (12 * 12 + 12),)}, {})
        assert set(told) in (known, known | facts) and set(metrics) <= counts


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"method": "local"}, "nothing of it travels"),
        ({"method": "central"}, "rows do not leave"),
        ({"method": "zero-shot"}, "trains nothing"),
        ({"method": "ditto"}, "adapter of its own"),
        ({"method": "fedper"}, "layer of its own"),
        ({"personalise": 1}, "stay at their clients"),
        ({**TUNED, "payload": "fp16"}, "does not know that head; pass --payload fp32"),
        ({"held_out": (("a",), ("b",))}, "2 trainings were asked for"),
    ],
)
def test_what_cannot_travel_is_refused_by_name(files, tmp_path, changed, why):
    with pytest.raises(ConfigError, match=why):
        run(Network(*sites(files[:3])), config(**changed), tmp_path / "run")


def test_done_runs_are_not_trained_again(files, tmp_path):
    network = Network(*sites(files[:3]))
    ref = run(network, config(rounds=1), tmp_path / "run")
    said = []
    assert run(network, config(rounds=1), tmp_path / "run", said=said) == ref
    assert len(network.sent) == 4 and "already finished" in said[-1]
    with pytest.raises(ConfigError, match="rounds = 1, but 2 was requested"):
        run(network, config(rounds=2), tmp_path / "run")
    run(network, config(rounds=2), tmp_path / "run", force=True)
    assert len(lines(tmp_path / "run")) == 2


def test_an_adapter_of_sites_tells_what_it_belongs_to(table, tmp_path):
    identity = {"model": "demo", "dataset": "small", "weights_sha256": "1" * 64,
                "templates": ["a {}"], "preprocessing": {"crop": "center"}}  # fmt: skip
    known = table.__class__(**{**table.__dict__, "identity": identity, "block_crc32": None})
    files = cut(known, tmp_path, ("a",), ("b",))
    run(Network(*sites(files)), config(rounds=1, held_out=((),)), tmp_path / "run")
    trained = read_trained(tmp_path / "run")
    assert trained.weights_sha256 == "1" * 64 and trained.templates == ("a {}",)
    assert trained.class_names == table.class_names and trained.kind.width == 12
