"""The rounds of federation/round.py as a Flower ClientApp and ServerApp; the only flwr importer.

Flower starts a new Python process for every message, so torch is imported only where a message is
answered, and what a client keeps from round to round lies in the context's state.
"""

import json
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # flwr reads it when it is imported

from flwr.app import (  # noqa: E402
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402

from pipeline.places import HOME
from pipeline.terminal import log_to, printable_lines  # noqa: E402

LOG = logging.getLogger(__name__)

TOLD, NUMBERS, REFUSED, KEPT = "fedclip", "numbers", "refused", "kept."
_HEADER = re.compile(  # as numpy.lib.format writes version 1.0
    rb"\x93NUMPY\x01\x00..\{'descr': '(<f4|<f2|\|i1)', 'fortran_order': False, "
    rb"'shape': \((\d{1,10}, ?(?:\d{1,10})?)\), \} *\n",
    re.DOTALL,
)
Came = tuple[str, dict[str, np.ndarray]] | str
GRACE = 5.0  # seconds after a round's end in which Flower still delivers its messages
PAUSE = 0.5  # seconds between two looks for answers or sites

client_app = ClientApp()  # two plain assignments: `flwr run` looks for these names unimported
server_app = ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One message of a server, answered from the cache that the node's config names."""
    from pipeline.flower.messages import read_ask, write_answer
    from pipeline.flower.site import answer, reason, site_of

    cache = Path(str(context.node_config.get("cache", "")))
    try:
        site = site_of(context.node_config)
        ask = read_ask(*from_records(message.content))
        told, kept = answer(site, ask, _read_kept(context.state))
    except Exception as error:
        if not hasattr(error, "exit_code"):  # a bug: its traceback is for this site's log
            raise
        with log_to("stdout"):
            LOG.warning(f"refused: {error}")
        content = RecordDict({REFUSED: ConfigRecord({"why": reason(cache, error)})})
        return Message(content, reply_to=message)
    _write_kept(context.state, kept)
    rows = sum(client.rows["train"] for client in told.clients.values())
    content = to_records(*write_answer(told))
    content["metrics"] = MetricRecord({"num-examples": rows})  # for Flower's mods and strategies
    return Message(content, reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """A run: what it is lies under `fedclip` in the run config, as cli_flower.py writes it."""
    from cache.store import read_table
    from pipeline.flower.server import Terms, serve
    from pipeline.runs.results import table
    from pipeline.settings import from_json

    asked = json.loads(str(context.run_config[TOLD]))
    config, least, seconds = from_json(asked["settings"]), asked["min_sites"], asked["timeout"]
    held = read_table(Path(asked["cache"])) if asked["cache"] else None
    out, late = Path(asked["out"]) if asked["out"] else None, set[int]()
    with log_to("stdout"):  # the log that `flwr run --stream` shows
        _wait_for(grid, asked["sites"], asked["wait"])
        document = serve(
            config,
            lambda round, asks: exchange(grid, round, asks, seconds, late),
            lambda: list(grid.get_node_ids()),
            held,
            Terms(least, HOME / "runs", out, asked["force"]),
        )
    show(table(document))
    show(f"the run is in {document['run']}")


def exchange(
    grid: Grid, round: int, asks: Mapping[int, tuple[str, dict[str, np.ndarray]]], seconds: float,
    late: set[int],
) -> dict[int, Came]:  # fmt: skip
    """Sends every site its message and gathers the answers of at most `seconds`.

    late  sites that did not answer last time: they are waited for twice as long as the others took,
          not longer, so that a dead one does not hold up every round; changed
    """
    messages = [
        Message(to_records(*parts), node, "train", ttl=seconds + GRACE, group_id=str(round))
        for node, parts in asks.items()
    ]
    sent = [*grid.push_messages(messages), *[None] * len(asks)]  # of what is too large, nothing
    waiting = {id: node for id, node in zip(sent, asks, strict=False) if id is not None}
    unsent = set(asks) - set(waiting.values())
    came: dict[int, Came] = dict.fromkeys(unsent, "the SuperLink did not take its message")
    begun, allowed = time.monotonic(), seconds
    while waiting and time.monotonic() - begun < allowed:
        for id, node in list(waiting.items()):
            found = _pulled(grid, id)
            if found is None:
                continue
            came[node] = found
            del waiting[id]
            if set(waiting.values()) <= late:
                allowed = min(allowed, 2 * (time.monotonic() - begun))
        if waiting:
            time.sleep(PAUSE)
    late.clear()
    late.update(waiting.values())
    return came


def to_records(text: str, arrays: Mapping[str, np.ndarray]) -> RecordDict:
    """A message's JSON and arrays as Flower carries them."""
    numbers = ArrayRecord({name: Array(np.ascontiguousarray(a)) for name, a in arrays.items()})
    return RecordDict({TOLD: ConfigRecord({"json": text}), NUMBERS: numbers})


def from_records(content: RecordDict) -> tuple[str, dict[str, np.ndarray]]:
    """The inverse of to_records. Raises ConfigError for content of another kind."""
    from pipeline.flower.messages import reading

    with reading("a message"):
        text = content.config_records[TOLD]["json"]
        if not isinstance(text, str):
            raise ValueError(f"its JSON is {type(text).__name__}")
        arrays = content.array_records[NUMBERS]
        return text, {name: _array(array.data) for name, array in arrays.items()}


def show(message: str) -> None:
    """To the log that `flwr run --stream` shows."""
    print(printable_lines(message), flush=True)


def _wait_for(grid: Grid, sites: int, seconds: float) -> None:
    from pipeline.errors import ConfigError

    end, before = time.monotonic() + seconds, -1
    while (there := len(list(grid.get_node_ids()))) < sites:
        if there != before:
            LOG.info(f"{there} of {sites} sites are connected")
        if time.monotonic() > end:
            raise ConfigError(f"{there} of {sites} sites connected in {seconds:g} s (--wait)")
        before = there
        time.sleep(PAUSE)


def _pulled(grid: Grid, id: str) -> Came | None:
    """The answer to one message, or why there is none; None: not yet.

    One by one, because Flower rebuilds a site's objects here: what it cannot rebuild is that site's
    fault, and is raised for all messages that were asked for together.
    """
    try:
        replies = list(grid.pull_messages([id]))
    except Exception as error:
        return f"Flower cannot read its answer ({type(error).__name__})"
    return _read(replies[0]) if replies else None


def _read(reply: Message) -> Came:
    if reply.has_error():
        return f"Flower: {reply.error.reason}"
    from pipeline.flower.messages import printable

    try:
        if reply.has_error():
            return printable(f"Flower: {reply.error.reason}")
        if REFUSED in reply.content:
            return printable(str(reply.content.config_records[REFUSED]["why"]))
        return from_records(reply.content)
    except Exception as error:  # whatever a site sends must not end the run of the others
        return printable(str(error))


def _array(data: bytes) -> np.ndarray:
    """The array of an .npy of float32, float16 or int8, one or two axes; nothing else is read.

    numpy's own reader evaluates the header as Python, and raises of it what Python does.
    """
    header = _HEADER.match(data)
    if header is None:
        raise ValueError("an array is not an .npy of float32, float16 or int8")
    dtype, shape = np.dtype(header[1].decode()), tuple(int(n) for n in header[2].split(b",") if n)
    if len(data) - header.end() != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array has {len(data):,} bytes, not those of shape {shape} {dtype}")
    return np.frombuffer(data, dtype, offset=header.end()).reshape(shape).copy()


def _read_kept(state: RecordDict) -> dict[str, dict]:
    import torch

    return {
        name.removeprefix(KEPT): {
            part: torch.from_numpy(array.numpy().copy()) for part, array in record.items()
        }
        for name, record in state.array_records.items()
        if name.startswith(KEPT)
    }


def _write_kept(state: RecordDict, kept: Mapping[str, dict]) -> None:
    for name, parts in kept.items():
        arrays = {part: Array(np.asarray(tensor.numpy())) for part, tensor in parts.items()}
        state[f"{KEPT}{name}"] = ArrayRecord(arrays)
