"""The settings that a sweep may vary: their names as people write them, and their values."""

import dataclasses
import functools
import math
import types
import typing
from difflib import get_close_matches

from pipeline.errors import ConfigError
from pipeline.settings import RunConfig

Value = int | float | bool | str | None
RELEASED = {"iters": "rounds", "wk_iters": "local_epochs", "datapercent": "split"}
KINDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a word"}
TRUTH = {"true": True, "yes": True, "on": True, "1": True}
TRUTH |= {"false": False, "no": False, "off": False, "0": False}
LARGEST = 2**63


@functools.cache
def sweepable() -> dict[str, tuple[type, bool]]:
    """By name of a RunConfig field: its type, and whether it may be None as well.

    Fields of other types than int, float, bool and str (held_out) are left out.
    """
    hints = typing.get_type_hints(RunConfig)
    kinds = {field.name: _kind(hints[field.name]) for field in dataclasses.fields(RunConfig)}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def setting_name(word: str) -> str:
    """The RunConfig field that a word means: hyphens and the released spellings are understood.

    Raises ConfigError, with the nearest name, for a word that is no field or is not swept.
    """
    name = word.strip().removeprefix("--").replace("-", "_")
    name = RELEASED.get(name, name)
    if name in sweepable():
        return name
    if name in {field.name for field in dataclasses.fields(RunConfig)} | {"test_envs"}:
        raise ConfigError(f"{name} is not swept: every trial trains all that the command names")
    near = get_close_matches(name, [*sweepable(), *RELEASED], n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sweepable())}"
    raise ConfigError(f"{shown(word)} is not a setting of a run; {hint}")


def parse_value(name: str, raw: object) -> Value:
    """What `raw`, a word or what YAML made of it, is as a value of the setting's type.

    Raises ConfigError when it is none.
    """
    kind, optional = sweepable()[name]
    if optional and (raw is None or raw in ("none", "null")):
        return None
    try:
        return _READ[kind](raw.strip() if isinstance(raw, str) else raw)
    except (ValueError, OverflowError):
        hint = " (YAML reads yes, no, on and off as truth: quote it)" if kind is str else ""
        raise ConfigError(f"{name} takes {KINDS[kind]}; got {shown(raw)}{hint}") from None


def read_number(raw: object) -> float:
    """A finite number, or a word that is one; raises ValueError or OverflowError."""
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ValueError
    if isinstance(raw, str) and (not raw.isascii() or "_" in raw):
        raise ValueError  # float() reads other alphabets' digits and 1_0
    if not math.isfinite(number := float(raw)):
        raise OverflowError
    return number + 0.0  # -0.0 would be a second name of 0.0


def shown(raw: object) -> str:
    """repr, cut to a length that fits an error's line."""
    try:
        text = repr(raw)
    except ValueError:  # an int of more than 4300 digits has no decimal form
        text = f"a {type(raw).__name__} too long to print"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(hint: object) -> tuple[type, bool] | None:
    if hint in KINDS:
        return hint, False
    if typing.get_origin(hint) is typing.Literal:
        return str, False
    if isinstance(hint, types.UnionType):
        inner = [_kind(each) for each in typing.get_args(hint) if each is not types.NoneType]
        return (inner[0][0], True) if len(inner) == 1 and inner[0] else None
    return None


def _whole(raw: object) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        number = raw
    else:
        fraction = read_number(raw)
        number = int(raw) if isinstance(raw, str) and raw.lstrip("+-").isdigit() else int(fraction)
        if number != fraction:
            raise ValueError
    if abs(number) > LARGEST:
        raise OverflowError
    return number


def _truth(raw: object) -> bool:
    if isinstance(raw, str) and raw.lower() in TRUTH:
        return TRUTH[raw.lower()]
    if not isinstance(raw, bool):
        raise ValueError
    return raw


def _word(raw: object) -> str:
    if not isinstance(raw, str) or not raw:
        raise ValueError
    return raw


_READ = {int: _whole, float: read_number, bool: _truth, str: _word}
