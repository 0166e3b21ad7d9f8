"""One parameter of a W&B sweep: its words, and the domain that they mean."""

import math
from collections.abc import Callable
from difflib import get_close_matches

from pipeline.errors import ConfigError
from pipeline.sweeps.space import Domain, Normal, Range, Steps, choices, numbers
from pipeline.sweeps.values import read_number, shown, sweepable

KEYS = ("value", "values", "min", "max", "mu", "sigma", "q", "distribution")
DISTRIBUTIONS = ("constant", "categorical", "int_uniform", "uniform", "q_uniform")
DISTRIBUTIONS += ("log_uniform", "log_uniform_values", "normal")


def parameter(name: str, words: dict, say: Callable[[str], None]) -> Domain:
    """What `words`, the mapping under a parameter's name, lets the setting be.

    say  gets a sentence where the words mean something else here than in W&B
    Raises ConfigError for words that are unknown, unsupported or missing.
    """
    where = f"parameters: {name}"
    if "parameters" in words:
        raise ConfigError(f"{where}: nested parameters are not supported; settings are flat")
    refuse_unknown(words, KEYS, where)
    how = words.get("distribution") or _implied(name, words, where, say)
    if how not in DISTRIBUTIONS:
        raise ConfigError(
            f"{where}: distribution {shown(how)} is not supported; there are "
            f"{', '.join(DISTRIBUTIONS)}"
        )
    match how:
        case "constant":
            return choices(name, [_need(words, "value", where)])
        case "categorical":
            values = _need(words, "values", where)
            if not isinstance(values, list):
                raise ConfigError(f"{where}: values is a {type(values).__name__}, not a list")
            return choices(name, values)
        case "normal":
            return _normal(name, words, where)
    low, high = _need(words, "min", where), _need(words, "max", where)
    match how:
        case "int_uniform":
            return numbers(name, low, high, "int")
        case "log_uniform_values":
            return numbers(name, low, high, "log")
        case "log_uniform":
            ends = [_exp(end, f"{where}: log_uniform") for end in (low, high)]
            say(
                f"{name}: log_uniform's min and max are exponents, as in W&B: {ends[0]:g} to "
                f"{ends[1]:g}; log_uniform_values takes the values themselves"
            )
            return numbers(name, *ends, "log")
        case "q_uniform":
            return _stepped(numbers(name, low, high, "uniform"), words.get("q", 1), where)
    return numbers(name, low, high, "uniform")


def _implied(name: str, words: dict, where: str, say: Callable[[str], None]) -> str:
    if "value" in words:
        return "constant"
    if "values" in words:
        return "categorical"
    if "mu" in words or "sigma" in words:
        return "normal"
    if "min" not in words and "max" not in words:
        raise ConfigError(f"{where}: give value, values, or min and max")
    ends = [words.get("min"), words.get("max")]
    if sweepable()[name][0] is float and all(type(end) is int for end in ends):
        say(
            f"{name}: drawn as fractions from {ends[0]} to {ends[1]}, as the setting is one; W&B "
            "would draw whole numbers: distribution: int_uniform"
        )
    return "int_uniform" if sweepable()[name][0] is int else "uniform"


def mapping_at(found: object, where: str) -> dict:
    """The mapping itself; raises ConfigError for anything else."""
    if not isinstance(found, dict):
        kind = "missing" if found is None else f"a {type(found).__name__}, not a mapping"
        raise ConfigError(f"{where} is {kind}")
    return found


def refuse_unknown(found: dict, known: tuple[str, ...], where: str) -> None:
    """Raises ConfigError, with the nearest known one, for a key that is not known."""
    for key in found:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"{where}: {shown(key)} is unknown; {hint}")


def _need(words: dict, key: str, where: str) -> object:
    if key not in words:
        raise ConfigError(f"{where}: {key} is missing; it has {', '.join(words) or 'nothing'}")
    return words[key]


def number_at(raw: object, where: str) -> float:
    """The finite number that raw is; raises ConfigError."""
    try:
        return read_number(raw)
    except (ValueError, OverflowError):
        raise ConfigError(f"{where}: {shown(raw)} is not a finite number") from None


def integer_at(raw: object, where: str, least: int) -> int:
    """The whole number, at least `least`, that raw is; raises ConfigError."""
    number = number_at(raw, where)
    if number != int(number) or not least <= number <= 10**7:
        raise ConfigError(f"{where} takes a whole number from {least}; got {shown(raw)}")
    return int(number)


def _stepped(ends: Range | Steps, q: object, where: str) -> Steps:
    """The multiples of q between the ends; W&B rounds to them, and so may leave the range."""
    step = number_at(q, f"{where}: q")
    if step <= 0:
        raise ConfigError(f"{where}: q must be above 0; got {step:g}")
    low, high = (ends.low, ends.high) if isinstance(ends, Range) else (ends.first, ends.last)
    # 0.3 / 0.1 is 2.9999999999999996: an end that is a multiple belongs to the range
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if first > last or (isinstance(ends, Steps) and step != int(step)):
        raise ConfigError(f"{where}: no multiple of {step:g} that the setting takes lies there")
    return Steps(first, last, step)


def _normal(name: str, words: dict, where: str) -> Normal:
    if sweepable()[name][0] is not float:
        raise ConfigError(f"{where}: normal gives fractions, which this setting does not take")
    mu, sigma = (number_at(words.get(key, key == "sigma" and 1), where) for key in ("mu", "sigma"))
    if sigma <= 0:
        raise ConfigError(f"{where}: sigma must be above 0; got {sigma:g}")
    return Normal(mu, sigma)


def _exp(raw: object, where: str) -> float:
    exponent = number_at(raw, where)
    if abs(exponent) > 700:
        raise ConfigError(f"{where}: exp({exponent:g}) is not a float; are these the values?")
    return math.exp(exponent)
