"""A site's answer as a server reads it: a reader for each field, one error for anything wrong."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.federation.payload import BLOCK, Encoded
from pipeline.flower.messages import (
    DTYPES,
    FORMAT,
    MOST_ROWS,
    USES,
    Answer,
    Arrays,
    Client,
    Counts,
    load_json,
    plain_array,
    printable,
)
from pipeline.settings import RunConfig

MOST_CLIENTS = 1_000  # of one site
MOST_NAMES = 100_000  # class names or prompts of a cache
MOST_NUMBERS = 1 << 26  # of text features: 21,000 classes at width 1,024 are a third of that
LARGEST = float(np.finfo(np.float32).max)  # a loss is a sum in float32
FIXED = ("demand", "preprocessing", "dataset", "model", "content_sha256")  # facts of a cache
ROUNDED = 0.01  # of a row's length: CLIP's text encoder in float16 differs by 0.001 of it

Reader = Callable[[Any], Any]
"""JSON -> the value; raises ValueError saying what was expected and what was found."""


class BadAnswer(ConfigError):
    """An answer that does not follow its request or what its site stated first."""


class Expected(NamedTuple):
    """What an answer must follow: the request, and what sites stated first."""

    config: RunConfig
    round: int
    nonce: str  # of the request: an answer to another one is refused
    size: int = 0  # P; 0: the site is only asked who it is
    work: frozenset[str] = frozenset()  # clients that were asked to train
    own: frozenset[str] | None = None  # the site's clients; None: it is not known yet
    stated: Mapping[str, Client] = {}  # by client of the run
    fixed: frozenset[str] = frozenset()  # clients whose rows by use are fixed
    facts: Mapping[str, dict[str, Any]] = {}  # by client of the run, of its site's cache
    groups: frozenset[frozenset[str]] = frozenset()  # the clients of each site of the run


def read_answer(text: object, arrays: object, expected: Expected) -> Answer:
    """The inverse of write_answer, each field typed, bounded and held to what was stated first.

    Raises BadAnswer for anything else, whatever was sent.
    """
    try:
        told = _ANSWER(load_json(text))
        if not isinstance(arrays, dict) or not all(isinstance(name, str) for name in arrays):
            raise ValueError("arrays by name were expected")
        answer = Answer(**{name: told[name] for name in told if name != "format"})
        _follows(answer, expected)
        if expected.size:
            _counted(answer, expected)
            return answer._replace(updates=_updates(answer, arrays, expected))
        if answer.right or answer.zero_shot:
            raise ValueError("it was asked who it is, and counts came")
        _no_others(arrays, ["text"])
        return answer._replace(text=_text_features(answer, arrays))
    except BadAnswer:
        raise
    except Exception as error:  # whatever a site sends must not end the run of the others
        raise BadAnswer(f"its answer is not what this version sends ({_short(error)})") from error


def close_texts(texts: Mapping[int, Tensor], reference: Tensor) -> list[int]:
    """The sites whose text features are the reference's up to rounding of CLIP's text encoder.

    texts      site -> (C, D) float32, finite
    reference  (C, D) float32
    """
    bound = ROUNDED * reference.norm(dim=1)
    return [n for n, text in texts.items() if bool(((text - reference).norm(dim=1) <= bound).all())]


def _follows(answer: Answer, expected: Expected) -> None:
    """That an answer is one to this request, of clients that the site may have."""
    if (answer.round, answer.nonce) != (expected.round, expected.nonce):
        raise BadAnswer(
            f"it answered another request (round {answer.round}, asked in round {expected.round})"
        )
    if not answer.clients:
        raise BadAnswer("its answer names no client")
    if expected.size:
        _is_of_the_run(answer, expected)
    domain_rows: dict[str, int] = {}
    for name, own in answer.clients.items():
        if not _may_be_called(name, own.domain, expected.config):
            raise BadAnswer(f"a client {name!r} of domain {own.domain!r} cannot be in this run")
        if not expected.work >= {name} and own.loss is not None:
            raise BadAnswer(f"client {name!r} was not asked to train and has a loss")
        domain_rows[own.domain] = domain_rows.get(own.domain, 0) + sum(own.rows.values())
        if domain_rows[own.domain] > own.domain_rows:
            raise BadAnswer(
                f"its clients have {domain_rows[own.domain]:,} rows of domain {own.domain!r}, "
                f"which has {own.domain_rows:,}"
            )
    rows, sum_of_clients = answer.cache["rows"], sum(domain_rows.values())
    if rows != sum_of_clients:
        raise BadAnswer(f"its cache has {rows:,} rows, its clients {sum_of_clients:,}")


def _is_of_the_run(answer: Answer, expected: Expected) -> None:
    names = frozenset(answer.clients)
    allowed = expected.own if expected.own is not None else names
    for name in answer.clients:
        if name not in expected.stated:
            raise BadAnswer(f"the run began without client {name!r}")
        if name not in allowed:
            raise BadAnswer(f"another site has a client {name!r} as well")
    if names != allowed or names not in expected.groups:
        raise BadAnswer(f"it answers for {', '.join(sorted(names))} only, not for all its clients")
    for name, own in answer.clients.items():
        first, facts = expected.stated[name], expected.facts[name]
        rows = first.rows if name in expected.fixed else own.rows
        if own._replace(loss=None) != first._replace(rows=rows):
            raise BadAnswer(f"client {name!r} now has {_of(own)}, at first {_of(first)}")
        for field in FIXED:
            if _canonical(answer.cache[field]) != _canonical(facts[field]):
                raise BadAnswer(f"the {field} of its cache changed since the run began")


def _counted(answer: Answer, expected: Expected) -> None:
    """That right answers are of exactly the rows which the site stated."""
    uses = USES if expected.config.eval == "every" else ("val", "test")
    for what, counts in (("right", answer.right), ("zero_shot", answer.zero_shot)):
        wanted = uses if what == "right" or expected.round == 0 else ()
        if set(counts) != set(wanted):
            raise BadAnswer(f"{what} counts of {', '.join(counts) or 'nothing'} came, "
                            f"of {', '.join(wanted) or 'nothing'} were expected")  # fmt: skip
        for use, by_client in counts.items():
            if set(by_client) != set(answer.clients):
                raise BadAnswer(f"{what} counts of other clients than its own came")
            for name, (right, of) in by_client.items():
                rows = answer.clients[name].rows[use]
                if of != rows or right > rows:
                    raise BadAnswer(
                        f"{right:,} right answers of {of:,} {use} rows of {name!r}, "
                        f"which has {rows:,}"
                    )


def _may_be_called(name: str, domain: str, config: RunConfig) -> bool:
    if domain in config.held_out[0]:
        return False
    if config.partition == "domain":
        return name == domain
    number = name.removeprefix(f"{domain}/")
    return name != number and re.fullmatch(r"0|[1-9]\d{0,6}", number, re.ASCII) is not None and (
        int(number) < config.clients
    )  # fmt: skip


def _text_features(answer: Answer, arrays: Arrays) -> Tensor:
    demand = answer.cache["demand"]
    shape = (len(demand["class_names"]), demand["width"])
    if "text" not in arrays:
        raise BadAnswer("it did not send its text features")
    if math.prod(shape) > MOST_NUMBERS:
        raise ValueError(f"text features of shape {shape} are over {MOST_NUMBERS:,} numbers")
    text = plain_array(arrays["text"], np.float32, shape)
    if not np.isfinite(text).all() or not text.any(axis=1).all():
        raise BadAnswer("its text features are not all finite, or a row is zero")
    hashed = demand.get("text_features_sha256")
    if hashed is not None and hashed != hashlib.sha256(text).hexdigest():
        raise BadAnswer("its text features are not those that its cache's facts name")
    return torch.from_numpy(text)


def _updates(answer: Answer, arrays: Arrays, expected: Expected) -> dict[str, Encoded]:
    found = {
        name: _encoded(f"update.{name}", arrays, expected)
        for name in answer.clients
        if name in expected.work and f"update.{name}" in arrays
    }
    _no_others(arrays, [f"update.{name}{end}" for name in found for end in ("", ":scales")])
    return found


def _encoded(name: str, arrays: Arrays, expected: Expected) -> Encoded:
    payload = expected.config.payload
    numbers = plain_array(arrays[name], DTYPES[payload], (expected.size,))
    blocks = -(-expected.size // BLOCK) if payload == "int8" else 0
    if not blocks and f"{name}:scales" in arrays:
        raise ValueError(f"no scales were expected with {payload}")
    scales = np.empty(0, np.float32)
    if blocks:
        if f"{name}:scales" not in arrays:
            raise ValueError(f"{name} came without its {blocks:,} scales")
        scales = plain_array(arrays[f"{name}:scales"], np.float32, (blocks,))
    return Encoded(torch.from_numpy(numbers), torch.from_numpy(scales))


def _no_others(arrays: Arrays, expected: list[str]) -> None:
    if strange := [name for name in arrays if name not in expected]:
        raise ValueError(f"an array {_short(strange[0])} was not expected")


def _of(client: Client) -> str:
    rows = ", ".join(f"{n:,} {use}" for use, n in client.rows.items())
    return f"{rows} of {client.domain_rows:,} rows of {client.domain}"


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _short(value: object) -> str:
    return printable(str(value))[:200]


# Readers: each returns the value, or raises ValueError.


def _expected(what: str, found: object) -> ValueError:
    return ValueError(f"{what} was expected, {_short(repr(found))[:60]} found")


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MOST_ROWS:
        raise _expected(f"a count of at most {MOST_ROWS:,}", value)
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float) or not abs(value) <= LARGEST:  # type: ignore[arg-type]
        raise _expected("a finite number", value)
    return float(value)  # type: ignore[arg-type]


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= 200:
        raise _expected("a printable name of at most 200 characters", value)
    return value


def _words(value: object) -> str:
    if not isinstance(value, str) or len(value) > 2_000 or printable(value) != value:
        raise _expected("a printable text of at most 2,000 characters", value)
    return value


def _digest(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise _expected("a SHA-256", value)
    return value


def _scalar(value: object) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _words(value)
    _number(value)
    return value  # as it came: 1 stays whole


def _described(value: object, depth: int = 4) -> object:
    """JSON of few levels and words, as a preprocessing is described."""
    if isinstance(value, dict | list) and depth and len(value) <= 100:
        if isinstance(value, list):
            return [_described(item, depth - 1) for item in value]
        return {_name(name): _described(item, depth - 1) for name, item in value.items()}
    return _scalar(value)


def _or_none(read: Reader) -> Reader:
    return lambda value: None if value is None else read(value)


def _list_of(read: Reader, most: int) -> Reader:
    def reader(value: object) -> list[Any]:
        if not isinstance(value, list) or not 0 < len(value) <= most:
            raise _expected(f"a list of 1 to {most:,}", value)
        return [read(item) for item in value]

    return reader


def _map_of(read: Reader, most: int, key: Reader = _name) -> Reader:
    def reader(value: object) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > most:
            raise _expected(f"an object of at most {most:,} fields", value)
        return {key(name): read(item) for name, item in value.items()}

    return reader


def _fields(made: Callable[..., Any] = dict, /, **readers: Reader) -> Reader:
    """Exactly these fields; an error names the field."""

    def reader(value: object) -> Any:
        if not isinstance(value, dict) or set(value) != set(readers):
            raise _expected(f"an object of {', '.join(readers)}", value)
        found = {}
        for name, read in readers.items():
            try:
                found[name] = read(value[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return made(**found)

    return reader


def _one_of(*readers: Reader) -> Reader:
    """The first reader that takes the value; else the last one's error."""

    def reader(value: object) -> Any:
        for read in readers[:-1]:
            try:
                return read(value)
            except ValueError:
                continue
        return readers[-1](value)

    return reader


def _width(value: object) -> int:
    if type(value) is not int or not 1 <= value <= 1 << 16:
        raise _expected("a width of 1 to 65,536", value)
    return value


def _format(value: object) -> int:
    if value != FORMAT:
        raise BadAnswer(
            f"messages of format {_short(value)[:20]} came, here is {FORMAT}; use one version of "
            "this program at the server and all sites"
        )
    return FORMAT


def _use(value: object) -> str:
    if value not in USES:
        raise _expected(f"one of {', '.join(USES)}", value)
    return str(value)


def _pair(value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise _expected("right answers and rows", value)
    return _count(value[0]), _count(value[1])


_COMMON = {"width": _width, "class_names": _list_of(_name, MOST_NAMES), "logit_scale": _number}
_DEMAND = _one_of(
    _fields(**_COMMON, text_features_sha256=_digest),
    _fields(
        **_COMMON,
        weights_sha256=_digest,
        templates=_list_of(_words, MOST_NAMES),
        preprocessing=_map_of(_described, 100),
    ),
)
_CACHE = _fields(
    demand=_DEMAND,
    preprocessing=_or_none(_map_of(_described, 100)),
    dataset=_or_none(_name),
    model=_or_none(_name),
    content_sha256=_digest,
    rows=_count,
)
_CLIENT = _fields(
    Client,
    domain=_name,
    rows=_fields(**dict.fromkeys(USES, _count)),
    domain_rows=_count,
    loss=_or_none(_number),
)
_COUNTS: Callable[[object], Counts] = _map_of(_map_of(_pair, MOST_CLIENTS), 3, _use)
_ANSWER = _fields(
    format=_format,
    round=_count,
    nonce=_words,
    cache=_CACHE,
    clients=_map_of(_CLIENT, MOST_CLIENTS),
    right=_COUNTS,
    zero_shot=_COUNTS,
)
