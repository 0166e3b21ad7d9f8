"""The space of a swept setting: a list of values or a range; its grammar and its draws.

On the command line `name=` is followed by one of

    a,b,c          each of these values
    a..b           from a to b: whole numbers for a whole-number setting; else fractions,
                   log-uniform where both ends are positive and differ by 10 times or more
    log:a..b  uniform:a..b  int:a..b      the same, with the kind stated
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from statistics import NormalDist

from pipeline.errors import ConfigError
from pipeline.settings import RunConfig

Value = int | float | str
RELEASED = {"iters": "rounds", "wk_iters": "local_epochs", "datapercent": "split"}
KINDS = {int: "a whole number", float: "a finite number", str: "a word"}
LARGEST = 2**63
SWEEPABLE = {each.name: each.type for each in dataclasses.fields(RunConfig) if each.type in KINDS}
"""The type of each setting that can be swept: all but held_out."""
LOG_FROM = 10.0
"""Ranges that span this factor or more, a decade, are drawn log-uniformly."""


@dataclass(frozen=True)
class Choices:
    """One of these values, all equally likely."""

    values: tuple[Value, ...]


@dataclass(frozen=True)
class Range:
    """A number from low to high, or (log) one whose logarithm is uniform."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Steps:
    """step * k for the whole numbers k from first to last, or (log) k log-uniform."""

    first: int
    last: int
    step: float = 1
    log: bool = False


@dataclass(frozen=True)
class Normal:
    """A number from the normal distribution of mean mu and standard deviation sigma."""

    mu: float
    sigma: float


Domain = Choices | Range | Steps | Normal


def parse_words(name: str, words: str) -> Domain:
    """Parses a command line's words into a domain (the grammar is at the top of this file).

    Raises ConfigError for invalid words.
    """
    ends = re.fullmatch(r"\s*(?:(\w+):)?(.*?)\.\.(.*)", words, re.DOTALL)
    if ends is None:
        if not words.strip():
            raise ConfigError(f"{name}= has no value; write {name}=a,b or {name}=low..high")
        return choices(name, words.split(","))
    how, low, high = ends.groups()
    if how not in (None, "log", "uniform", "int"):
        raise ConfigError(
            f"{name}={shown(words)}: a range starts with log:, uniform: or int:, not {how}:"
        )
    return numbers(name, low, high, how)


def choices(name: str, values: Iterable[object]) -> Choices:
    """Distinct values, in the order given; raises ConfigError for none, or an invalid one."""
    parsed = tuple(dict.fromkeys(parse_value(name, value) for value in values))
    if not parsed:
        raise ConfigError(f"{name} has an empty list of values")
    return Choices(parsed)


def numbers(name: str, low: object, high: object, how: str | None = None) -> Range | Steps:
    """A range; how is "log", "uniform", "int" or None: automatic (see the top of this file).

    Raises ConfigError for ends that are out of order, not numbers, or without a logarithm.
    """
    kind = SWEEPABLE[name]
    if kind not in (int, float):
        raise ConfigError(f"{name} takes {KINDS[kind]} and has no ranges; list its values")
    ends = parse_value(name, low), parse_value(name, high)
    asked = f"{name} from {ends[0]} to {ends[1]}"
    if ends[0] > ends[1]:
        raise ConfigError(f"{asked}: the first must be the smaller")
    if not math.isfinite(float(ends[1]) - float(ends[0])):
        raise ConfigError(f"{asked}: too far apart")
    if how == "log" and ends[0] <= 0:
        raise ConfigError(f"{asked}: a log range starts above 0")
    if kind is int or how == "int":
        if any(end != int(end) for end in ends):
            raise ConfigError(f"{asked}: int: takes whole numbers")
        return Steps(int(ends[0]), int(ends[1]), log=how == "log")
    wide = ends[0] > 0 and ends[1] / ends[0] >= LOG_FROM
    return Range(*ends, log=how == "log" or (how is None and wide))


def setting_name(word: str) -> str:
    """The RunConfig field that a word means; hyphens and the released spellings are accepted.

    Raises ConfigError, with the nearest name, for an unknown field, or one that cannot be swept.
    """
    name = word.strip().removeprefix("--").replace("-", "_")
    name = RELEASED.get(name, name)
    if name in SWEEPABLE:
        return name
    if name in {field.name for field in dataclasses.fields(RunConfig)} | {"test_envs"}:
        raise ConfigError(
            f"{name} cannot be swept: every trial trains all held-out domains of the command"
        )
    near = get_close_matches(name, [*SWEEPABLE, *RELEASED], n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SWEEPABLE)}"
    raise ConfigError(f"{shown(word)} is not a setting; {hint}")


def parse_value(name: str, raw: object) -> Value:
    """Converts `raw`, a word or a value from YAML, to the setting's type.

    Raises ConfigError if it cannot be converted.
    """
    kind = SWEEPABLE[name]
    try:
        if kind is str:
            if not isinstance(raw, str) or not raw.strip():
                raise ValueError
            return raw.strip()
        return whole_number(raw) if kind is int else read_number(raw)
    except (ValueError, OverflowError):
        hint = " (YAML reads yes, no, on and off as truth: quote it)" if kind is str else ""
        raise ConfigError(f"{name} takes {KINDS[kind]}; got {shown(raw)}{hint}") from None


def read_number(raw: object) -> float:
    """A finite number, or a word that is one; raises ValueError or OverflowError."""
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ValueError
    if isinstance(raw, str) and (not raw.isascii() or "_" in raw):
        raise ValueError  # float() accepts other alphabets' digits and 1_0
    if not math.isfinite(number := float(raw)):
        raise OverflowError
    return number + 0.0  # -0.0 would be a second name of 0.0


def whole_number(raw: object) -> int:
    """A whole number, or a word that is one; raises ValueError or OverflowError."""
    number = read_number(raw)
    if number != int(number):
        raise ValueError
    if abs(number) > LARGEST:
        raise OverflowError
    return int(number)


def shown(raw: object) -> str:
    """repr, cut to a length that fits an error's line."""
    try:
        text = repr(raw)
    except ValueError:  # an int of more than 4300 digits has no decimal form
        text = f"a {type(raw).__name__} too long to print"
    return text if len(text) <= 60 else f"{text[:57]}..."


def at(name: str, domain: Domain, u: float) -> Value:
    """The domain's quantile at u, 0 <= u < 1: a uniform u gives a draw.

    Fractions are rounded to 6 digits, so that the command that repeats them is readable.
    """
    match domain:
        case Choices(values):
            return values[int(u * len(values))]
        case Range(low, high, log):
            x = _exp_between(math.log(low), math.log(high), u) if log else low + u * (high - low)
            return in_range(domain, x)
        case Steps(first, last, log=log):
            if log:
                k = int(_exp_between(math.log(first), math.log(last + 1), u))
            else:
                k = first + int(u * (last - first + 1))
            return at_step(name, domain, min(max(k, first), last))
        case Normal(mu, sigma):
            # inv_cdf has no value at 0, which a draw of random() can be
            return round6(NormalDist(mu, sigma).inv_cdf(max(u, 2.0**-54)))


def at_step(name: str, domain: Steps, k: int) -> Value:
    """step * k as a value of the setting: 3 * 0.1 is 0.3."""
    return parse_value(name, float(f"{k * domain.step:.12g}") if domain.step != 1 else k)


def in_range(domain: Range, x: float) -> float:
    """x rounded to 6 digits, clamped to the range."""
    return min(max(round6(x), domain.low), domain.high)


def round6(x: float) -> float:
    """The nearest number of 6 significant digits; never -0."""
    return float(f"{x:.6g}") + 0.0


def ends_of(name: str, domain: Domain) -> tuple[Value, ...]:
    """The values at which a domain can be invalid: all choices, or the two ends of a range."""
    match domain:
        case Choices(values):
            return values
        case Range(low, high):
            return low, high
        case Steps(first, last):
            return at_step(name, domain, first), at_step(name, domain, last)
        case Normal(mu):
            return (mu,)


def in_words(domain: Domain) -> dict:
    """The domain in JSON's types."""
    return {"kind": type(domain).__name__.lower(), **dataclasses.asdict(domain)}


def _exp_between(low: float, high: float, u: float) -> float:
    return math.exp(low + u * (high - low))
