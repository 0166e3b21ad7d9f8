"""The settings that a sweep may vary: their names as people write them, and their values."""

import dataclasses
import math
from difflib import get_close_matches

from pipeline.errors import ConfigError
from pipeline.settings import RunConfig

Value = int | float | str
RELEASED = {"iters": "rounds", "wk_iters": "local_epochs", "datapercent": "split"}
KINDS = {int: "a whole number", float: "a finite number", str: "a word"}
LARGEST = 2**63
SWEEPABLE = {each.name: each.type for each in dataclasses.fields(RunConfig) if each.type in KINDS}
"""The type of each setting that can be swept: all but held_out."""


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
