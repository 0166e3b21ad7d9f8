"""Flower's messages around a site, without a network: what is refused, kept and read back."""

import json
import os

import numpy as np
import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # flwr reads it when it is imported
pytest.importorskip("flwr", reason="flwr is not installed: pip install -r requirements-dev.txt")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict  # noqa: E402

from cache.store import read_table, write_table  # noqa: E402
from pipeline.errors import ConfigError  # noqa: E402
from pipeline.flower import app as flower_app  # noqa: E402
from pipeline.flower.messages import Ask, write_ask  # noqa: E402
from pipeline.runs.folder import read_adapters  # noqa: E402
from pipeline.settings import as_json  # noqa: E402
from tests.flower.sites import Network, config, cut, run, sites  # noqa: E402
from tests.runs.small_runs import small  # noqa: E402


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """A message wants to know in which run it is made; outside of one there is no number."""
    task = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(task, name, 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sites")
    write_table(folder / "whole.h5", small(rows=(60, 45, 80, 30)))
    return cut(read_table(folder / "whole.h5"), folder, ("a",), ("b",), ("c",))


def context(**node_config) -> Context:
    return Context(run_id=1, node_id=1, node_config=node_config, state=RecordDict(), run_config={})


def message(text="{}", arrays=()) -> Message:
    return Message(flower_app.to_records(text, dict(arrays)), dst_node_id=1, message_type="train")


class Handlers(Network):
    """Sites reached through the ClientApp's handler; a context for each lasts the whole run."""

    def __init__(self, *own):
        super().__init__(*own)
        self.contexts = {
            node: context(cache=str(site.cache), backend=site.backend)
            for node, site in self.sites.items()
        }

    def one(self, node, text, arrays):
        reply = flower_app.client_app(message(text, arrays), self.contexts[node])
        return flower_app._read(reply)


@pytest.mark.parametrize("settings", [{}, {"moments": "kept"}, {"payload": "int8"}])
def test_messages_carry_what_functions_do(files, tmp_path, settings):
    for name, network in (("ref", Network), ("comp", Handlers)):
        run(network(*sites(files)), config(rounds=3, **settings), tmp_path / name)
    ref, comp = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("ref", "comp"))
    assert ref == comp


@pytest.mark.parametrize(
    ("node_config", "why"),
    [
        ({}, "names no cache"),
        ({"cache": "/no/such/place.h5"}, "place.h5"),
        ({"cache": "/no/such/place.h5", "domian": "a"}, "node config 'domian' is unknown"),
    ],
)
def test_a_site_says_why_it_refuses_and_not_where_it_lies(node_config, why):
    ask = write_ask(Ask(as_json(config()), {}, (), 0, {}, None, {}))
    told = flower_app._read(flower_app.client_app(message(*ask), context(**node_config)))
    assert isinstance(told, str) and why in told and "/no/such" not in told


def test_a_strange_message_is_refused(files):
    own = context(cache=str(files[0]))
    for text in ("", "[]", '{"format": 99}', '{"format": 2}'):
        told = flower_app._read(flower_app.client_app(message(text), own))
        assert "is not what this version sends" in told or "format 99" in told
    bare = Message(RecordDict(), dst_node_id=1, message_type="train")
    assert "a message is not what" in flower_app._read(flower_app.client_app(bare, own))


def test_arrays_are_read_without_believing_their_headers():
    good = Array(np.arange(6, dtype=np.float32).reshape(2, 3)).data
    np.testing.assert_array_equal(flower_app._array(good), np.arange(6).reshape(2, 3))
    huge = good.replace(b"(2, 3)", b"(2, 9)")
    pickled = Array("O", (1,), "numpy.ndarray", b"\x93NUMPY\x01\x00v\x00" + b"{}" * 59)
    for data in (huge, good[:-1], b"", good[:20], pickled.data, b"\x93NUMPY\x02" + good[7:]):
        content = RecordDict(
            {
                flower_app.TOLD: ConfigRecord({"json": "{}"}),
                flower_app.NUMBERS: ArrayRecord({"x": Array("f", (1,), "numpy.ndarray", data)}),
            }
        )
        with pytest.raises(ConfigError, match="a message is not what this version sends"):
            flower_app.from_records(content)


def test_what_a_refusal_says_cannot_steer_a_terminal():
    told = RecordDict({flower_app.REFUSED: ConfigRecord({"why": "no\x1b[2J" + "x" * 10**4})})
    reply = Message(told, dst_node_id=1, message_type="train")
    assert "\x1b" not in flower_app._read(reply) and len(flower_app._read(reply)) == 1000


class Grid:
    """A SuperLink of which some nodes never answer; time is what tests make of it."""

    def __init__(self, dead=(), refused=()):
        self.dead, self.refused, self.slept = set(dead), set(refused), 0.0

    def push_messages(self, messages):
        self.sent = {str(at): m.metadata.dst_node_id for at, m in enumerate(messages)}
        return [None if node in self.refused else id for id, node in self.sent.items()]

    def pull_messages(self, ids):
        for id in ids:
            if self.sent[id] in self.dead or self.slept < self.sent[id]:
                continue
            reply = Message(flower_app.to_records('"hi"', {}), 1, "train")
            reply.metadata.__dict__["_reply_to_message_id"] = id
            yield reply


@pytest.fixture
def clock(monkeypatch):
    def on(grid):
        monkeypatch.setattr(flower_app.time, "monotonic", lambda: grid.slept)
        monkeypatch.setattr(
            flower_app.time, "sleep", lambda s: setattr(grid, "slept", grid.slept + s)
        )
        return grid

    return on


def test_a_dead_site_holds_up_one_round_only(clock):
    grid, late = clock(Grid(dead={7})), set()
    asks = {node: ("{}", {}) for node in (2, 4, 7)}
    came = flower_app.exchange(grid, 0, asks, 60, late)
    assert set(came) == {2, 4} and late == {7} and grid.slept == 60
    grid.slept = 0.0
    came = flower_app.exchange(grid, 1, asks, 60, late)
    assert set(came) == {2, 4} and late == {7} and grid.slept == 8  # twice the 4 s of the slowest


def test_a_message_that_was_not_taken_is_told(clock):
    came = flower_app.exchange(
        clock(Grid(refused={4})), 0, {2: ("{}", {}), 4: ("{}", {})}, 60, set()
    )
    assert came == {2: ('"hi"', {}), 4: "the SuperLink did not take its message"}


class Broken(Grid):
    """A SuperLink that holds an answer which Flower cannot rebuild, whoever asks for it."""

    def pull_messages(self, ids):
        if any(self.sent[id] == 4 for id in ids):
            raise KeyError("no such class")
        return super().pull_messages(ids)


def test_an_answer_that_flower_cannot_rebuild_is_its_sites_own(clock):
    came = flower_app.exchange(clock(Broken()), 0, {2: ("{}", {}), 4: ("{}", {})}, 60, set())
    assert came == {2: ('"hi"', {}), 4: "Flower cannot read its answer (KeyError)"}


def test_an_error_of_flower_is_told_as_its_own():
    reply = Message(Error(code=1, reason="node unavailable"), reply_to=message())
    assert flower_app._read(reply) == "Flower: node unavailable"


def test_a_run_config_of_the_command_starts_a_run(files, tmp_path, monkeypatch):
    network = Handlers(*sites(files))
    monkeypatch.setattr(
        flower_app, "exchange", lambda grid, round, asks, seconds, late: network(round, asks)
    )
    asked = {
        "settings": as_json(config(rounds=1)), "sites": 3, "min_sites": 3, "wait": 1.0,
        "timeout": 9.0, "cache": None, "out": str(tmp_path / "run"), "force": False,
    }  # fmt: skip

    class Online:
        def get_node_ids(self):
            return network.online()

    own = Context(1, 1, {}, RecordDict(), {"fedclip": json.dumps(asked)})
    flower_app.main(Online(), own)
    assert read_adapters(tmp_path / "run" / "adapter.safetensors")[1]["rounds_done"] == 1
    asked["sites"], asked["wait"] = 4, 0.0
    own.run_config["fedclip"] = json.dumps(asked)
    with pytest.raises(ConfigError, match="3 of 4 sites connected in 0 s"):
        flower_app.main(Online(), own)
