"""Answers of sites, changed in every field: one kind of error, and the others' run is unchanged."""

import copy
import io
import json
import math
import tracemalloc

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.store import read_table, write_table
from pipeline.errors import ConfigError
from pipeline.federation.local import Trained
from pipeline.flower import answer as site_answer
from pipeline.flower import call as site_call
from pipeline.flower.answer import Answer, BadAnswer, read_answer
from pipeline.flower.call import close_texts
from pipeline.flower.records import plain, records
from pipeline.flower.site import Site
from pipeline.flower.strategy import _without_long
from pipeline.runs.folder import read_adapters
from tests.flower.sites import (
    Lying,
    Network,
    changed,
    config,
    copied,
    cut,
    lines,
    of_domains,
    run,
    sites,
    whole,
)

CALLS = {"who": 0, "round 0": 1, "round 1": 2, "scores": 3}
PARTITION = {"partition": "iid", "clients": 2}
FEW = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def no_answer(arrays, metrics, told):
    """A lie: silence."""
    return


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def files(table, tmp_path_factory):
    return cut(table, tmp_path_factory.mktemp("sites"), ("a",), ("b",), ("c",), ("d",))


@pytest.fixture(scope="module", params=["fp32", "int8", "partition", "loss"])
def answers(request, files, tmp_path_factory):
    """Site 101's answers of a run of two rounds by kind, each with what was expected of it."""
    found = []

    def recorded(content, expected):
        read = read_answer(content, expected)
        if "b" in {one.domain for one in read.clients.values()}:
            found.append((copied(content), expected._replace(stated=dict(expected.stated))))
        return read

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site_call, "read_answer", recorded)
        for name in ("_run_id", "_task_id", "_node_id"):
            patch.setattr("flwr.supercore.task_identity.TaskIdentity." + name, 1)
        payload = {"payload": "int8"} if request.param == "int8" else {}
        more = {"partition": PARTITION, "loss": {"choose": "loss"}}.get(request.param, payload)
        out = tmp_path_factory.mktemp("run")
        run(Network(*sites(files[:3])), config(rounds=2, **more), out / "run")
    assert len(found) == 4
    return dict(zip(CALLS, found, strict=True))


BIG = json.loads("[" * 90 + "]" * 90)
HOSTILE = [
    True, False, -1, 0, 1, 2**31 - 1, 2**31, 2**62, 0.5, 1e308, -1e308, math.nan, math.inf,
    -math.inf, "", "x", "b", "\x1b[2J", "\ud800", "x" * 10**5, b"", b"x", [], [1], [1, 1], [-1],
    [5, 1], [0, 0], [1.0, 2.0], [True, True], ["b"], ["b", "b"], ["b/0", "b/1"], ["\x1b[2J"],
    [0] * 2000,
    ["x"] * 10**5, [2**62], [math.nan], [math.inf], "{}", "[]", "{", "NaN", "[" * 10**5,
    '{"width": 1e999}', json.dumps({"a": BIG}),
]  # fmt: skip
"""What records can hold."""
ODD_OBJECTS = [
    None,
    {},
    {"a": 1},
    [[]],
    [None],
    10**400,
    -(10**400),
    [10**400],
    object(),
    np.float32(1),
]
"""What they cannot, and Python could."""


class Record(dict):
    """A record that a hostile peer made: whatever it holds."""


class Forged(RecordDict):
    """A message's content with records that flwr would not make."""

    def __init__(self, metrics, told):
        super().__init__(records({}, {}, {}))
        self.forged = {"metrics": metrics, "config": told}

    @property
    def metric_records(self):
        return {"metrics": self.forged["metrics"]}

    @property
    def config_records(self):
        return {"config": self.forged["config"]}


def read(content, expected):
    """BadAnswer or an Answer, and nothing else; a text's own error is checked to be one line."""
    try:
        return read_answer(content, expected)
    except BadAnswer as error:
        assert str(error).isprintable() and len(str(error)) < 1000
        return None


@FEW
@given(data=st.data())
def test_a_changed_field_is_refused_or_changes_nothing_that_was_fixed(answers, data):
    kind = data.draw(st.sampled_from(list(answers)))
    (arrays, metrics, told), expected = answers[kind]
    metrics, told = copy.deepcopy(metrics), copy.deepcopy(told)
    where = metrics if data.draw(st.booleans()) else told
    name = data.draw(st.sampled_from(list(where)))
    value = data.draw(st.sampled_from(HOSTILE) | st.integers(-(2**62), 2**62) | st.floats()
                      | st.text(max_size=9))  # fmt: skip
    if isinstance(where[name], list) and data.draw(st.booleans()):
        value = [value, *where[name][1:]] if not isinstance(value, list) else value
    where[name] = value
    try:
        content = records(arrays, metrics, told)
    except TypeError:  # lists of one type alone travel
        content = Forged(metrics, told)
    found = read(content, expected)
    if found is None or kind == "who":
        return
    honest = read_answer(records(*answers[kind][0]), expected)
    assert isinstance(found, Answer)
    free = {"clients": {}, "updates": {}}
    assert found._replace(**free) == honest._replace(**free)
    for name, own in found.clients.items():
        fixed = honest.clients[name]
        assert own.stated() == fixed.stated()
        assert own.loss is None or math.isfinite(own.loss)
        assert own.val_loss is None or 0 <= own.val_loss < math.inf
        for what in ("right", "zero_shot"):
            counts = own.counts(what)
            assert counts.keys() == fixed.counts(what).keys()
            assert all(0 <= right <= rows for right, rows in counts.values())


# Not by repr: some are of 10^400, one names its address, and workers must collect alike.
@pytest.mark.parametrize("value", ODD_OBJECTS, ids=lambda v: type(v).__name__)
def test_what_no_record_holds_is_refused(answers, value):
    for (_, metrics, told), expected in answers.values():
        for which, names in (("metrics", metrics), ("config", told)):
            for name in names:
                parts = {"metrics": Record(metrics), "config": Record(told)}
                parts[which][name] = value
                assert read(Forged(**{"metrics": parts["metrics"], "told": parts["config"]}),
                            expected) is None  # fmt: skip


@FEW
@given(data=st.data())
def test_missing_and_extra_fields_are_refused(answers, data):
    kind = data.draw(st.sampled_from(list(answers)))
    (arrays, metrics, told), expected = answers[kind]
    metrics, told = dict(metrics), dict(told)
    where = metrics if data.draw(st.booleans()) else told
    if data.draw(st.booleans()):
        del where[data.draw(st.sampled_from(list(where)))]
    else:
        where["more"] = data.draw(st.sampled_from([0, [0, 0], 0.5]))
    assert read(records(arrays, metrics, told), expected) is None


@FEW
@given(data=st.data())
def test_a_changed_demand_is_refused_or_another_demand(answers, data):
    """The one nested field, JSON: any field of it, missing, more, or of another value."""
    (arrays, metrics, told), expected = answers["who"]
    demand = json.loads(told["demand"])
    how = data.draw(st.sampled_from(["change", "more", "less"]))
    name = data.draw(st.sampled_from(list(demand)))
    plain_values = [value for value in HOSTILE if not isinstance(value, bytes)]
    if how == "less":
        del demand[name]
    else:
        demand["more" if how == "more" else name] = data.draw(st.sampled_from(plain_values))
    found = read(records(arrays, metrics, told | {"demand": json.dumps(demand)}), expected)
    assert found is None or (how == "change" and found.cache["demand"] == demand)


ODD = {
    "missing": None,
    "object": np.array([object()] * 3),
    "list": [1.0, 2.0],
    "text": "x",
    "bytes": b"\x00" * 9,
    "scalar": np.float32(1),
    "empty": np.empty(0, np.float32),
    "other dtype": lambda a: a.astype(np.float64),
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")) if a.itemsize > 1 else a[:-1],
    "whole numbers": lambda a: a.astype(np.int64),
    "complex": lambda a: a.astype(np.complex64),
    "structured": np.zeros(3, [("x", np.float32)]),
    "short": lambda a: a[:-1],
    "long": lambda a: np.concatenate([a, a]),
    "column": lambda a: a[..., None],
    "masked": lambda a: np.ma.array(a),
    "matrix": lambda a: np.zeros((2, 2)).view(np.matrix),
    "huge view": lambda a: np.broadcast_to(a.reshape(-1)[:1], (10**12,)),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_array_is_refused_by_name(answers, odd, monkeypatch):
    for kind, ((arrays, metrics, told), expected) in answers.items():
        for name in arrays:
            value = ODD[odd](arrays[name]) if callable(ODD[odd]) else ODD[odd]
            other = {n: a for n, a in arrays.items() if n != name}
            other |= {} if value is None else {name: value}
            monkeypatch.setattr(site_answer, "plain", lambda _, o=(other, metrics, told): o)
            found = read(RecordDict(), expected)
            # An update that is not there is a client that sent none; without scales it is damaged.
            sent_none = odd == "missing" and name.startswith("update") and ":" not in name
            alone = sent_none and f"{name}:scales" not in arrays
            assert (found is not None) == alone, (kind, name)
        monkeypatch.undo()
        more = {**arrays, "more": np.zeros(1, np.float32)}
        assert read(records(more, metrics, told), expected) is None


@pytest.mark.parametrize(
    "content", [None, {}, "x", RecordDict(), RecordDict({"config": ConfigRecord()}), [], 7]
)
def test_what_is_no_answer_is_refused(answers, content):
    for _, expected in answers.values():
        assert read(content, expected) is None


def test_a_big_answer_is_refused_without_making_it_bigger(answers):
    (arrays, metrics, told), expected = answers["who"]
    many = {name: 10_000 * value[:1] for name, value in metrics.items() if isinstance(value, list)}
    names = [f"b{n}" for n in range(10_000)]
    wide = json.loads(told["demand"]) | {"width": 1 << 16}
    wide["class_names"] = [str(n) for n in range(100_000)]
    for content in (
        records(arrays, metrics | many, told | {"clients": names, "domain": 10_000 * ["b"]}),
        records(arrays, metrics, told | {"demand": json.dumps(wide)}),
        records(arrays, metrics, told | {"demand": "[" + "1," * 25_000_000 + "1]"}),
    ):
        tracemalloc.start()
        assert read(content, expected) is None
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 64 * 2**20


def test_an_answer_to_another_request_is_refused(answers):
    own, expected = answers["round 1"]
    for other in ("round 0", "scores"):
        assert read(records(*answers[other][0]), expected) is None
    again = expected._replace(nonce="0" * 16)
    with pytest.raises(BadAnswer, match="it answered another request"):
        read_answer(records(*own), again)


class Replaying(Network):
    """Node 101 answers every round with its first answer to one."""

    def send_and_receive(self, messages, *, timeout=None):
        replies = super().send_and_receive(messages, timeout=timeout)
        if replies and len(self.sent) > 1:
            reply = next(r for r in replies if r.metadata.src_node_id == 101)
            self.first = getattr(self, "first", reply.content)
            reply.content = self.first
        return replies


def test_a_replayed_answer_is_left_out_and_counted(files, tmp_path):
    said = []
    document = run(Replaying(*sites(files[:3])), config(), tmp_path / "run", said=said)
    told = lines(tmp_path / "run")
    assert [list(line["rejected"]) for line in told] == [[], ["b"], ["b"], ["b"]]
    assert "another request" in told[1]["rejected"]["b"]
    (out,) = document["left_out"]["clients"].items()
    assert out[0] == "b" and out[1]["times"] == 4 and out[1]["first_round"] == 1
    assert sum("nothing from b" in line for line in said) == 1
    assert any("b was left out 4 times in 4 rounds, first in round 1" in line for line in said)
    saved = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert saved["left_out"] == document["left_out"]


@pytest.mark.parametrize("more", [{}, PARTITION])
def test_a_site_without_an_answer_in_the_first_round_trains_in_the_next(files, tmp_path, more):
    silent = Lying(no_answer, *sites(files[:3]), calls=(1,))
    document = run(silent, config(rounds=3, **more), tmp_path / "run")
    domains = [{name[0] for name in line["train_loss"]} for line in lines(tmp_path / "run")]
    assert domains == [{"a", "c"}, {"a", "b", "c"}, {"a", "b", "c"}]
    assert {name[0] for name in document["left_out"]["clients"]} == {"b"}


@pytest.mark.parametrize("more", [{}, PARTITION])
def test_impossible_counts_do_not_choose_the_round(files, tmp_path, more):
    """A site that answers everything right in one round, of more rows than it has."""

    def lie(arrays, metrics, told):
        return arrays, metrics | {"right_val": [10**6 for _ in told["clients"]]}, told

    chosen = []
    for out, each in (("lied", lie), ("silent", no_answer)):
        network = Lying(each, *sites(files[:3]), calls=(2, 4))
        document = run(network, config(rounds=4, **more), tmp_path / out)
        chosen.append((document["results"][0]["best_round"], document["results"][0]["overall"]))
    assert chosen[0] == chosen[1]


def without_scales(arrays, metrics, told):
    return {n: a for n, a in arrays.items() if not n.endswith(":scales")}, metrics, told


ROUNDS = {
    "no scales": (without_scales, {"payload": "int8"}),
    "huge count": (changed(right_val=2**31), {}),
    "one more": (changed(right_val=10), {}),
    "rows": (changed(train=20_000_000), {"weighting": "rows"}),
    "domain rows": (changed(domain_rows=10**8), {}),
    "infinite rows": (changed(domain_rows=[math.inf]), {}),
    "other cache": (changed(content_sha256="0" * 64), {}),
    "another round": (changed(round=9), {}),
    "negative loss": (changed(val_loss=-1.0), {"choose": "loss"}),
    "infinite loss": (changed(val_loss=math.inf), {"choose": "loss"}),
    "losses of none": (changed(val_loss=[0.5]), {}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "call"),
    # With the last counts nothing is sent that could have scales.
    [(name, call) for name in ROUNDS for call in (1, 2, 4) if (name, call) != ("no scales", 4)],
)
def test_the_others_run_is_that_without_the_site(files, tmp_path, name, call):
    lie, more = ROUNDS[name]
    for out, each in (("lied", lie), ("silent", no_answer)):
        network = Lying(each, *sites(files[:3]), calls=(call,))
        run(network, config(rounds=3, **more), tmp_path / out)
    ours, theirs = ((tmp_path / out / "adapter.safetensors") for out in ("lied", "silent"))
    assert ours.read_bytes() == theirs.read_bytes() or all(
        torch.equal(value, read_adapters(theirs)[0][part])
        for part, value in read_adapters(ours)[0].items()
    )
    for one, other in zip(lines(tmp_path / "lied"), lines(tmp_path / "silent"), strict=True):
        assert list(one.pop("rejected")) == list(other.pop("rejected"))
        assert one == other


def with_text(change):
    return lambda arrays, metrics, told: ({"text": change(arrays["text"])}, metrics, told)


def with_demand(**values):
    def lie(arrays, metrics, told):
        demand = json.dumps(json.loads(told["demand"]) | values)
        return arrays, metrics, told | {"demand": demand}

    return lie


def named(domain, name):
    return lambda a, m, told: (a, m, told | {"domain": [domain], "clients": [name]})


def claiming(rows):
    def lie(arrays, metrics, told):
        own = {"train": [rows], "val": [1], "test": [1], "domain_rows": [rows + 2]}
        return arrays, metrics | own, told

    return lie


WHO = {
    "model is a list": changed(model=[]),
    "model is a number": changed(model=7),
    "rows are infinite": changed(domain_rows=[math.inf]),
    "data set is NaN": changed(dataset=math.nan),
    "20 million rows": claiming(20_000_000),
    "2^31 - 1 rows": claiming(2**31 - 1),
    "NaN text": with_text(lambda text: text * np.nan),
    "other text": with_text(lambda text: -text),
    "no text": lambda arrays, metrics, told: ({}, metrics, told),
    "the held-out domain": named("d", "d"),
    "another name": named("b", "b/0"),
    "50 MB": lambda a, metrics, told: (a, metrics, told | {"more": "x" * 50_000_000}),
    "logit scale": with_demand(logit_scale=21.0),
    "class names": with_demand(class_names=["a", "b", "c", "d"]),
    "no demand": changed(demand="{}"),
    "deep": changed(preprocessing='{"a": ' + json.dumps(BIG) + "}"),
    "no answer": lambda *_: RecordDict(),
}  # fmt: skip


@pytest.mark.parametrize("name", WHO)
def test_a_site_whose_facts_lie_is_left_out_before_the_first_round(files, tmp_path, name):
    cosine = {"mode": "FedAtTxt", "head": "cosine", "loss": "class"} if "text" in name else {}
    said = []
    network = Lying(WHO[name], *sites(files[:3]), calls=(0,))
    document = run(network, config(rounds=1, **cosine), tmp_path / "run", said=said)
    assert any(line.startswith("site 101 is left out: ") for line in said), said
    assert list(document["left_out"]["sites"]) == ["101"]
    (told,) = lines(tmp_path / "run")
    assert set(told["train_loss"]) == {"a", "c"} and math.isfinite(told["train_loss"]["a"])
    others = run(
        Network(*sites([files[0], files[2]])), config(rounds=1, **cosine), tmp_path / "two"
    )
    assert others["results"] == document["results"]


def first_lies(lie, own):
    """Node 101 is the first to be asked, and lies when it is asked who it is."""
    network = Lying(lie, *own, calls=(0,))
    network.contexts = dict(zip((101, 102, 103), network.contexts.values(), strict=True))
    return network


def test_the_first_site_is_not_believed_more_than_others(files, tmp_path):
    """Its text features are NaN, or its model is another one."""
    for lie in (WHO["NaN text"], WHO["logit scale"], WHO["class names"]):
        network = first_lies(lie, sites(files[1:2] + files[:1] + files[2:3]))
        run(network, config(rounds=1, held_out=(("d",),)), tmp_path / "run", force=True)
        assert set(lines(tmp_path / "run")[0]["train_loss"]) == {"a", "c"}


def test_without_a_majority_there_is_no_run_unless_the_server_has_a_cache(table, files, tmp_path):
    other = of_domains(table, "b")
    other = other.__class__(**{**other.__dict__, "text_features": other.text_features + 1})
    write_table(tmp_path / "b.h5", other)
    two = [Site(files[0]), Site(tmp_path / "b.h5")]
    with pytest.raises(ConfigError, match="the caches of 2 sites differ.*text_features_sha256"):
        run(Network(*two), config(rounds=1), tmp_path / "run")
    held = read_table(files[3])
    run(Network(*two), config(rounds=1), tmp_path / "held", held)
    assert set(lines(tmp_path / "held")[0]["train_loss"]) == {"a"}


TEXTS = {
    "NaN": lambda text: text * np.nan,
    "one infinite": lambda text: np.where(text == text.max(), np.inf, text),
    "a zero row": lambda text: text * (np.arange(len(text)) > 0)[:, None].astype(np.float32),
    "turned": lambda text: -text,
    "longer": lambda text: text * 2,
    "classes turned": lambda text: text[::-1].copy(),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("held", [True, False])
def test_text_features_of_extracted_caches_are_compared(table, tmp_path, name, held):
    """Extracted caches are known by their CLIP and prompts, which say nothing of the numbers."""
    identity = {"model": "demo", "dataset": "small", "weights_sha256": "1" * 64,
                "templates": ["a {}"], "preprocessing": {"crop": "center"}}  # fmt: skip
    known = table.__class__(**{**table.__dict__, "identity": identity, "block_crc32": None})
    parts = cut(known, tmp_path, ("a",), ("b",), ("c",), ("d",))

    lie = with_text(lambda text: TEXTS[name](text).astype(np.float32))
    cosine = {"mode": "FedAtTxt", "head": "cosine", "loss": "class"}
    network = first_lies(lie, sites(parts[:3]))
    own = read_table(parts[3]) if held else None
    document = run(network, config(rounds=1, **cosine), tmp_path / "run", own)
    assert "text features" in document["left_out"]["sites"]["101"]
    assert set(lines(tmp_path / "run")[0]["train_loss"]) == {"b", "c"}
    pair = Lying(lie, *sites(parts[:2]), calls=(0,))
    with pytest.raises(ConfigError, match="text features"):
        run(pair, config(rounds=1, **cosine), tmp_path / "pair", least=2)
    if name in ("NaN", "one infinite", "a zero row"):  # of two sites it is clear who is wrong
        pair = Lying(lie, *sites(parts[:2]), calls=(0,))
        run(pair, config(rounds=1, **cosine), tmp_path / "one")
        assert set(lines(tmp_path / "one")[0]["train_loss"]) == {"a"}


def moved(**by):
    def lie(arrays, metrics, told):
        return arrays, metrics | {use: [metrics[use][0] + n] for use, n in by.items()}, told

    return lie


fewer_rows, rows_moved = moved(train=-1), moved(train=-1, test=1)


@pytest.mark.parametrize("lie", [fewer_rows, rows_moved])
@pytest.mark.parametrize("more", [{}, {"eval": "every"}])
def test_rows_are_those_stated_at_first(files, tmp_path, lie, more):
    run(Lying(lie, *sites(files[:3])), config(rounds=2, **more), tmp_path / "run")
    rejected = lines(tmp_path / "run")[1]["rejected"]
    assert list(rejected) == ["b"] and "at first" in rejected["b"]


def test_text_features_of_extracted_caches_may_be_rounded_otherwise():
    text = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    texts = {1: text, 2: text + 1e-3 * text.norm(dim=1, keepdim=True) / 32**0.5, 3: -text}
    assert close_texts(texts, text) == [1, 2]
    assert close_texts(texts, text * 1.5) == []


def test_rows_of_an_uneven_federation_are_taken(table, tmp_path):
    """Up to a hundred times as many rows as others have are possible."""
    parts = cut(table, tmp_path, ("a",), ("b",), ("c",))
    network = Lying(claiming(3_000), *sites(parts), calls=(0,))
    said = []
    run(network, config(rounds=1), tmp_path / "run", said=said)
    assert not any("is left out: it claims" in line for line in said)


def trained(lengths):
    clients = torch.tensor(lengths)[:, None].expand(len(lengths), 4).clone()
    lanes = list(range(len(lengths)))
    return Trained(lanes, torch.zeros(len(lengths), 4), clients, torch.zeros(1, len(lengths)),
                   np.full(len(lengths), 5))  # fmt: skip


def test_a_long_update_is_left_out_however_many_rows_its_site_claims():
    rest, why = _without_long(config(), trained([1.0, 3000.0, 1.0]))
    assert list(why) == [1] and rest.lanes == [0, 2] and rest.steps.tolist() == [5, 0, 5]
    assert rest.clients[:, 0].tolist() == [1.0, 1.0] and rest.losses.shape == (1, 2)
    for lengths, settings_ in (([1.0, 900.0, 1.0], {}), ([1.0, 3000.0, 1.0], {"clip": 0.1}),
                               ([math.nan] * 3, {}), ([], {})):  # fmt: skip
        same, why = _without_long(config(**settings_), trained(lengths))
        assert why == {} and same.lanes == list(range(len(lengths)))


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


HEADERS = [
    b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"PK\x03\x04",
    b"\x93NUMPY\x01\x00\xff\xff{" + b"(" * 70_000,
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (\n 1" + b" " * 80,
    b"\x93NUMPY\x01\x00v\x00  {'a':\n 1\n  b" + b" " * 99 + b"\n",
    b"\x93NUMPY\x01\x00v\x00" + b"-" * 118, b"\x93NUMPY\x01\x00v\x00" + b"[" * 118,
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999,), }\n",
    b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9999999999), }\n",
]  # fmt: skip


def reply(data):
    """The array that the server's app makes of some bytes, or why not."""
    content = records({}, {}, {})
    content["arrays"] = ArrayRecord({"x": Array("f", (1,), "numpy.ndarray", data)})
    try:
        return plain(content)[0]["x"]
    except ValueError as error:
        return str(error)


def test_a_header_that_attacks_is_refused():
    pickled = np.array([{"a": 1}], object)
    fortran = np.asfortranarray(np.zeros((3, 2), np.float32))
    others = [npy(a) for a in (pickled, fortran, np.zeros(3, np.float128), np.zeros((), np.float32),
                               np.zeros((1, 1, 1), np.float32), np.zeros(3, np.int64))]  # fmt: skip
    for data in (*HEADERS[:-1], *others):
        tracemalloc.start()
        found = reply(data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert isinstance(found, str) and peak < 2**24, data[:80]
    assert reply(HEADERS[-1]).size == 0  # of no number at all, whatever its second axis


@pytest.mark.parametrize("shape", [(0,), (1,), (312,), (4, 12), (1, 1)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8])
def test_arrays_that_are_sent_are_read(shape, dtype):
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    found = reply(npy(array))
    assert found.dtype == dtype and np.array_equal(found, array)


@FEW
@given(data=st.data())
def test_damaged_arrays_are_refused_or_read(data):
    sound = bytearray(npy(np.arange(6, dtype=np.float32)))
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    cut_at = data.draw(st.integers(0, len(sound)) | st.just(len(sound)))
    found = reply(bytes(sound[:cut_at]))
    assert isinstance(found, str) or found.nbytes <= len(sound)
