"""Sites that are lost, unlike or lying: named, and the others go on."""

import json

import numpy as np
import pytest
import torch

from cache.store import read_table, write_table
from cache.table import CacheError
from pipeline.errors import ConfigError
from pipeline.federation.payload import Encoded
from pipeline.flower.messages import Ask
from pipeline.flower.site import Site, answer, demand_of, refuse_other
from pipeline.runs.folder import read_adapters
from pipeline.settings import as_json
from tests.flower.sites import (
    Lying,
    Network,
    changed,
    config,
    cut,
    lines,
    of_domains,
    run,
    sites,
    whole,
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def files(table, tmp_path_factory):
    return cut(table, tmp_path_factory.mktemp("sites"), ("a",), ("b",), ("c",), ("d",))


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
    demand = {**demand_of(table), "logit_scale": 1.0}
    ask = Ask(as_json(config()), demand, ("a", "b", "c", "d"), 0, {"a": 1.0}, None, {})
    with pytest.raises(CacheError, match="a.h5: made with logit_scale = 20.0, asked for 1.0"):
        answer(Site(files[0]), ask, {})


def test_extracted_caches_are_told_apart_by_what_encoded_them(table, files):
    def extracted(**changed):
        identity = {"weights_sha256": "1" * 64, "templates": ["a {}"],
                    "preprocessing": {"crop": "center", "jpeg": "libjpeg 1"}}  # fmt: skip
        return table.__class__(**{**table.__dict__, "identity": identity | changed})

    demand = demand_of(extracted())
    refuse_other(extracted(preprocessing={"crop": "center", "jpeg": "libjpeg 2"}), demand)
    for other, field in (
        ({"weights_sha256": "2" * 64}, "weights_sha256"),
        ({"templates": ["b {}"]}, "templates.0"),
        ({"preprocessing": {"crop": "none"}}, "preprocessing.crop"),
        ({"weights_sha256": None}, "weights_sha256"),
    ):
        with pytest.raises(CacheError, match=field):
            refuse_other(extracted(**other), demand)


def sends(update):
    return lambda told, arrays: (json.dumps(told), arrays | {"update.b": update})


CLIENT = {"domain": "b", "rows": {"train": 9, "val": 0, "test": 0}, "domain_rows": 9, "loss": 1.0}
NOBODY = {"clients": {}, "right": {}, "zero_shot": {}}
P = 2 * (12 * 12 + 12)
LIES = {
    "not json": (lambda told, arrays: ("{", arrays), "is not what this version sends"),
    "a list": (lambda told, arrays: ("[]", arrays), "is not what this version sends"),
    "deep": (lambda told, arrays: ("[" * 10**5, arrays), "is not what this version sends"),
    "version": (changed(["format"], 1), "messages of format 1 came, here is 2"),
    "nobody": (lambda told, arrays: (json.dumps(told | NOBODY), {}), "names no client"),
    "other name": (changed(["clients", "z"], CLIENT), "'z'"),
    "other's": (changed(["clients", "a"], {**CLIENT, "domain": "a"}), "'a'"),
    "control": (changed(["clients", "\x1b[2J"], CLIENT), "a printable name"),
    "rows": (changed(["clients", "b", "rows", "train"], -1), "a count of at most"),
    "right": (changed(["right", "val", "b"], [10, 9]), "10 right answers of 9"),
    "other rows": (changed(["right", "val", "b"], [8, 8]), "8 right answers of 8"),
    "truth": (changed(["right", "val", "b"], [True, 8]), "a count of at most"),
    "short": (sends(np.zeros(P - 1, np.float32)), "were expected"),
    "wide": (sends(np.zeros(P, np.float64)), "were expected"),
    "table": (sends(np.zeros((P, 2), np.float32)), "were expected"),
    "nan": (sends(np.full(P, np.nan, np.float32)), "numbers are not finite"),
    "nan loss": (changed(["clients", "b", "loss"], float("nan")), "NaN is not a number of JSON"),
    "no loss": (changed(["clients", "b", "loss"], None), None),
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


@pytest.mark.parametrize(
    ("settings", "numbers", "why"),
    [
        ({}, P - 1, "an adapter of 311 numbers came; .* it has 312"),
        ({"method": "ditto"}, P, "method ditto cannot go to sites"),
        ({"method": "fedavg!"}, P, "is unknown"),
        ({"lr": "much"}, P, "lr must be a number"),
        ({"strange": 1}, P, "invalid run settings"),
        ({"held_out": 3}, P, "invalid run settings"),
    ],
)
def test_a_site_refuses_what_makes_no_sense(files, settings, numbers, why):
    adapter = Encoded(torch.zeros(numbers), torch.zeros(0))
    ask = Ask(as_json(config()) | settings, {}, (*"abcd",), 0, {"a": 1.0}, adapter, {})
    with pytest.raises(ConfigError, match=why):
        answer(Site(files[0], backend="torch"), ask, {})
