"""Answers of sites, changed in every field: one kind of error, and the others' run is unchanged."""

import copy
import io
import json
import math
import os
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.store import read_table, write_table
from pipeline.errors import ConfigError
from pipeline.federation.local import Trained
from pipeline.flower import call as site_call
from pipeline.flower.answer import BadAnswer, close_texts, read_answer
from pipeline.flower.messages import Answer
from pipeline.flower.server import _without_long
from pipeline.flower.site import Site
from pipeline.runs.folder import read_adapters
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

CALLS = {"who": 0, "round 0": 1, "round 1": 2, "scores": 3}
PARTITION = {"partition": "iid", "clients": 2}
FEW = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def files(table, tmp_path_factory):
    return cut(table, tmp_path_factory.mktemp("sites"), ("a",), ("b",), ("c",), ("d",))


@pytest.fixture(scope="module", params=["fp32", "int8", "partition"])
def answers(request, files, tmp_path_factory):
    """Site 101's answers of a run of two rounds by kind: (JSON, arrays, what was expected)."""
    found = []

    def recorded(text, arrays, expected):
        read = read_answer(text, arrays, expected)
        if "b" in {one.domain for one in read.clients.values()}:
            frozen = expected._replace(stated=dict(expected.stated))
            found.append((json.loads(text), dict(arrays), frozen))
        return read

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site_call, "read_answer", recorded)
        payload = {"payload": "int8"} if request.param == "int8" else {}
        more = PARTITION if request.param == "partition" else payload
        out = tmp_path_factory.mktemp("run")
        run(Network(*sites(files[:3])), config(rounds=2, **more), out / "run")
    assert len(found) == 4
    return dict(zip(CALLS, found, strict=True))


def places(value, path=()):
    """The path of every field of some JSON, objects and lists among them."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from places(item, (*path, name))


def replaced(told, path, value):
    if not path:
        return value
    told = copy.deepcopy(told)
    at = told
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = value
    return told


HOSTILE = [
    None, True, False, -1, 0, 1, 2**31 - 1, 2**31, 2**63, 10**400, -(10**400), 0.5, 1e308, -1e308,
    math.nan, math.inf, -math.inf, "", "x", "b", "\x1b[2J", "\ud800", "x" * 10**5, [], {}, [[]],
    [1], [1, 1], [-1, 5], [5, 1], [0, 0], [1.0, 2.0], [True, True], {"b": 1}, {"b": [0, 0]},
    {"b": [2**31, 2**31]}, [None] * 1000, {str(n): n for n in range(2000)},
    json.loads("[" * 90 + "]" * 90),
]  # fmt: skip


def read(text, arrays, expected):
    """BadAnswer or an Answer, and nothing else; a text's own error is checked to be one line."""
    try:
        return read_answer(text, arrays, expected)
    except BadAnswer as error:
        assert str(error).isprintable() and len(str(error)) < 1000
        return None


@FEW
@given(data=st.data())
def test_a_changed_field_is_refused_or_changes_nothing_that_was_fixed(answers, data):
    kind = data.draw(st.sampled_from(list(answers)))
    told, arrays, expected = answers[kind]
    path = data.draw(st.sampled_from(list(places(told))))
    value = data.draw(st.sampled_from(HOSTILE) | st.integers() | st.floats() | st.text(max_size=9))
    found = read(json.dumps(replaced(told, path, value)), arrays, expected)
    if found is None or kind == "who":
        return
    honest = read_answer(json.dumps(told), arrays, expected)
    assert isinstance(found, Answer)
    assert found._replace(clients={}, right={}, zero_shot={}, updates={}) == honest._replace(
        clients={}, right={}, zero_shot={}, updates={}
    )
    for name, own in found.clients.items():
        assert own._replace(loss=None) == honest.clients[name]._replace(loss=None)
        assert own.loss is None or math.isfinite(own.loss)
    for counts, fixed in ((found.right, honest.right), (found.zero_shot, honest.zero_shot)):
        for use, by_client in counts.items():
            for name, (right, of) in by_client.items():
                assert of == fixed[use][name][1] and 0 <= right <= of


@FEW
@given(data=st.data())
def test_missing_and_extra_fields_are_refused(answers, data):
    kind = data.draw(st.sampled_from(list(answers)))
    told, arrays, expected = answers[kind]
    found = copy.deepcopy(told)
    objects = [path for path in places(told) if isinstance(at(told, path), dict)]
    path = data.draw(st.sampled_from(objects))
    where = at(found, path)
    if where and data.draw(st.booleans()):
        del where[data.draw(st.sampled_from(list(where)))]
    else:
        where["more"] = data.draw(st.sampled_from([0, None, "x", [0, 0], {}]))
    if path[:1] == ("cache",) and "preprocessing" in path and kind == "who":
        return  # what a preprocessing is made of is a site's own to say
    assert read(json.dumps(found), arrays, expected) is None


def at(told, path):
    for name in path:
        told = told[name]
    return told


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
def test_an_odd_array_is_refused_by_name(answers, odd):
    for kind, (told, arrays, expected) in answers.items():
        for name in arrays:
            value = ODD[odd](arrays[name]) if callable(ODD[odd]) else ODD[odd]
            other = {n: a for n, a in arrays.items() if n != name}
            other |= {} if value is None else {name: value}
            found = read(json.dumps(told), other, expected)
            # An update that is not there is a client that sent none; without scales it is damaged.
            sent_none = odd == "missing" and name.startswith("update") and ":" not in name
            alone = sent_none and f"{name}:scales" not in arrays
            assert (found is not None) == alone, (kind, name)
        assert read(json.dumps(told), {**arrays, "more": np.zeros(1, np.float32)}, expected) is None
        for wrong in (None, [], {1: np.zeros(1)}, "x"):
            if arrays or not isinstance(wrong, dict | list):
                assert read(json.dumps(told), wrong, expected) is None


NO_ANSWERS = ["", "{", "[]", "[" * 10**5, "NaN", "1e999", '"x"', None, b"{}", 7, "1" * 5000,
              " " * (1 << 22), '{"format": 2, "format": 2}']  # fmt: skip


@pytest.mark.parametrize("text", NO_ANSWERS)
def test_what_is_no_answer_is_refused(answers, text):
    for _, arrays, expected in answers.values():
        assert read(text, arrays, expected) is None


def test_a_big_answer_is_refused_without_making_it_bigger(answers):
    told, arrays, expected = answers["who"]
    many = copy.deepcopy(told)
    many["clients"] = {f"b{n}": next(iter(told["clients"].values())) for n in range(10_000)}
    wide = copy.deepcopy(told)
    wide["cache"]["demand"]["width"] = 1 << 16
    wide["cache"]["demand"]["class_names"] = [str(n) for n in range(100_000)]
    for text in (json.dumps(many), json.dumps(wide), "[" + "1," * 25_000_000 + "1]"):
        tracemalloc.start()
        assert read(text, arrays, expected) is None
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 64 * 2**20


def test_an_answer_to_another_request_is_refused(answers):
    told, arrays, expected = answers["round 1"]
    for other in (answers["round 0"], answers["scores"]):
        assert read(json.dumps(other[0]), other[1], expected) is None
    again = expected._replace(nonce="0" * 16)
    with pytest.raises(BadAnswer, match="it answered another request"):
        read_answer(json.dumps(told), arrays, again)


class Replaying(Network):
    """Node 101 answers every round with its first answer to one."""

    def __call__(self, round, asks):
        answers = dict(super().__call__(round, asks))
        self.first = getattr(self, "first", {})
        if len(self.asked) > 1:
            answers[101] = self.first.setdefault(101, answers[101])
        return answers


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
    silent = Lying(lambda told, arrays: None, *sites(files[:3]), calls=(1,))
    document = run(silent, config(rounds=3, **more), tmp_path / "run")
    domains = [{name[0] for name in line["train_loss"]} for line in lines(tmp_path / "run")]
    assert domains == [{"a", "c"}, {"a", "b", "c"}, {"a", "b", "c"}]
    assert {name[0] for name in document["left_out"]["clients"]} == {"b"}


@pytest.mark.parametrize("more", [{}, PARTITION])
def test_impossible_counts_do_not_choose_the_round(files, tmp_path, more):
    """A site that answers everything right in one round, of more rows than it has."""

    def lie(told, arrays):
        told["right"]["val"] = {name: [10**6, 10**6] for name in told["right"]["val"]}
        return json.dumps(told), arrays

    chosen = []
    for out, each in (("lied", lie), ("silent", lambda told, arrays: None)):
        network = Lying(each, *sites(files[:3]), calls=(2, 4))
        document = run(network, config(rounds=4, **more), tmp_path / out)
        chosen.append((document["results"][0]["best_round"], document["results"][0]["overall"]))
    assert chosen[0] == chosen[1]


def without_scales(told, arrays):
    return json.dumps(told), {n: a for n, a in arrays.items() if not n.endswith(":scales")}


ROUNDS = {
    "no scales": (without_scales, {"payload": "int8"}),
    "huge count": (changed(["right", "val", "b"], [2**31, 2**31]), {}),
    "0 of 0": (changed(["right", "val", "b"], [0, 0]), {}),
    "tripled": (changed(["right", "val", "b"], [27, 27]), {}),
    "rows": (changed(["clients", "b", "rows", "train"], 20_000_000), {"weighting": "rows"}),
    "inf rows": (changed(["clients", "b", "domain_rows"], math.inf), {}),
    "other cache": (changed(["cache", "content_sha256"], "0" * 64), {}),
    "nan data set": (changed(["cache", "dataset"], math.nan), {}),
}


@pytest.mark.parametrize("name", ROUNDS)
@pytest.mark.parametrize("call", [1, 2, 4])
def test_the_others_run_is_that_without_the_site(files, tmp_path, name, call):
    lie, more = ROUNDS[name]
    if call == 4 and name == "no scales":
        pytest.skip("nothing is sent with the last counts")
    for out, each in (("lied", lie), ("silent", lambda told, arrays: None)):
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


WHO = {
    "model is an object": changed(["cache", "model"], {}),
    "model is a list": changed(["cache", "model"], []),
    "rows are infinite": changed(["cache", "rows"], math.inf),
    "data set is NaN": changed(["cache", "dataset"], math.nan),
    "20 million rows": lambda told, arrays: (json.dumps(claiming(told, 20_000_000)), arrays),
    "2^31 - 1 rows": lambda told, arrays: (json.dumps(claiming(told, 2**31 - 1)), arrays),
    "NaN text": lambda told, arrays: (json.dumps(told), {"text": arrays["text"] * np.nan}),
    "other text": lambda told, arrays: (json.dumps(told), {"text": -arrays["text"]}),
    "no text": lambda told, arrays: (json.dumps(told), {}),
    "the held-out domain": lambda told, arrays: (json.dumps(renamed(told, "d")), arrays),
    "another name": lambda told, arrays: (json.dumps(renamed(told, "b", "b/0")), arrays),
    "50 MB": lambda told, arrays: (json.dumps({**told, "more": "x" * 50_000_000}), arrays),
    "logit scale": changed(["cache", "demand", "logit_scale"], 21.0),
    "class names": changed(["cache", "demand", "class_names"], ["a", "b", "c", "d"]),
    "no answer": lambda told, arrays: (None, None),
}  # fmt: skip


def claiming(told, rows):
    own = told["clients"]["b"]
    own["rows"] = {"train": rows, "val": 1, "test": 1}
    own["domain_rows"] = told["cache"]["rows"] = rows + 2
    return told


def renamed(told, domain, name=None):
    told["clients"] = {name or domain: {**told["clients"]["b"], "domain": domain}}
    return told


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


def test_the_first_site_is_not_believed_more_than_others(files, tmp_path):
    """Node 101 is the first to be asked here, and its text features are NaN, or its model other."""
    for lie in (WHO["NaN text"], WHO["logit scale"], WHO["class names"]):
        network = Lying(lie, calls=(0,))
        network.sites = dict(zip((101, 102, 103), sites(files[1:2] + files[:1] + files[2:3]),
                                 strict=True))  # fmt: skip
        network.kept = {node: {} for node in network.sites}
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

    def lie(told, arrays):
        return json.dumps(told), {"text": TEXTS[name](arrays["text"]).astype(np.float32)}

    cosine = {"mode": "FedAtTxt", "head": "cosine", "loss": "class"}
    network = Lying(lie, calls=(0,))
    network.sites = dict(zip((101, 102, 103), sites(parts[:3]), strict=True))  # the first one lies
    network.kept = {node: {} for node in network.sites}
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


def fewer_rows(told, arrays):
    told["clients"]["b"]["rows"]["train"] -= 1
    told["cache"]["rows"] -= 1
    return json.dumps(told), arrays


def rows_moved(told, arrays):
    told["clients"]["b"]["rows"]["train"] -= 1
    told["clients"]["b"]["rows"]["test"] += 1
    told["right"]["test"]["b"][1] += 1
    return json.dumps(told), arrays


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
    network = Lying(lambda told, arrays: (json.dumps(claiming(told, 3_000)), arrays), *sites(parts),
                    calls=(0,))  # fmt: skip
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


@pytest.fixture
def reply(monkeypatch):
    """bytes of an array -> what the server's app makes of a message with it."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    pytest.importorskip("flwr", reason="flwr is not installed: pip install -r requirements-dev.txt")
    task = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(task, name, 1)
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

    from pipeline.flower import app as flower_app

    def made(data):
        content = RecordDict({
            flower_app.TOLD: ConfigRecord({"json": "{}"}),
            flower_app.NUMBERS: ArrayRecord({"x": Array("f", (1,), "numpy.ndarray", data)}),
        })  # fmt: skip
        return flower_app._read(Message(content, dst_node_id=1, message_type="train"))

    return made


def test_a_header_that_attacks_is_refused(reply):
    pickled = np.array([{"a": 1}], object)
    fortran = np.asfortranarray(np.zeros((3, 2), np.float32))
    others = [npy(a) for a in (pickled, fortran, np.zeros(3), np.zeros((), np.float32),
                               np.zeros((1, 1, 1), np.float32), np.zeros(3, np.int64))]  # fmt: skip
    for data in (*HEADERS[:-1], *others):
        tracemalloc.start()
        found = reply(data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert isinstance(found, str) and peak < 2**24, data[:80]
    _, arrays = reply(HEADERS[-1])  # of no number at all, whatever its second axis
    assert arrays["x"].size == 0


@pytest.mark.parametrize("shape", [(0,), (1,), (312,), (4, 12), (1, 1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_arrays_that_are_sent_are_read(reply, shape, dtype):
    array = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    _, arrays = reply(npy(array))
    assert arrays["x"].dtype == dtype and np.array_equal(arrays["x"], array)


@FEW
@given(data=st.data())
def test_damaged_arrays_are_refused_or_read(reply, data):
    sound = bytearray(npy(np.arange(6, dtype=np.float32)))
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    cut_at = data.draw(st.integers(0, len(sound)) | st.just(len(sound)))
    found = reply(bytes(sound[:cut_at]))
    assert isinstance(found, str) or found[1]["x"].nbytes <= len(sound)
