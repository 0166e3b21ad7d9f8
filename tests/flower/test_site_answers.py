"""Answers of sites, changed in every field: refused, or read as nothing that was fixed before."""

import copy
import json
import math
import tracemalloc

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.flower import answer as site_answer
from pipeline.flower import call as site_call
from pipeline.flower.answer import Answer, BadAnswer, read_answer
from pipeline.flower.records import records
from tests.flower.conftest import outside_of_runs
from tests.flower.sites import Network, config, copied, run, sites

CALLS = {"who": 0, "round 0": 1, "round 1": 2, "scores": 3}
PARTITION = {"partition": "iid", "clients": 2}
FEW = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


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
        outside_of_runs(patch)
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
