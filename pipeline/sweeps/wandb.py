"""Reads W&B's sweep configurations: a YAML file, read defensively, mapped onto a SweepSpec.

Each parameter becomes a domain of pipeline/sweeps/space.py by the parser of --grid. A warning is
logged where a key means something else than in W&B.
Source: the keys of docs.wandb.ai "Sweep configuration structure".
"""

import logging
import math
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import ConfigError
from pipeline.files import read_plain
from pipeline.sweeps.halving import Halving, rungs
from pipeline.sweeps.space import (
    SWEEPABLE,
    Choices,
    Domain,
    Normal,
    Range,
    Steps,
    choices,
    numbers,
    read_number,
    setting_name,
    shown,
    whole_number,
)
from pipeline.sweeps.spec import METHODS, METRIC, SweepSpec, split_seeds

LARGEST = 64 * 1024
"""Bytes: PyYAML takes 2 s for them. Typical sweeps have a thousand."""
DEEPEST = 16
"""A sweep nests 4 levels; PyYAML takes 5 minutes for 100 kB of opening brackets."""

LOG = logging.getLogger(__name__)
KEYS = ("method", "metric", "parameters", "early_terminate", "run_cap")
ELSEWHERE = ("program", "command", "project", "entity", "name", "description", "controller", "job")
ELSEWHERE += ("image_uri", "imageuri", "$schema")
METRICS = (METRIC, "val_acc", "val/accuracy", "validation_accuracy")
EARLY_KEYS = ("type", "eta", "min_iter", "max_iter", "s", "strict")
PARAMETER_KEYS = ("value", "values", "min", "max", "mu", "sigma", "q", "distribution")
RANGES = {"int_uniform": "int", "uniform": "uniform", "q_uniform": "uniform"}
RANGES |= {"log_uniform": "log", "log_uniform_values": "log"}
"""W&B's distributions with two ends, and their names in `numbers`."""
NEEDS = {"constant": ("value",), "categorical": ("values",), "normal": ()}
NEEDS |= dict.fromkeys(RANGES, ("min", "max"))
"""The required keys of each distribution."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses aliases, deep nesting and repeated keys while it composes nodes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"line {line} uses the alias *{event.anchor}; write the values out")
        self.depth += 1
        if self.depth > DEEPEST:
            raise ConfigError(f"line {line} nests deeper than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        seen: set[str] = set()
        for key in (key for key in keys if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(f"line {line} gives {key.value} a second time")
            seen.add(key.value)
        return node


def read_yaml(file: Path) -> dict[str, Any]:
    """Reads the mapping of a YAML file, of plain types only.

    Refuses aliases (nine lines of them can stand for a billion values) and repeated keys, of which
    YAML would keep the last. Raises ConfigError, naming the fault and its line.
    """
    try:
        content = read_plain(file, LARGEST)
    except ConfigError as error:
        raise ConfigError(f"--spec {error}; a sweep is a YAML file of some lines") from error
    try:
        found = yaml.load(content.decode("utf-8-sig"), _Loader)  # noqa: S506
    except ConfigError as error:
        raise ConfigError(f"--spec {file}: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"--spec {file}: invalid YAML{line}: {error.problem}") from error
    # A value such as !!int '' or 2026-99-99 fails inside PyYAML's constructors with whatever they
    # happen to raise: LookupError, AttributeError, ValueError.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"--spec {file}: invalid YAML: {reason}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(
            f"--spec {file}: holds a {type(found).__name__}; a sweep is `method: grid` and "
            "`parameters:` with a name a line under it"
        )
    return found


def from_wandb(
    found: dict, *, rounds: int, seeds: int = 1, halving: int | None = None, draw_seed: int = 0
) -> SweepSpec:
    """The sweep that a W&B sweep configuration describes.

    found    content of the YAML file
    rounds   of the swept run, unless parameters sets them: early_terminate's cuts need them
    seeds    number of seeds of every configuration, unless parameters lists values of seed
    halving  --halving ETA, or None

    Raises ConfigError for keys that are unknown, unsupported or contradictory.
    """
    _refuse_unknown(found, (*KEYS, *ELSEWHERE), "the sweep")
    if unused := [key for key in found if key in ELSEWHERE]:
        LOG.warning("%s: not used here", ", ".join(unused))
    method = found.get("method")
    if method not in METHODS:
        raise ConfigError(f"method {shown(method)} is unknown; choose from {', '.join(METHODS)}")
    _check_metric(found.get("metric"))
    domains = []
    for word, words in _mapping(found.get("parameters"), "parameters").items():
        name = setting_name(str(word))
        where = f"parameters: {name}"
        domains.append((name, _parameter(name, _mapping(words, where), where)))
        if name == "rounds" and isinstance(domains[-1][1], Choices):
            rounds = domains[-1][1].values[0]
    early = found.get("early_terminate")
    if early is not None and halving is not None:
        raise ConfigError("early_terminate and --halving set the same thing; give one of the two")
    cuts = Halving(halving) if halving is not None else None
    if early is not None:
        cuts = _halving(_mapping(early, "early_terminate"), rounds)
    others, seed_numbers = split_seeds(domains, seeds)
    cap, count = found.get("run_cap"), None
    if cap is not None:
        count = max(1, _integer(cap, "run_cap", 1) // len(seed_numbers))
        if len(seed_numbers) > 1:
            LOG.warning(
                "run_cap %s: %d configurations, %d seeds each", cap, count, len(seed_numbers)
            )
    return SweepSpec(method, others, seed_numbers, count, cuts, draw_seed)


def _check_metric(metric: object) -> None:
    if metric is None:
        return
    metric = _mapping(metric, "metric")
    _refuse_unknown(metric, ("name", "goal", "target"), "metric")
    name, goal = metric.get("name", METRIC), metric.get("goal", "maximize")
    if name not in METRICS:
        raise ConfigError(
            f"metric {shown(name)}: a sweep chooses by {METRIC} alone; --select oracle chooses by "
            "test accuracy, and is called oracle in all results"
        )
    if goal != "maximize":
        raise ConfigError(f"metric goal {shown(goal)}: {METRIC} is maximized")
    if "target" in metric:
        raise ConfigError("metric target: not supported; end a sweep with run_cap or --budget")


def _halving(words: dict, rounds: int) -> Halving:
    _refuse_unknown(words, EARLY_KEYS, "early_terminate")
    if words.get("type") != "hyperband":
        raise ConfigError(
            f"early_terminate type {shown(words.get('type'))} is not supported; hyperband is"
        )
    if ("min_iter" in words) == ("max_iter" in words):
        raise ConfigError("early_terminate: give min_iter, or max_iter and s")
    eta = _integer(words.get("eta", 3), "early_terminate: eta", 2)
    cuts = _integer(words["s"], "early_terminate: s", 1) if "s" in words else None
    halving = Halving(eta, None, cuts)  # refuses an s that is too large for eta**s
    if "min_iter" in words:
        first = _integer(words["min_iter"], "early_terminate: min_iter", 1)
    else:
        halving = replace(halving, cuts=cuts or 1)
        most = _integer(words["max_iter"], "early_terminate: max_iter", 1)
        first = -(-most // eta**halving.cuts)
    halving = replace(halving, first=first)
    marks = ", ".join(map(str, rungs(rounds, halving))) or "none before the last"
    LOG.warning(
        "early_terminate: W&B stops a run by comparing it with the runs before it; here all trials "
        "are compared after the same rounds (%s of %d) and the best 1/%d continue",
        marks, rounds, eta,
    )  # fmt: skip
    return halving


def _parameter(name: str, words: dict, where: str) -> Domain:
    """The domain of a parameter, from the mapping under its name."""
    if "parameters" in words:
        raise ConfigError(f"{where}: nested parameters are not supported; settings are flat")
    _refuse_unknown(words, PARAMETER_KEYS, where)
    how = words.get("distribution") or _implied(name, words, where)
    if how not in tuple(NEEDS):
        raise ConfigError(
            f"{where}: distribution {shown(how)} is not supported; there are {', '.join(NEEDS)}"
        )
    for key in NEEDS[how]:
        if key not in words:
            has = ", ".join(words) or "nothing"
            raise ConfigError(f"{where}: {key} is missing; it has {has}")
    if how == "normal":
        return _normal(name, words, where)
    if how not in RANGES:
        values = [words["value"]] if how == "constant" else words["values"]
        if not isinstance(values, list):
            raise ConfigError(f"{where}: values is a {type(values).__name__}, not a list")
        return choices(name, values)
    ends = [words["min"], words["max"]]
    if how == "log_uniform":
        ends = [_exp(end, f"{where}: log_uniform") for end in ends]
        LOG.warning(
            "%s: log_uniform's min and max are exponents, as in W&B: %g to %g; log_uniform_values "
            "takes the values themselves",
            name, *ends,
        )  # fmt: skip
    domain = numbers(name, *ends, RANGES[how])
    return _stepped(domain, words.get("q", 1), where) if how == "q_uniform" else domain


def _implied(name: str, words: dict, where: str) -> str:
    if "value" in words:
        return "constant"
    if "values" in words:
        return "categorical"
    if "mu" in words or "sigma" in words:
        return "normal"
    if "min" not in words and "max" not in words:
        raise ConfigError(f"{where}: give value, values, or min and max")
    ends = [words.get("min"), words.get("max")]
    if SWEEPABLE[name] is float and all(type(end) is int for end in ends):
        LOG.warning(
            "%s: drawn as fractions from %s to %s, as the setting is one; W&B would draw whole "
            "numbers: distribution: int_uniform",
            name, *ends,
        )  # fmt: skip
    return "int_uniform" if SWEEPABLE[name] is int else "uniform"


def _stepped(ends: Range | Steps, q: object, where: str) -> Steps:
    """The multiples of q in the range; W&B rounds to them, which may leave the range."""
    step = _number(q, f"{where}: q")
    if step <= 0:
        raise ConfigError(f"{where}: q must be above 0; got {step:g}")
    low, high = (ends.low, ends.high) if isinstance(ends, Range) else (ends.first, ends.last)
    # 0.3 / 0.1 is 2.9999999999999996: an end that is a multiple belongs to the range
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if first > last or (isinstance(ends, Steps) and step != int(step)):
        raise ConfigError(f"{where}: no multiple of {step:g} that the setting takes is in range")
    return Steps(first, last, step)


def _normal(name: str, words: dict, where: str) -> Normal:
    if SWEEPABLE[name] is not float:
        raise ConfigError(f"{where}: normal gives fractions, which this setting does not take")
    mu, sigma = (_number(words.get(key, key == "sigma" and 1), where) for key in ("mu", "sigma"))
    if sigma <= 0:
        raise ConfigError(f"{where}: sigma must be above 0; got {sigma:g}")
    return Normal(mu, sigma)


def _exp(raw: object, where: str) -> float:
    exponent = _number(raw, where)
    if abs(exponent) > 700:
        raise ConfigError(f"{where}: exp({exponent:g}) is not finite; are these the values?")
    return math.exp(exponent)


def _mapping(found: object, where: str) -> dict:
    if not isinstance(found, dict):
        kind = "missing" if found is None else f"a {type(found).__name__}, not a mapping"
        raise ConfigError(f"{where} is {kind}")
    return found


def _refuse_unknown(found: dict, known: tuple[str, ...], where: str) -> None:
    """Raises ConfigError, with the nearest known key, for an unknown one."""
    for key in found:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"{where}: {shown(key)} is unknown; {hint}")


def _number(raw: object, where: str) -> float:
    try:
        return read_number(raw)
    except (ValueError, OverflowError):
        raise ConfigError(f"{where}: {shown(raw)} is not a finite number") from None


def _integer(raw: object, where: str, least: int) -> int:
    try:
        number = whole_number(raw)
    except (ValueError, OverflowError):
        number = -1
    if not least <= number <= 10**7:
        raise ConfigError(f"{where} takes a whole number from {least}; got {shown(raw)}")
    return number
