"""Flower's messages around a site, without a network: what is refused, kept and read back."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

from cache.store import read_table, write_table
from pipeline.errors import ConfigError
from pipeline.flower import app as flower_app
from pipeline.flower import grid as flower_grid
from pipeline.flower.grid import REFUSED, Patient
from pipeline.flower.records import Ask, plain, read_array, records, write_ask
from tests.flower.sites import Network, config, cut, run_config, sites
from tests.runs.small_runs import small

ASK = write_ask(Ask({}, (), 0, {}, None))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sites")
    write_table(folder / "whole.h5", small(rows=(60, 45, 80, 30)))
    return cut(read_table(folder / "whole.h5"), folder, ("a",), ("b",), ("c",))


def context(**node_config) -> Context:
    return Context(1, 1, node_config, RecordDict(), run_config(config()))


def message(content=ASK, node=1) -> Message:
    return Message(content, dst_node_id=node, message_type="query")


def told(reply: Message) -> str:
    return reply.content.config_records[REFUSED]["why"]


@pytest.mark.parametrize(
    ("node_config", "why"),
    [
        ({}, "names no cache"),
        ({"cache": "/no/such/place.h5"}, "place.h5"),
        ({"cache": "/no/such/place.h5", "domian": "a"}, "node config 'domian' is unknown"),
    ],
)
def test_a_site_says_why_it_refuses_and_not_where_it_lies(node_config, why):
    found = told(flower_app.client_app(message(), context(**node_config)))
    assert why in found and "/no/such" not in found


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"config": ConfigRecord({"json": "{}"})}),
        records({}, {}, {}),
        records({}, {}, {"round": "0", "nonce": "", "demand": "{}", "domains": [], "clients": []}),
        records({"adapter": np.zeros((2, 2, 2))}, {}, {}),
    ],
)
def test_a_strange_message_is_refused(files, content):
    found = told(flower_app.client_app(message(content), context(cache=str(files[0]))))
    assert "the server's message is not what this version sends" in found


def test_arrays_are_read_without_believing_their_headers():
    good = Array(np.arange(6, dtype=np.float32).reshape(2, 3)).data
    np.testing.assert_array_equal(read_array(good), np.arange(6).reshape(2, 3))
    huge = good.replace(b"(2, 3)", b"(2, 9)")
    pickled = Array("O", (1,), "numpy.ndarray", b"\x93NUMPY\x01\x00v\x00" + b"{}" * 59)
    for data in (huge, good[:-1], b"", good[:20], pickled.data, b"\x93NUMPY\x02" + good[7:]):
        content = records({}, {}, {})
        content["arrays"] = ArrayRecord({"x": Array("f", (1,), "numpy.ndarray", data)})
        with pytest.raises(ValueError, match="an array"):
            plain(content)


class Grid:
    """A SuperLink of which some nodes never answer; time is what tests make of it."""

    def __init__(self, dead=(), refused=()):
        self.dead, self.refused, self.slept = set(dead), set(refused), 0.0

    def push_messages(self, messages):
        self.sent = {str(at): m for at, m in enumerate(messages)}
        return [
            None if m.metadata.dst_node_id in self.refused else id for id, m in self.sent.items()
        ]

    def pull_messages(self, ids):
        for id in ids:
            node = self.sent[id].metadata.dst_node_id
            if node not in self.dead and self.slept >= node:
                yield Message(self.reply(node), reply_to=self.sent[id])

    def reply(self, node):
        return records({}, {}, {"hi": node})


def asks(*nodes):
    return [message(node=node) for node in nodes]


def heard(replies):
    """By node "hi", or why there is no answer."""
    return {r.metadata.src_node_id: r.error.reason if r.has_error() else "hi" for r in replies}


@pytest.fixture
def clock(monkeypatch):
    def on(grid):
        monkeypatch.setattr(flower_grid.time, "monotonic", lambda: grid.slept)
        monkeypatch.setattr(
            flower_grid.time, "sleep", lambda s: setattr(grid, "slept", grid.slept + s)
        )
        return grid

    return on


def test_a_dead_site_holds_up_one_round_only(clock):
    grid = clock(Grid(dead={7}))
    patient = Patient(grid)
    came = heard(patient.send_and_receive(asks(2, 4, 7), timeout=60))
    assert set(came) == {2, 4} and patient.late == {7} and grid.slept == 60
    grid.slept = 0.0
    came = heard(patient.send_and_receive(asks(2, 4, 7), timeout=60))
    assert set(came) == {2, 4} and patient.late == {7}
    assert grid.slept == 8  # twice the 4 s of the slowest
    assert patient.send_and_receive([], timeout=60) == []


def test_a_message_that_was_not_taken_is_told(clock):
    patient = Patient(clock(Grid(refused={4})))
    came = heard(patient.send_and_receive(asks(2, 4), timeout=60))
    assert came == {2: "hi", 4: "the SuperLink did not take its message"}


class Broken(Grid):
    """A SuperLink that holds an answer which Flower cannot rebuild, whoever asks for it."""

    def pull_messages(self, ids):
        if any(self.sent[id].metadata.dst_node_id == 4 for id in ids):
            raise KeyError("no such class")
        return super().pull_messages(ids)


def test_an_answer_that_flower_cannot_rebuild_is_its_sites_own(clock):
    came = heard(Patient(clock(Broken())).send_and_receive(asks(2, 4), timeout=60))
    assert came == {2: "hi", 4: "Flower cannot read its answer (KeyError)"}


class Forging(Grid):
    """Node 4 says that its answer is node 2's."""

    def pull_messages(self, ids):
        for reply in super().pull_messages(ids):
            reply.metadata.__dict__["_src_node_id"] = 2
            yield reply


def test_a_reply_is_of_the_node_that_was_asked(clock):
    replies = Patient(clock(Forging())).send_and_receive(asks(2, 4), timeout=60)
    assert heard(replies) == {2: "hi", 4: "hi"}


class Refusing(Grid):
    def reply(self, node):
        return RecordDict({REFUSED: ConfigRecord({"why": "no\x1b[2J" + "x" * 10**4})})


class Failing(Grid):
    def pull_messages(self, ids):
        for id in ids:
            yield Message(Error(code=1, reason="node unavailable"), reply_to=self.sent[id])


def test_what_a_refusal_says_cannot_steer_a_terminal(clock):
    (why,) = heard(Patient(clock(Refusing())).send_and_receive(asks(2), timeout=60)).values()
    assert "\x1b" not in why and len(why) == 1000


def test_an_error_of_flower_is_told_as_its_own(clock):
    came = heard(Patient(clock(Failing())).send_and_receive(asks(2), timeout=60))
    assert came == {2: "Flower: node unavailable"}


def test_a_run_config_of_the_command_starts_a_run(files, tmp_path, monkeypatch):
    network = Network(*sites(files))
    monkeypatch.setattr(flower_grid, "Patient", lambda grid: grid)
    settings = run_config(config(rounds=1)) | {"sites": 3, "min_sites": 3, "wait": 1.0}
    network.run_config = settings | {"out": str(tmp_path / "run")}
    own = Context(1, 1, {}, RecordDict(), network.run_config)
    flower_app.server_app(network, own)
    assert (tmp_path / "run" / "done").exists()
    own.run_config = {**network.run_config, "sites": 4}
    with pytest.raises(ConfigError, match="3 of 4 sites connected in 1 s"):
        flower_app.server_app(network, own)
