"""A site's answer as a server reads it: each field typed and bounded, one error for anything wrong.

pydantic holds types and sizes, strictly; what an answer must follow besides is checked here.
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
    Answer,
    Arrays,
    Client,
    Counts,
    encoded_of,
    load_json,
    plain,
    plain_array,
    printable,
)
from pipeline.flower.sums import checked
from pipeline.settings import RunConfig

MOST_CLIENTS = 1_000  # of one site
MOST_NAMES = 100_000  # class names or prompts of a cache
MOST_DESCRIBED, MOST_LEVELS = 100_000, 6  # characters and levels of a preprocessing
MOST_NUMBERS = 1 << 26  # of text features: 21,000 classes at width 1,024 are a third of that
LARGEST = float(np.finfo(np.float32).max)  # a loss is a sum in float32
ROUNDED = 0.01  # of a row's length: CLIP's text encoder in float16 differs by 0.001 of it


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
    hashes: Mapping[str, str] = {}  # by client of the run, of its site's cache
    groups: frozenset[frozenset[str]] = frozenset()  # the clients of each site of the run
    solve: str = ""  # as asked, and of which domains, classes and width
    scored: tuple[str, ...] = ()
    sizes: tuple[int, int] = (0, 0)


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


def _levels(value: object) -> int:
    """How deep objects and lists are nested."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_levels, inner), default=0)


_Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_is_printable)]
_Words = Annotated[str, Field(max_length=1_000), AfterValidator(_is_printable)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Names = Annotated[list[_Name], Field(min_length=1, max_length=MOST_CLIENTS)]
_Count = Annotated[int, Field(ge=0, le=MOST_ROWS)]
_Counts = Annotated[list[_Count], Field(max_length=MOST_CLIENTS)]
_Loss = Annotated[float, Field(allow_inf_nan=True)]  # NaN: none
_Losses = Annotated[list[_Loss], Field(max_length=MOST_CLIENTS)]
_Described = Annotated[
    dict[_Name, JsonValue], Field(max_length=100), AfterValidator(_shows_printable)
]
_PREPROCESSING: TypeAdapter[dict[str, Any]] = TypeAdapter(_Described)


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


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
    """The config and metrics of an answer; lists have an entry for each client."""

    round: _Count
    nonce: _Words
    content_sha256: _Digest
    clients: _Names
    domains: _Names
    examples: _Count = Field(alias="num-examples")
    train: _Counts
    val: _Counts
    test: _Counts
    domain_rows: _Counts
    loss: _Losses
    val_loss: _Losses | None = None
    right_train: _Counts | None = None
    right_val: _Counts | None = None
    right_test: _Counts | None = None
    zero_shot_train: _Counts | None = None
    zero_shot_val: _Counts | None = None
    zero_shot_test: _Counts | None = None

    @model_validator(mode="after")
    def _one_for_each(self) -> "_Reply":
        for name, value in self:
            if isinstance(value, list) and len(value) != len(self.clients):
                raise ValueError(f"{name} has {len(value)} entries for {len(self.clients)} clients")
        if len(set(self.clients)) < len(self.clients):
            raise ValueError("a client is named twice")
        for loss in (*self.loss, *(self.val_loss or ())):
            if not (math.isnan(loss) or abs(loss) <= LARGEST):
                raise ValueError("a finite loss was expected")
        return self


class _Introduction(_Reply):
    """What a site says of its cache besides, when it is asked who it is."""

    demand: str
    preprocessing: str
    dataset: _Words
    model: _Words


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
        kind = _Reply if expected.size else _Introduction
        reply = kind.model_validate({**metrics, **told})
        answer = _answer(reply)
        _follows(answer, expected)
        if expected.size:
            _counted(answer, expected)
            if expected.solve:
                own = checked(
                    expected.config,
                    answer,
                    arrays,
                    expected.solve,
                    expected.scored,
                    *expected.sizes,
                )
                return answer._replace(solved=own)
            return answer._replace(updates=_updates(answer, arrays, expected))
        if answer.right or answer.zero_shot or answer.val_loss:
            raise ValueError("it was asked who it is, and counts came")
        _no_others(arrays, ["text"])
        return answer._replace(text=_text_features(answer, arrays))
    except BadAnswer:
        raise
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        why = f"{where}: {first['msg']}" if where else first["msg"]
        raise BadAnswer(f"its answer is not what this version sends ({_short(why)})") from error
    except Exception as error:  # whatever a site sends must not end the run of the others
        raise BadAnswer(f"its answer is not what this version sends ({_short(error)})") from error


def close_texts(texts: Mapping[int, Tensor], reference: Tensor) -> list[int]:
    """The sites whose text features are the reference's up to rounding of CLIP's text encoder.

    texts      site -> (C, D) float32, finite
    reference  (C, D) float32
    """
    bound = ROUNDED * reference.norm(dim=1)
    return [n for n, text in texts.items() if bool(((text - reference).norm(dim=1) <= bound).all())]


def _answer(reply: _Reply) -> Answer:
    clients = {
        name: Client(
            reply.domains[k], {use: getattr(reply, use)[k] for use in USES}, reply.domain_rows[k],
            None if math.isnan(reply.loss[k]) else reply.loss[k],
        )
        for k, name in enumerate(reply.clients)
    }  # fmt: skip

    def counts(what: str) -> Counts:
        found = {use: getattr(reply, f"{what}_{use}") for use in USES}
        return {
            use: dict(zip(reply.clients, own, strict=True))
            for use, own in found.items()
            if own is not None
        }

    cache: dict[str, Any] = {"content_sha256": reply.content_sha256}
    if isinstance(reply, _Introduction):
        demand = load_json(reply.demand)
        _Demand.model_validate(demand)
        described = load_json(reply.preprocessing) if reply.preprocessing else None
        if described is not None:
            _PREPROCESSING.validate_python(described, strict=True)
        cache |= {"demand": demand, "preprocessing": described}
        cache |= {"dataset": reply.dataset or None, "model": reply.model or None}
    zero_shot = counts("zero_shot")
    val_loss = dict(zip(clients, reply.val_loss or (), strict=False))
    return Answer(
        cache, clients, counts("right"), zero_shot, val_loss, round=reply.round, nonce=reply.nonce
    )  # fmt: skip


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
        domain_rows[own.domain] = domain_rows.get(own.domain, 0) + sum(own.rows.values())
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
        rows = first.rows if name in expected.fixed else own.rows
        if own._replace(loss=None) != first._replace(rows=rows):
            raise BadAnswer(f"client {name!r} now has {_of(own)}, at first {_of(first)}")
        if answer.cache["content_sha256"] != expected.hashes[name]:
            raise BadAnswer("its cache is another one than when the run began")


def _counted(answer: Answer, expected: Expected) -> None:
    """That right answers came of the uses asked for, and are no more than the rows stated."""
    uses = USES if expected.config.eval == "every" else ("val", "test")
    if bool(answer.val_loss) != (expected.config.choose == "loss"):
        raise BadAnswer("validation losses came that were not asked for, or did not come")
    for name, loss in answer.val_loss.items():
        if loss < 0 or (loss >= 0 and not answer.clients[name].rows["val"]):
            raise BadAnswer(f"client {name!r} has a validation loss of {loss:g}, and "
                            f"{answer.clients[name].rows['val']:,} validation rows")  # fmt: skip
    for what, counts in (("right", answer.right), ("zero_shot", answer.zero_shot)):
        wanted = uses if what == "right" or expected.round == 0 else ()
        if set(counts) != set(wanted):
            raise BadAnswer(f"{what} counts of {', '.join(counts) or 'nothing'} came, "
                            f"of {', '.join(wanted) or 'nothing'} were expected")  # fmt: skip
        for use, by_client in counts.items():
            for name, right in by_client.items():
                rows = answer.clients[name].rows[use]
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
    rows = ", ".join(f"{n:,} {use}" for use, n in client.rows.items())
    return f"{rows} of {client.domain_rows:,} rows of {client.domain}"


def _short(value: object) -> str:
    return printable(str(value))[:200]
