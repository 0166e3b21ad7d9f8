"""What a server asks its sites, as Flower's ArrayRecord and ConfigRecord, and what records hold.

Every message and reply has the three records that Flower's own strategies use: `arrays`, `metrics`
and `config`.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from pipeline import terminal
from pipeline.errors import ConfigError
from pipeline.federation.payload import BLOCK, Encoded
from pipeline.json_files import STRANGE

MOST_TEXT = 1 << 21  # characters of a JSON text: 21,000 class names are half a million
MOST_ROWS = 10**8  # that a client may have
USES = ("train", "val", "test")
DTYPES = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
_HEADER = re.compile(  # as numpy.lib.format writes version 1.0
    rb"\x93NUMPY\x01\x00..\{'descr': '(<f8|<f4|<f2|\|i1)', 'fortran_order': False, "
    rb"'shape': \((\d{1,10}, ?(?:\d{1,10})?)\), \} *\n",
    re.DOTALL,
)

Arrays = dict[str, np.ndarray]
"""The numbers of a message by name."""


class Ask(NamedTuple):
    """What a site is asked; the same for every site but for work, shifts and nonce."""

    demand: dict[str, Any]  # what a cache must have been made with; empty: the site only says
    domains: tuple[str, ...]  # of all sites, in order; empty: the site only says who it is
    round: int
    work: dict[str, float]  # by client, its share of a round's steps; others do not train
    adapter: Encoded | None  # (P,) the server's; payload fp16, int8: its way from the first one
    shifts: dict[str, Tensor] = {}  # (P,) by client, scaffold: what is added to every gradient
    nonce: str = ""  # comes back in the answer: one to another request is refused
    solve: str = ""  # of a method that is solved (sums.py): what of_site is to answer
    sums: dict[str, Tensor] = {}  # by domain, "" for any: packed sums, (n,) float64
    metric: Tensor | None = None  # ((D + 1) D,) start closed-form: root and mean of its Metric


def write_ask(ask: Ask) -> RecordDict:
    """A message's content."""
    arrays = {} if ask.adapter is None else named("adapter", ask.adapter)
    arrays |= {f"shift.{name}": shift.numpy() for name, shift in ask.shifts.items()}
    arrays |= {f"sums.{domain}": sums.numpy() for domain, sums in ask.sums.items()}
    arrays |= {} if ask.metric is None else {"metric": ask.metric.numpy()}
    config = {
        "solve": ask.solve, "round": ask.round, "nonce": ask.nonce,
        "demand": json.dumps(ask.demand), "domains": list(ask.domains), "clients": list(ask.work),
        "shares": [float(share) for share in ask.work.values()],
    }  # fmt: skip
    return records(arrays, {}, config)


def read_ask(content: RecordDict, payload: str) -> Ask:
    """The inverse of write_ask. Raises ConfigError for what is no such message."""
    with reading("the server's message"):
        arrays, _, told = plain(content)
        shares = [_fraction(share) for share in told["shares"]]
        return Ask(
            demand=dict(load_json(told["demand"])),
            domains=tuple(map(str, told["domains"])),
            round=_round(told["round"]),
            work=dict(zip(map(str, told["clients"]), shares, strict=True)),
            adapter=encoded_of("adapter", arrays, payload, None) if "adapter" in arrays else None,
            shifts=_under("shift.", arrays, np.float32),
            nonce=str(told["nonce"]),
            solve=str(told["solve"]),
            sums=_under("sums.", arrays, np.float64),
            metric=_under("metric", arrays, np.float32).get(""),
        )


def records(arrays: Arrays, metrics: dict[str, Any], config: dict[str, Any]) -> RecordDict:
    """The three records of a message."""
    made = {name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return RecordDict({
        "arrays": ArrayRecord(made), "metrics": MetricRecord(metrics),
        "config": ConfigRecord(config),
    })  # fmt: skip


def plain(content: RecordDict) -> tuple[Arrays, dict[str, Any], dict[str, Any]]:
    """Arrays, metrics and config of a message. Raises ValueError, KeyError for other content."""
    if set(content) != {"arrays", "metrics", "config"}:
        raise ValueError(f"records {printable(', '.join(content))} came")
    arrays = {
        name: read_array(array.data) for name, array in content.array_records["arrays"].items()
    }
    return arrays, dict(content.metric_records["metrics"]), dict(content.config_records["config"])


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


def encoded_of(name: str, arrays: Mapping[str, Any], payload: str, size: int | None) -> Encoded:
    """P numbers as they travelled; size None: of any P. Raises ValueError for anything else."""
    numbers = plain_array(arrays[name], DTYPES[payload], None if size is None else (size,))
    blocks = -(-len(numbers) // BLOCK) if payload == "int8" else 0
    scales = arrays.get(f"{name}:scales")
    if (scales is None) == bool(blocks):
        raise ValueError(f"{name} came {'without' if blocks else 'with'} scales")
    scales = plain_array(scales, np.float32, (blocks,)) if blocks else np.empty(0, np.float32)
    return Encoded(torch.from_numpy(numbers), torch.from_numpy(scales))


def read_array(data: bytes) -> np.ndarray:
    """The array of an .npy of float64, float32, float16 or int8, one or two axes; nothing else.

    numpy's own reader evaluates the header as Python, and raises of it what Python does.
    """
    header = _HEADER.match(data)
    if header is None:
        raise ValueError("an array is not an .npy of float64, float32, float16 or int8")
    dtype, shape = np.dtype(header[1].decode()), tuple(int(n) for n in header[2].split(b",") if n)
    if len(data) - header.end() != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array has {len(data):,} bytes, not those of shape {shape} {dtype}")
    return np.frombuffer(data, dtype, offset=header.end()).reshape(shape)


def printable(text: str) -> str:
    """A text of strangers as one line of at most 1,000 characters, as terminal.printable."""
    return terminal.printable(text)[:1000]


def named(name: str, encoded: Encoded) -> Arrays:
    """The arrays of P numbers as they travel."""
    arrays = {name: encoded.numbers.numpy()}
    return arrays | ({f"{name}:scales": encoded.scales.numpy()} if encoded.scales.numel() else {})


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns every surprise at the content of a message into one ConfigError."""
    try:
        yield
    except (*STRANGE, RecursionError) as error:
        raise ConfigError(f"{what} is not what this version sends ({error})") from error


def _under(prefix: str, arrays: Arrays, dtype: type) -> dict[str, Tensor]:
    """The vectors whose names begin so, by the rest of their names."""
    return {
        name.removeprefix(prefix): torch.from_numpy(plain_array(array, dtype, None))
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _round(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a round was expected, {str(value)[:40]!r} found")
    return value


def _fraction(value: object) -> float:
    if not isinstance(value, int | float) or not (math.isfinite(value) and 0 <= value <= 1):
        raise ValueError(f"a share was expected, {str(value)[:40]!r} found")
    return float(value)
