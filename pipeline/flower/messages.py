"""What a server asks its sites in a round and what they answer, checked as it comes in."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.federation.payload import BLOCK, Encoded
from pipeline.json_files import STRANGE

FORMAT = 1  # of these messages: a server and its sites must have the same
MOST = 2**31  # rows that a client may tell of
DTYPES = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}

Arrays = dict[str, np.ndarray]
"""The numbers of a message by name; whatever carries it keeps dtype and shape."""

Counts = dict[str, dict[str, tuple[int, int]]]
"""By use ("val", "test", "train") and client: how many rows were answered right, of how many."""


class Ask(NamedTuple):
    """What a site is asked in a round; the same for every site but for work and shifts."""

    settings: dict[str, Any]  # RunConfig as JSON
    demand: dict[str, Any]  # what a cache must have been made with; empty: the site only says
    domains: tuple[str, ...]  # of all sites, in order; empty: the site only says who it is
    round: int
    work: dict[str, float]  # by client, its share of a round's steps; others do not train
    adapter: Encoded | None  # (P,) the server's; payload fp16, int8: its way from the first one
    shifts: dict[str, Tensor]  # (P,) by client, scaffold: what is added to every gradient


class Answer(NamedTuple):
    """What a site answers. Nothing in it is a row of features."""

    cache: dict[str, Any]  # names, counts and hashes: see pipeline/flower/site.py
    clients: dict[str, dict[str, Any]]  # domain, train rows; loss: sum over its steps if it trained
    right: Counts  # with the adapter received
    zero_shot: Counts  # without one; in round 0 only
    updates: dict[str, Encoded]  # (P,) of each client that trained
    text: Tensor | None  # (C, D) the class names' features, where the site only says who it is


def write_ask(ask: Ask) -> tuple[str, Arrays]:
    """A message as JSON and arrays."""
    told = {name: getattr(ask, name) for name in ("settings", "demand", "domains", "round", "work")}
    arrays = {} if ask.adapter is None else _arrays("adapter", ask.adapter)
    arrays |= {f"shift.{name}": shift.numpy() for name, shift in ask.shifts.items()}
    return json.dumps({"format": FORMAT, **told}), arrays


def read_ask(text: str, arrays: Arrays) -> Ask:
    """The inverse of write_ask. Raises ConfigError for what is no such message."""
    with reading("the server's message"):
        told = _told(text)
        encoded = None
        if "adapter" in arrays:
            encoded = _encoded("adapter", arrays, str(told["settings"]["payload"]), None)
        shifts = {
            name.removeprefix("shift."): torch.from_numpy(_numbers(array, np.float32, None))
            for name, array in arrays.items()
            if name.startswith("shift.")
        }
        work = {str(name): _fraction(share) for name, share in told["work"].items()}
        domains = tuple(str(name) for name in told["domains"])
        demand, round = dict(told["demand"]), _count(told["round"])
        return Ask(dict(told["settings"]), demand, domains, round, work, encoded, shifts)


def write_answer(answer: Answer) -> tuple[str, Arrays]:
    """A message as JSON and arrays."""
    told = {name: getattr(answer, name) for name in ("cache", "clients", "right", "zero_shot")}
    arrays = {} if answer.text is None else {"text": answer.text.numpy()}
    for name, encoded in answer.updates.items():
        arrays |= _arrays(f"update.{name}", encoded)
    # A loss may be NaN where training diverged; the update that goes with it is left out by name.
    return json.dumps({"format": FORMAT, **told}), arrays


def read_answer(text: str, arrays: Arrays, payload: str, count: int) -> Answer:
    """The inverse of write_answer, for adapters of `count` numbers.

    Raises ConfigError for what is no such message: sites are not trusted to send what they should.
    """
    with reading("its answer"):
        told = _told(text)
        clients = {
            _name(name): {
                "domain": _name(own["domain"]),
                "rows": _count(own["rows"]),
                "loss": None if own["loss"] is None else float(own["loss"]),
            }
            for name, own in told["clients"].items()
        }
        updates = {
            name: _encoded(f"update.{name}", arrays, payload, count)
            for name in clients
            if f"update.{name}" in arrays
        }
        text_features = None
        if "text" in arrays:
            text_features = torch.from_numpy(_numbers(arrays["text"], np.float32, None, 2))
        right, zero_shot = (_counts(told[name], clients) for name in ("right", "zero_shot"))
        return Answer(dict(told["cache"]), clients, right, zero_shot, updates, text_features)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns every surprise at the content of a message into one ConfigError."""
    try:
        yield
    except (*STRANGE, RecursionError) as error:
        raise ConfigError(f"{what} is not what this version sends ({error})") from error


def _told(text: str) -> dict[str, Any]:
    told = json.loads(text)
    if told["format"] != FORMAT:
        raise ConfigError(
            f"messages of format {str(told['format'])[:20]} came, here is {FORMAT}; use one "
            "version of this program at the server and all sites"
        )
    return told


def _arrays(name: str, encoded: Encoded) -> Arrays:
    arrays = {name: encoded.numbers.numpy()}
    return arrays | ({f"{name}:scales": encoded.scales.numpy()} if encoded.scales.numel() else {})


def _encoded(name: str, arrays: Arrays, payload: str, count: int | None) -> Encoded:
    numbers = _numbers(arrays[name], DTYPES[payload], count)
    blocks = -(-len(numbers) // BLOCK) if payload == "int8" else 0
    scales = arrays[f"{name}:scales"] if blocks else np.empty(0, np.float32)
    scales = _numbers(scales, np.float32, blocks)
    return Encoded(torch.from_numpy(numbers), torch.from_numpy(scales))


def _numbers(array: np.ndarray, dtype: type, count: int | None, axes: int = 1) -> np.ndarray:
    if array.dtype != dtype or array.ndim != axes or count not in (None, len(array)):
        wanted = f"{'' if count is None else f'{count:,} '}{np.dtype(dtype)} numbers"
        raise ValueError(f"{wanted} were expected, {array.shape} {array.dtype} found")
    return array


def _counts(told: dict, clients: dict) -> Counts:
    found: Counts = {}
    for use, by_client in told.items():
        found[str(use)] = {}
        for name, (right, of) in by_client.items():
            if name not in clients or _count(right) > _count(of):
                raise ValueError(f"{right} right answers of {of} for {name!r}")
            found[str(use)][name] = (right, of)
    return found


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST:
        raise ValueError(f"a count was expected, {str(value)[:40]!r} found")
    return value


def _fraction(value: object) -> float:
    if not isinstance(value, int | float) or not (math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"a share was expected, {str(value)[:40]!r} found")
    return float(value)


def _name(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > 200:
        raise ValueError(f"{str(value)[:40]!r} is no name")
    return value
