"""Sites that are lost, unlike or lying: named, and the others go on."""

import re

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

from cache.store import read_table, write_table
from cache.table import CacheError
from pipeline.errors import ConfigError
from pipeline.federation.methods.closed_form import Sums, packed, unpacked
from pipeline.federation.payload import Encoded
from pipeline.flower.app import client_app
from pipeline.flower.grid import REFUSED
from pipeline.flower.records import Ask, records, write_ask
from pipeline.flower.site import Site, answer, demand_of, refuse_other
from pipeline.runs.folder import read_adapters
from tests.flower.sites import (
    Lying,
    Network,
    changed,
    config,
    context,
    lines,
    of_domains,
    run,
    run_config,
    sites,
)


class Losing(Network):
    """A site that is gone from a round on, and back later."""

    gone, back, node = 2, 99, 101

    def get_node_ids(self):
        lost = self.gone < len(self.sent) - 1 < self.back
        return [node for node in self.contexts if not (lost and node == self.node)]

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        lost = len(self.sent) - 2 == self.gone
        return [r for r in replies if not (lost and r.metadata.src_node_id == self.node)]


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
    with pytest.raises(ConfigError, match=r"round 2: 2 sites answered, the run asks for 3.*b: "):
        run(Losing(*sites(files[:3])), config(rounds=5), tmp_path / "run", least=3)
    assert len(lines(tmp_path / "run")) == 2 and not (tmp_path / "run" / "done").exists()
    assert read_adapters(tmp_path / "run" / "adapter.safetensors")[1]["rounds_done"] == 2
    with pytest.raises(ConfigError, match=r"round 1: 0 sites answered, .* asks for 1; "):
        run(Silent(*sites(files[:3])), config(rounds=2), tmp_path / "silent")


class Silent(Network):
    """Sites that answer one round, then no more."""

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        return replies if len(self.sent) < 3 else []


def test_a_site_that_comes_back_under_another_number_joins_again(files, tmp_path):
    class Returning(Losing):
        back = 4

        def get_node_ids(self):
            nodes = super().get_node_ids()
            if len(self.sent) > 4 and 101 in self.contexts:
                self.contexts[555] = self.contexts.pop(101)
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
    ask = Ask(demand, ("a", "b", "c", "d"), 0, {"a": 1.0}, None)
    with pytest.raises(CacheError, match="a.h5: made with logit_scale = 20.0, asked for 1.0"):
        answer(Site(files[0]), config(), ask, {})


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
    return lambda arrays, metrics, told: (arrays | {"update.b": update}, metrics, told)


def renamed(name, domain="b"):
    def lie(arrays, metrics, told):
        moved = {a.replace("update.b", f"update.{name}"): values for a, values in arrays.items()}
        return moved, metrics, told | {"clients": [name], "domain": [domain]}

    return lie


def two(arrays, metrics, told):
    return arrays, metrics, told | {"clients": ["b", "b"]}


P = 2 * (12 * 12 + 12)
LIES = {
    "nothing": (lambda *_: RecordDict(), "is not what this version sends"),
    "no metrics": (lambda arrays, *_: (arrays, {}, {}), "is not what this version sends"),
    "another record": (
        lambda *parts: RecordDict({**records(*parts), "more": ConfigRecord()}), "records arrays"),
    "another field": (lambda a, m, told: (a, m, told | {"more": 1}), "more: Extra inputs"),
    "nobody": (lambda a, m, told: (a, m, told | {"clients": []}), "clients: List should have"),
    "twice": (two, "domain: a list of 2 was expected"),
    "other name": (renamed("z"), "'z'"),
    "other's": (renamed("a", "a"), "'a'"),
    "control": (renamed("\x1b[2J"), "printable text was expected"),
    "rows": (changed(train=-1), "greater than or equal to 0"),
    "right": (changed(right_val=10), "10 right answers of 9"),
    "counts of none": (lambda a, m, told: (a, m | {"right_train": [0]}, told), "right counts of"),
    "fraction": (changed(right_val=0.5), "valid integer"),
    "short": (sends(np.zeros(P - 1, np.float32)), "were expected"),
    "wide": (sends(np.zeros(P, np.float64)), "were expected"),
    "table": (sends(np.zeros((P, 2), np.float32)), "were expected"),
    "nan": (sends(np.full(P, np.nan, np.float32)), "numbers are not finite"),
    "infinite loss": (changed(loss=float("inf")), "a finite loss was expected"),
    "huge loss": (changed(loss=1e300), "a finite loss was expected"),
    "no loss": (changed(loss=float("nan")), None),
}  # fmt: skip


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


@pytest.mark.parametrize("metric", [torch.zeros(13 * 12 - 1), torch.full((13 * 12,), torch.nan)])
def test_a_site_refuses_a_metric_of_another_width(files, metric):
    settings = config(start="closed-form", mode="FedAtTxt", head="classifier", loss="class")
    adapter = Encoded(torch.zeros(4 * 13), torch.zeros(0))
    ask = Ask({}, (*"abcd",), 0, {"a": 1.0}, adapter, metric=metric)
    with pytest.raises(ConfigError, match=f"a metric of {len(metric)} numbers came"):
        answer(Site(files[0], backend="torch"), settings, ask, {})


@pytest.mark.parametrize(
    ("settings", "numbers", "why"),
    [
        ({}, P - 1, "an adapter of 311 numbers came; .* it has 312"),
        ({"method": "ditto"}, P, "method ditto cannot go to sites"),
        ({"method": "fedavg!"}, P, "is unknown"),
        ({"lr": "much"}, P, "lr must be a number"),
        ({"strange": 1}, P, "run config 'strange' is unknown"),
    ],
)
def test_a_site_refuses_what_makes_no_sense(files, settings, numbers, why):
    adapter = Encoded(torch.zeros(numbers), torch.zeros(0))
    own = context(Site(files[0], backend="torch"))
    own.run_config = run_config(config()) | settings
    ask = write_ask(Ask({}, (*"abcd",), 0, {"a": 1.0}, adapter))
    reply = client_app(Message(ask, dst_node_id=1, message_type="train"), own)
    assert re.search(why, reply.content.config_records[REFUSED]["why"])


def of_sums(change):
    """A lie: node 101's sums of its 27 train rows, (n, S, G) at 4 classes and width 12."""

    def lie(arrays, metrics, told):
        found = unpacked(torch.from_numpy(arrays["sums.b"]), 4, 12)
        values = packed(change(found)).numpy()
        return arrays | {"sums.b": values}, metrics, told

    return lie


def one_number(value):
    def change(arrays, metrics, told):
        return arrays | {"scores.b": arrays["scores.b"] * value}, metrics, told

    return change


SUMS = {
    "more rows": (of_sums(lambda s: s + s), "counts of"),
    "half a row": (of_sums(lambda s: Sums(s.count / 2, s.by_class, s.gram)), "counts of"),
    "negative": (of_sums(lambda s: Sums(-s.count, s.by_class, s.gram)), "counts of"),
    "long sums": (of_sums(lambda s: Sums(s.count, 1e3 * s.by_class, s.gram)), "of length 1"),
    "big gram": (of_sums(lambda s: Sums(s.count, s.by_class, 2 * s.gram)), "of length 1"),
    "turned gram": (of_sums(lambda s: Sums(s.count, s.by_class, -s.gram)), "of length 1"),
    "nan": (of_sums(lambda s: Sums(s.count, s.by_class * np.nan, s.gram)), "not finite"),
    "short": (lambda a, m, told: (a | {"sums.b": a["sums.b"][:-1]}, m, told), "were expected"),
    "none": (lambda a, m, told: ({}, m, told), "did not come"),
    "another's": (lambda a, m, told: (a | {"sums.a": a["sums.b"]}, m, told), "not expected"),
    "single": (lambda a, m, told: ({"sums.b": a["sums.b"].astype(np.float32)}, m, told), "float64"),
}
SCORES = {
    "more rows": (one_number(2.0), "scores of"),
    "negative": (one_number(-1.0), "scores of"),
    "infinite": (one_number(np.inf), "not finite"),
    "none": (lambda a, m, told: ({}, m, told), "did not come"),
}
CALLS = [(1, *lie) for lie in SUMS.values()] + [(2, *lie) for lie in SCORES.values()]
NAMES = [*(f"sums, {name}" for name in SUMS), *(f"scores, {name}" for name in SCORES)]


@pytest.mark.parametrize(("call", "lie", "why"), CALLS, ids=NAMES)
def test_sums_that_no_rows_give_are_left_out(files, tmp_path, call, lie, why):
    """The head is then that of the others; without a site's scores they choose among heads."""
    settings = config(method="closed-form", solver="gda", shape=1.0)
    said = []
    run(Lying(lie, *sites(files[:3]), calls=(call,)), settings, tmp_path / "run", said=said)
    (line,) = lines(tmp_path / "run")
    assert list(line["rejected"]) == ["b"] and why in line["rejected"]["b"], line["rejected"]
    run(Lying(lambda *_: None, *sites(files[:3]), calls=(call,)), settings, tmp_path / "silent")
    ours, theirs = (
        read_adapters(tmp_path / name / "adapter.safetensors")[0] for name in ("run", "silent")
    )
    assert all(torch.equal(ours[part], theirs[part]) for part in theirs)
