"""Runs over sites against the same runs in one process; lost, unlike and hostile sites."""

import json

import numpy as np
import pytest
import torch

from cache.store import read_table, write_table
from cache.table import CacheError
from pipeline.config import ConfigError, RunConfig
from pipeline.federate import federate
from pipeline.run_folder import read_adapters
from pipeline.site import Site
from pipeline.trained import read_trained
from tests.sites import Network, cut, of_domains, run
from tests.test_federate import small


def config(**changed) -> RunConfig:
    settings = {"held_out": (("d",),), "rounds": 4, "batch": 8, "lr": 1e-3}
    return RunConfig(**(settings | changed))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    file = tmp_path_factory.mktemp("whole") / "whole.h5"
    write_table(file, small(rows=(60, 45, 80, 30)))
    return read_table(file)


@pytest.fixture(scope="module")
def files(table, tmp_path_factory):
    return cut(table, tmp_path_factory.mktemp("sites"), ("a",), ("b",), ("c",), ("d",))


def sites(files, **options) -> list[Site]:
    return [Site(file, backend="torch", **options) for file in files]


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


def lines(folder) -> list[dict]:
    text = (folder / "rounds.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["folds"][0] for line in text]


EXACT = {
    "fedavg": {},
    "rows": {"weighting": "rows"},
    "fedprox": {"method": "fedprox", "mu": 0.5},
    "fedavgm": {"method": "fedavgm", "server_lr": 2.0},
    "fedadam": {"method": "fedadam", "server_lr": 1e-2},
    "fedyogi": {"method": "fedyogi", "server_lr": 1e-2},
    "fedadagrad": {"method": "fedadagrad", "server_lr": 1e-2},
    "median": {"method": "median"},
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
    "shots": {"shots": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_sites_end_with_the_numbers_of_one_process(table, files, tmp_path, name):
    (ref, ref_lines, _), (comp, comp_lines, _) = both(table, files, tmp_path, config(**EXACT[name]))
    for part in ("best.w1", "last.w1", "last.w2", "last.w"):
        if part in ref[0]:
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
    (_, arrays), *_ = network.asked[1][1].values()
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
    class Watched(Network):
        def __call__(self, round, asks):
            answers = super().__call__(round, asks)
            self.sent = [*getattr(self, "sent", []), *answers.values()]
            return answers

    network = Watched(*sites(files[:3]))
    run(network, config(rounds=2), tmp_path / "run")
    assert len(network.sent) == 3 * (1 + 2 + 1)  # who it is, two rounds, the last one's counts
    for text, arrays in network.sent:
        assert len(text) < 2000
        names = {name.split(".")[0]: array.shape for name, array in arrays.items()}
        assert names in ({"text": (4, 12)}, {"update": (P,)}, {})
        known = {"demand", "preprocessing", "dataset", "model", "content_sha256", "rows"}
        assert set(json.loads(text)["cache"]) == known


class Losing(Network):
    """A site that is gone from a round on, and back later."""

    gone, back, node = 2, 99, 101

    def online(self):
        round = self.asked[-1][0] + 1 if len(self.asked) > 1 else len(self.asked) - 1
        lost = self.gone < round < self.back
        return [node for node in self.sites if not (lost and node == self.node)]

    def __call__(self, round, asks):
        answers = super().__call__(round, asks)
        if round == self.gone and len(self.asked) > 1:
            del answers[self.node]
        return answers


def test_a_lost_site_is_named_and_the_others_go_on(files, tmp_path):
    said = []
    network = Losing(*sites(files[:3]))
    run(network, config(rounds=5), tmp_path / "run", said=said, least=2)
    told = lines(tmp_path / "run")
    assert [list(line["train_loss"]) for line in told[:2]] == [["c", "a", "b"]] * 2
    for line in told[2:]:
        assert set(line["train_loss"]) == {"a", "c"}
    assert told[2]["rejected"] == {"b": "its site did not answer in time"}
    assert told[3]["rejected"] == {"b": "its site is not connected"}
    assert set(told[1]["val_accuracy"]) == {"a", "c"} and set(told[0]["val_accuracy"]) == {*"abc"}
    assert any("nothing from b: its site did not answer in time" in line for line in said)


def test_the_run_ends_when_too_few_are_left(files, tmp_path):
    with pytest.raises(
        ConfigError, match=r"round 2: 2 site\(s\) answered, the run asks for 3.*b: "
    ):
        run(Losing(*sites(files[:3])), config(rounds=5), tmp_path / "run", least=3)
    assert len(lines(tmp_path / "run")) == 2 and not (tmp_path / "run" / "done").exists()
    assert read_adapters(tmp_path / "run" / "adapter.safetensors")[1]["rounds_done"] == 2
    with pytest.raises(ConfigError, match=r"round 1: 0 site\(s\) answered, .* asks for 1; "):
        run(Silent(*sites(files[:3])), config(rounds=2), tmp_path / "silent")


class Silent(Network):
    """Sites that answer one round, then no more."""

    def __call__(self, round, asks):
        return super().__call__(round, asks) if round < 1 else {}


def test_a_site_that_comes_back_under_another_number_joins_again(files, tmp_path):
    class Returning(Losing):
        back = 4

        def online(self):
            nodes = super().online()
            if len(self.asked) > 4 and 101 in self.sites:
                self.sites[555], self.kept[555] = self.sites.pop(101), {}
                nodes = [555 if node == 101 else node for node in nodes]
            return nodes

    run(Returning(*sites(files[:3])), config(rounds=7), tmp_path / "run")
    told = lines(tmp_path / "run")
    trained = ["b" in line["train_loss"] for line in told]
    assert trained == [True, True, False, False, False, True, True]  # in round 4 it says who it is
    assert told[-1]["rejected"] == {}


def test_an_unlike_cache_is_left_out_by_name(table, files, tmp_path):
    other = of_domains(table, "b")
    other = other.__class__(**{**other.__dict__, "text_features": other.text_features + 1})
    write_table(tmp_path / "b.h5", other)
    mixed = [Site(files[0]), Site(tmp_path / "b.h5"), Site(files[2])]
    said = []
    run(Network(*mixed), config(rounds=1), tmp_path / "run", said=said)
    assert any(
        "site 101 is left out: the cache of b: made with text_features_sha" in s for s in said
    )
    assert set(lines(tmp_path / "run")[0]["train_loss"]) == {"a", "c"}
    with pytest.raises(ConfigError, match="1 of 3 sites can take part, at least 3 must"):
        run(Network(*mixed), config(rounds=1), tmp_path / "two", held=read_table(tmp_path / "b.h5"),
            least=3)  # fmt: skip


def test_a_site_refuses_by_itself_what_its_cache_is_not(table, files, tmp_path):
    from pipeline.config import as_json
    from pipeline.site import answer, demand_of
    from pipeline.site_messages import Ask

    demand = {**demand_of(table), "logit_scale": 1.0}
    ask = Ask(as_json(config()), demand, ("a", "b", "c", "d"), 0, {"a": 1.0}, None, {})
    with pytest.raises(CacheError, match="a.h5: made with logit_scale = 20.0, asked for 1.0"):
        answer(Site(files[0]), ask, {})


def test_extracted_caches_are_told_apart_by_what_encoded_them(table, files):
    from pipeline.site import demand_of, refuse_other

    def extracted(**changed):
        identity = {"weights_sha256": "1" * 64, "templates": ["a {}"],
                    "preprocessing": {"crop": "center", "jpeg": "libjpeg 1"}}  # fmt: skip
        return table.__class__(**{**table.__dict__, "identity": identity | changed})

    demand = demand_of(extracted())
    refuse_other(extracted(preprocessing={"crop": "center", "jpeg": "libjpeg 2"}), demand)
    for changed, field in (
        ({"weights_sha256": "2" * 64}, "weights_sha256"),
        ({"templates": ["b {}"]}, "templates.0"),
        ({"preprocessing": {"crop": "none"}}, "preprocessing.crop"),
        ({"weights_sha256": None}, "weights_sha256"),
    ):
        with pytest.raises(CacheError, match=field):
            refuse_other(extracted(**changed), demand)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"method": "local"}, "nothing of it travels"),
        ({"method": "central"}, "rows do not leave"),
        ({"method": "zero-shot"}, "trains nothing"),
        ({"method": "ditto"}, "adapter of its own"),
        ({"method": "fedper"}, "layer of its own"),
        ({"personalise": 1}, "stay at their clients"),
        ({"held_out": (("a",), ("b",))}, "2 trainings were asked for"),
    ],
)
def test_what_cannot_travel_is_refused_by_name(files, tmp_path, changed, why):
    with pytest.raises(ConfigError, match=why):
        run(Network(*sites(files[:3])), config(**changed), tmp_path / "run")


class Lying(Network):
    """A site whose answers are changed on their way."""

    def __init__(self, lie, *sites):
        super().__init__(*sites)
        self.lie = lie

    def __call__(self, round, asks):
        answers = dict(super().__call__(round, asks))
        if len(self.asked) == 3:  # round 1
            text, arrays = answers[101]
            answers[101] = self.lie(json.loads(text), dict(arrays))
        return answers


def changed(path, value):
    def lie(told, arrays):
        at = told
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = value
        return json.dumps(told), arrays

    return lie


def sends(update):
    return lambda told, arrays: (json.dumps(told), arrays | {"update.b": update})


NOBODY = {"clients": {}, "right": {}, "zero_shot": {}}
P = 2 * (12 * 12 + 12)
LIES = {
    "not json": (lambda told, arrays: ("{", arrays), "is not what this version sends"),
    "a list": (lambda told, arrays: ("[]", arrays), "is not what this version sends"),
    "deep": (lambda told, arrays: ("[" * 10**5, arrays), "is not what this version sends"),
    "version": (changed(["format"], 2), "messages of format 2 came, here is 1"),
    "nobody": (lambda told, arrays: (json.dumps(told | NOBODY), {}), "names no client"),
    "other name": (changed(["clients", "z"], {"domain": "b", "rows": 9, "loss": None}), "'z'"),
    "other's": (changed(["clients", "a"], {"domain": "a", "rows": 9, "loss": None}), "'a'"),
    "control": (changed(["clients", "\x1b[2J"], {"domain": "b", "rows": 9, "loss": 1}), "no name"),
    "rows": (changed(["clients", "b", "rows"], -1), "a count was expected"),
    "right": (changed(["right", "val", "b"], [9, 8]), "9 right answers of 8"),
    "truth": (changed(["right", "val", "b"], [True, 8]), "a count was expected"),
    "short": (sends(np.zeros(P - 1, np.float32)), "were expected"),
    "wide": (sends(np.zeros(P, np.float64)), "were expected"),
    "table": (sends(np.zeros((P, 2), np.float32)), "were expected"),
    "nan": (sends(np.full(P, np.nan, np.float32)), "numbers are not finite"),
    "inf loss": (changed(["clients", "b", "loss"], float("nan")), None),
}


@pytest.mark.parametrize("name", LIES)
def test_a_site_that_lies_is_left_out_of_the_round(files, tmp_path, name):
    lie, why = LIES[name]
    run(Lying(lie, *sites(files[:3])), config(rounds=3), tmp_path / "run")
    told = lines(tmp_path / "run")
    assert told[0]["rejected"] == told[2]["rejected"] == {}
    if why is None:
        assert "b" not in told[1]["train_loss"] and told[1]["rejected"] == {}
    else:
        assert list(told[1]["rejected"]) == ["b"] and why in told[1]["rejected"]["b"]
    last = read_adapters(tmp_path / "run" / "adapter.safetensors")[0]["last.w1"]
    assert last.isfinite().all()


def test_done_runs_are_not_trained_again(files, tmp_path):
    network = Network(*sites(files[:3]))
    ref = run(network, config(rounds=1), tmp_path / "run")
    said = []
    assert run(network, config(rounds=1), tmp_path / "run", said=said) == ref
    assert len(network.asked) == 4 and "is done" in said[-1]
    with pytest.raises(ConfigError, match="rounds = 1, but 2 is asked for"):
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


def test_a_bad_site_setting_is_told(files, tmp_path):
    for wrong, why in (
        (Site(files[1], domain="q"), "no domain 'q'; it has b"),
        (Site(files[1], client="q"), "no client 'q'; there is b"),
        (Site(files[3]), "are held out"),
        (Site(files[1].with_name("none.h5")), "none.h5"),
    ):
        said = []
        run(Network(Site(files[0]), wrong), config(rounds=1), tmp_path / "r", said=said, force=True)
        assert any("site 101 is left out: " in line and why in line for line in said), said
