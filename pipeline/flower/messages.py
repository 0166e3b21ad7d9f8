"""What a server asks its sites in a round and what they answer, as JSON and arrays."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import terminal
from pipeline.errors import ConfigError
from pipeline.federation.payload import BLOCK, Encoded
from pipeline.json_files import STRANGE

FORMAT = 2  # of these messages: a server and its sites must have the same
MOST_TEXT = 1 << 21  # characters of a message's JSON: 21,000 class names are half a million
MOST_ROWS = 10**8  # that a client may have
USES = ("train", "val", "test")
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
    nonce: str = ""  # comes back in the answer: one to another request is refused


class Client(NamedTuple):
    """What a site states of one client."""

    domain: str
    rows: dict[str, int]  # by use; in a partition final once the run's domains are known
    domain_rows: int  # rows of the domain in the site's cache
    loss: float | None = None  # sum over its steps if it trained, and if that is finite


class Answer(NamedTuple):
    """What a site answers. Nothing in it is a row of features."""

    cache: dict[str, Any]  # names, counts and hashes: see pipeline/flower/site.py
    clients: dict[str, Client]
    right: Counts  # with the adapter received
    zero_shot: Counts  # without one; in round 0 only
    updates: dict[str, Encoded] = {}  # (P,) of each client that trained
    text: Tensor | None = None  # (C, D) class names' features, where the site only says who it is
    round: int = 0  # of the request, as its nonce
    nonce: str = ""


def write_ask(ask: Ask) -> tuple[str, Arrays]:
    """A message as JSON and arrays."""
    names = ("settings", "demand", "domains", "round", "work", "nonce")
    told = {name: getattr(ask, name) for name in names}
    arrays = {} if ask.adapter is None else _arrays("adapter", ask.adapter)
    arrays |= {f"shift.{name}": shift.numpy() for name, shift in ask.shifts.items()}
    return json.dumps({"format": FORMAT, **told}), arrays


def read_ask(text: str, arrays: Arrays) -> Ask:
    """The inverse of write_ask. Raises ConfigError for what is no such message."""
    with reading("the server's message"):
        told = load_json(text)
        if told["format"] != FORMAT:
            raise ConfigError(
                f"messages of format {str(told['format'])[:20]} came, here is {FORMAT}; use one "
                "version of this program at the server and all sites"
            )
        encoded = None
        if "adapter" in arrays:
            encoded = _encoded("adapter", arrays, str(told["settings"]["payload"]))
        shifts = {
            name.removeprefix("shift."): torch.from_numpy(plain_array(array, np.float32, None))
            for name, array in arrays.items()
            if name.startswith("shift.")
        }
        work = {str(name): _fraction(share) for name, share in told["work"].items()}
        domains = tuple(str(name) for name in told["domains"])
        demand, round, nonce = dict(told["demand"]), _round(told["round"]), str(told["nonce"])
        return Ask(dict(told["settings"]), demand, domains, round, work, encoded, shifts, nonce)


def write_answer(answer: Answer) -> tuple[str, Arrays]:
    """A message as JSON and arrays."""
    names = ("round", "nonce", "cache", "right", "zero_shot")
    told = {name: getattr(answer, name) for name in names}
    told["clients"] = {name: client._asdict() for name, client in answer.clients.items()}
    arrays = {} if answer.text is None else {"text": answer.text.numpy()}
    for name, encoded in answer.updates.items():
        arrays |= _arrays(f"update.{name}", encoded)
    return json.dumps({"format": FORMAT, **told}, allow_nan=False), arrays


def load_json(text: object) -> Any:
    """JSON without NaN and Infinity. Raises ValueError, also for what is too long or no text."""
    if not isinstance(text, str) or len(text) > MOST_TEXT:
        raise ValueError(f"JSON of at most {MOST_TEXT:,} characters was expected")

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not a number of JSON")

    return json.loads(text, parse_constant=refuse)


def plain_array(array: object, dtype: type, shape: tuple[int, ...] | None) -> np.ndarray:
    """A copy of an array of exactly this dtype and shape; shape None: one axis of any length.

    Raises ValueError for any other object, before anything is copied.
    """
    found = getattr(array, "shape", None), getattr(array, "dtype", type(array).__name__)
    if type(array) is not np.ndarray or array.dtype != dtype or (
        array.ndim != 1 if shape is None else array.shape != shape
    ):  # fmt: skip
        wanted = "" if shape is None else f" of shape {shape}"
        raise ValueError(f"{np.dtype(dtype)} numbers{wanted} were expected, {found} found")
    return np.array(array, dtype, order="C", copy=True)


def printable(text: str) -> str:
    """A text of strangers as one line of at most 1,000 characters, as terminal.printable."""
    return terminal.printable(text)[:1000]


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns every surprise at the content of a message into one ConfigError."""
    try:
        yield
    except (*STRANGE, RecursionError) as error:
        raise ConfigError(f"{what} is not what this version sends ({error})") from error


def _arrays(name: str, encoded: Encoded) -> Arrays:
    arrays = {name: encoded.numbers.numpy()}
    return arrays | ({f"{name}:scales": encoded.scales.numpy()} if encoded.scales.numel() else {})


def _encoded(name: str, arrays: Arrays, payload: str) -> Encoded:
    numbers = plain_array(arrays[name], DTYPES[payload], None)
    blocks = -(-len(numbers) // BLOCK) if payload == "int8" else 0
    scales = arrays[f"{name}:scales"] if blocks else np.empty(0, np.float32)
    scales = plain_array(scales, np.float32, (blocks,))
    return Encoded(torch.from_numpy(numbers), torch.from_numpy(scales))


def _round(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a round was expected, {str(value)[:40]!r} found")
    return value


def _fraction(value: object) -> float:
    if not isinstance(value, int | float) or not (math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"a share was expected, {str(value)[:40]!r} found")
    return float(value)
