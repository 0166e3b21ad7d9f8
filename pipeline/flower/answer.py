"""A site's answer: as the site writes it, and as a server reads it, each field typed and bounded.

pydantic holds types and sizes, strictly; what an answer must follow besides is checked here. In a
reply's records each field of Client is a list with an entry for each of its clients.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from flwr.app import RecordDict
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.federation.payload import Encoded
from pipeline.flower.records import (
    MOST_ROWS,
    USES,
    Arrays,
    encoded_of,
    load_json,
    named,
    plain,
    plain_array,
    printable,
    records,
)
from pipeline.flower.sums import checked
from pipeline.settings import RunConfig

MOST_CLIENTS = 1_000  # of one site
MOST_NAMES = 100_000  # class names or prompts of a cache
MOST_DESCRIBED, MOST_LEVELS = 100_000, 6  # characters and levels of a preprocessing
MOST_NUMBERS = 1 << 26  # of text features: 21,000 classes at width 1,024 are a third of that
LARGEST = float(np.finfo(np.float32).max)  # a loss is a sum in float32


class BadAnswer(ConfigError):
    """An answer that does not follow its request or what its site stated first."""


def _is_printable(text: str) -> str:
    if printable(text) != text:
        raise ValueError("printable text was expected")
    return text


def _shows_printable(value: dict[str, Any]) -> dict[str, Any]:
    shown = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(shown) > MOST_DESCRIBED or not shown.isprintable() or _levels(value) > MOST_LEVELS:
        raise ValueError(f"printable JSON of at most {MOST_DESCRIBED:,} characters and "
                         f"{MOST_LEVELS} levels was expected")  # fmt: skip
    return value


def _no_nan(loss: object) -> object:
    return None if isinstance(loss, float) and math.isnan(loss) else loss


def _finite(loss: float | None) -> float | None:
    if loss is not None and not abs(loss) <= LARGEST:
        raise ValueError("a finite loss was expected")
    return loss


def _levels(value: object) -> int:
    """How deep objects and lists are nested."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_levels, inner), default=0)


_Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_is_printable)]
_Words = Annotated[str, Field(max_length=1_000), AfterValidator(_is_printable)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Names = Annotated[list[_Name], Field(min_length=1, max_length=MOST_CLIENTS)]
_Count = Annotated[int, Field(ge=0, le=MOST_ROWS)]
_Loss = Annotated[
    Annotated[float, Field(allow_inf_nan=True)] | None,
    BeforeValidator(_no_nan),
    AfterValidator(_finite),
]
_Described = Annotated[
    dict[_Name, JsonValue], Field(max_length=100), AfterValidator(_shows_printable)
]
_PREPROCESSING: TypeAdapter[dict[str, Any]] = TypeAdapter(_Described)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Client(_Strict):
    """What a site states of one client, and how the adapter received does on the client's rows."""

    domain: _Name
    domain_rows: _Count  # rows of the domain in the site's cache
    train: _Count  # rows by use; in a partition final once the run's domains are known
    val: _Count
    test: _Count
    loss: _Loss  # sum over its steps, if it trained and that is finite
    val_loss: _Loss  # mean over its validation rows, where rounds are chosen by it
    right_train: _Count | None = None  # rows answered right
    right_val: _Count | None = None
    right_test: _Count | None = None
    zero_shot_train: _Count | None = None  # without an adapter; in round 0 only
    zero_shot_val: _Count | None = None
    zero_shot_test: _Count | None = None

    def counts(self, what: str) -> dict[str, tuple[int, int]]:
        """By use that was counted: rows answered right, of how many; what: right, zero_shot."""
        found = {use: getattr(self, f"{what}_{use}") for use in USES}
        return {use: (n, getattr(self, use)) for use, n in found.items() if n is not None}

    def stated(self) -> "Client":
        """Its domain and rows alone."""
        known = self.model_dump(include={"domain", "domain_rows", *USES})
        return self.model_construct(**known, loss=None, val_loss=None)


class Answer(NamedTuple):
    """What a site answers. Nothing in it is a row of features."""

    cache: dict[str, Any]  # names and hashes: see site.py; but for content_sha256 in a query only
    clients: dict[str, Client]
    updates: dict[str, Encoded] = {}  # (P,) of each client that trained
    text: Tensor | None = None  # (C, D) class names' features, where the site only says who it is
    round: int = 0  # of the request, as its nonce
    nonce: str = ""
    solved: dict[str, Tensor] = {}  # of a method that is solved: sums.of_site


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
    hashes: Mapping[str, str] = {}  # by client of the run, of its site's cache
    groups: frozenset[frozenset[str]] = frozenset()  # the clients of each site of the run
    solve: str = ""  # as asked, and of which domains, classes and width
    scored: tuple[str, ...] = ()
    sizes: tuple[int, int] = (0, 0)


class _Demand(_Strict):
    """What site.demand_of states: CLIP and prompts of an extracted cache, a hash of others."""

    width: int = Field(ge=1, le=1 << 16)
    class_names: list[_Name] = Field(min_length=1, max_length=MOST_NAMES)
    logit_scale: float
    text_features_sha256: _Digest | None = None
    weights_sha256: _Digest | None = None
    templates: Annotated[list[_Words], Field(min_length=1, max_length=MOST_NAMES)] | None = None
    preprocessing: _Described | None = None
    towers: _Described | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "_Demand":
        extracted = {"weights_sha256", "templates", "preprocessing"}
        given = self.model_fields_set - {"width", "class_names", "logit_scale", "towers"}
        if given not in (extracted, {"text_features_sha256"}) or None in (
            getattr(self, name) for name in given
        ):
            raise ValueError("a hash of the text features, or CLIP and prompts, were expected")
        return self


class _Reply(_Strict):
    """What is said once in an answer."""

    round: _Count
    nonce: _Words
    content_sha256: _Digest
    clients: _Names
    examples: _Count = Field(alias="num-examples")


class _Introduction(_Reply):
    """What a site says of its cache besides, when it is asked who it is."""

    demand: str
    preprocessing: str
    dataset: _Words
    model: _Words


def write_answer(answer: Answer) -> RecordDict:
    """A reply's content."""
    arrays = {} if answer.text is None else {"text": answer.text.numpy()}
    for name, encoded in answer.updates.items():
        arrays |= named(f"update.{name}", encoded)
    arrays |= {name: numbers.numpy() for name, numbers in answer.solved.items()}
    clients = answer.clients.values()
    columns = {name: [getattr(one, name) for one in clients] for name in Client.model_fields}
    metrics: dict[str, Any] = {
        name: [math.nan if value is None else value for value in column]
        for name, column in columns.items()
        if Client.model_fields[name].is_required() or column[0] is not None
    }
    metrics["num-examples"] = sum(columns["train"])  # as Flower's own strategies weigh replies
    config = {"round": answer.round, "nonce": answer.nonce, "clients": list(answer.clients)}
    config |= {"domain": metrics.pop("domain")}
    config |= {
        name: json.dumps(value) if isinstance(value, dict) else value or ""
        for name, value in answer.cache.items()
    }
    return records(arrays, metrics, config)


def read_answer(content: object, expected: Expected) -> Answer:
    """The inverse of write_answer, each field typed, bounded and held to what was stated first.

    Raises BadAnswer for anything else, whatever was sent.
    """
    try:
        if not isinstance(content, RecordDict):
            raise ValueError("a RecordDict was expected")
        arrays, metrics, told = plain(content)
        if set(metrics) & set(told):
            raise ValueError("a field came twice")
        answer = _answer({**metrics, **told}, _Reply if expected.size else _Introduction)
        _follows(answer, expected)
        if expected.size:
            _counted(answer, expected)
            if expected.solve:
                own = checked(
                    expected.config, answer.clients, arrays, expected.solve, expected.scored,
                    *expected.sizes,
                )  # fmt: skip
                return answer._replace(solved=own)
            return answer._replace(updates=_updates(answer, arrays, expected))
        if any(own != own.stated() for own in answer.clients.values()):
            raise ValueError("it was asked who it is, and counts came")
        _no_others(arrays, ["text"])
        return answer._replace(text=_text_features(answer, arrays))
    except BadAnswer:
        raise
    except Exception as error:  # whatever a site sends must not end the run of the others
        why = str(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False, include_input=False)[0]
            why = ": ".join([".".join(map(str, first["loc"])) or "content", first["msg"]])
        raise BadAnswer(f"its answer is not what this version sends ({_short(why)})") from error


def _answer(given: dict[str, Any], kind: type[_Reply]) -> Answer:
    columns = {name: given.pop(name) for name in Client.model_fields if name in given}
    reply = kind.model_validate(given)
    names = reply.clients
    for name, column in columns.items():
        whole = isinstance(column, list) and not any(value is None for value in column)
        if not whole or len(column) != len(names):
            raise ValueError(f"{name}: a list of {len(names)} was expected")
    if len(set(names)) < len(names):
        raise ValueError("a client is named twice")
    rows = ({name: column[k] for name, column in columns.items()} for k in range(len(names)))
    clients = dict(zip(names, map(Client.model_validate, rows), strict=True))
    cache: dict[str, Any] = {"content_sha256": reply.content_sha256}
    if isinstance(reply, _Introduction):
        demand = load_json(reply.demand)
        _Demand.model_validate(demand)
        described = load_json(reply.preprocessing) if reply.preprocessing else None
        if described is not None:
            _PREPROCESSING.validate_python(described, strict=True)
        cache |= {"demand": demand, "preprocessing": described}
        cache |= {"dataset": reply.dataset or None, "model": reply.model or None}
    return Answer(cache, clients, round=reply.round, nonce=reply.nonce)


def _follows(answer: Answer, expected: Expected) -> None:
    """That an answer is one to this request, of clients that the site may have."""
    if (answer.round, answer.nonce) != (expected.round, expected.nonce):
        raise BadAnswer(
            f"it answered another request (round {answer.round}, asked in round {expected.round})"
        )
    if expected.size:
        _is_of_the_run(answer, expected)
    domain_rows: dict[str, int] = {}
    for name, own in answer.clients.items():
        if not _may_be_called(name, own.domain, expected.config):
            raise BadAnswer(f"a client {name!r} of domain {own.domain!r} cannot be in this run")
        if not expected.work >= {name} and own.loss is not None:
            raise BadAnswer(f"client {name!r} was not asked to train and has a loss")
        domain_rows[own.domain] = domain_rows.get(own.domain, 0) + own.train + own.val + own.test
        if domain_rows[own.domain] > own.domain_rows:
            raise BadAnswer(
                f"its clients have {domain_rows[own.domain]:,} rows of domain {own.domain!r}, "
                f"which has {own.domain_rows:,}"
            )


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
        first = expected.stated[name]
        free = () if name in expected.fixed else USES
        if own.stated() != first.model_copy(update={use: getattr(own, use) for use in free}):
            raise BadAnswer(f"client {name!r} now has {_of(own)}, at first {_of(first)}")
        if answer.cache["content_sha256"] != expected.hashes[name]:
            raise BadAnswer("its cache is another one than when the run began")


def _counted(answer: Answer, expected: Expected) -> None:
    """That right answers came of the uses asked for, and are no more than the rows stated."""
    uses = USES if expected.config.eval == "every" else ("val", "test")
    for name, own in answer.clients.items():
        loss, by_loss = own.val_loss, expected.config.choose == "loss"
        if loss is not None and not (by_loss and own.val and loss >= 0):
            rows = f"{own.val:,} validation rows, rounds are chosen by {expected.config.choose}"
            raise BadAnswer(f"client {name!r} has a validation loss of {loss:g}: {rows}")
        for what in ("right", "zero_shot"):
            counts = own.counts(what)
            wanted = uses if what == "right" or expected.round == 0 else ()
            if set(counts) != set(wanted):
                raise BadAnswer(f"{what} counts of {', '.join(counts) or 'nothing'} came, "
                                f"of {', '.join(wanted) or 'nothing'} were expected")  # fmt: skip
            for use, (right, rows) in counts.items():
                if right > rows:
                    raise BadAnswer(f"{right:,} right answers of {rows:,} {use} rows of {name!r}")


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
    payload = expected.config.payload
    found = {
        name: encoded_of(f"update.{name}", arrays, payload, expected.size)
        for name in answer.clients
        if name in expected.work and f"update.{name}" in arrays
    }
    _no_others(arrays, [f"update.{name}{end}" for name in found for end in ("", ":scales")])
    return found


def _no_others(arrays: Arrays, expected: Sequence[str]) -> None:
    if strange := [name for name in arrays if name not in expected]:
        raise ValueError(f"an array {_short(strange[0])} was not expected")


def _of(client: Client) -> str:
    rows = ", ".join(f"{getattr(client, use):,} {use}" for use in USES)
    return f"{rows} of {client.domain_rows:,} rows of {client.domain}"


def _short(value: object) -> str:
    return printable(str(value))[:200]
