"""A sweep in the words of W&B: method, metric, parameters, early_terminate, run_cap.

Source: the keys of docs.wandb.ai "Sweep configuration structure". Where a key means something
else here, a warning is logged.
"""

import logging
from dataclasses import replace

from pipeline.errors import ConfigError
from pipeline.sweeps.halving import Halving, rungs
from pipeline.sweeps.space import Choices
from pipeline.sweeps.spec import METHODS, METRIC, SweepSpec, split_seeds
from pipeline.sweeps.values import setting_name, shown
from pipeline.sweeps.wandb_parameter import integer_at, mapping_at, parameter, refuse_unknown

LOG = logging.getLogger(__name__)
KEYS = ("method", "metric", "parameters", "early_terminate", "run_cap")
ELSEWHERE = ("program", "command", "project", "entity", "name", "description", "controller", "job")
ELSEWHERE += ("image_uri", "imageuri", "$schema")
METRICS = (METRIC, "val_acc", "val/accuracy", "validation_accuracy")
EARLY_KEYS = ("type", "eta", "min_iter", "max_iter", "s", "strict")


def from_wandb(
    found: dict, *, rounds: int, seeds: int = 1, halving: int | None = None, draw_seed: int = 0
) -> SweepSpec:
    """The sweep that a W&B sweep configuration describes.

    found    what the YAML file holds
    rounds   of the run that is swept, where parameters has none: early_terminate's cuts need it
    seeds    as many seeds train every configuration, unless parameters lists values of seed
    halving  --halving ETA, or None

    Raises ConfigError for words that are unknown, unsupported or contradict each other.
    """
    refuse_unknown(found, (*KEYS, *ELSEWHERE), "the sweep")
    unused = [key for key in found if key in ELSEWHERE]
    if unused:
        LOG.warning("%s: not used here", ", ".join(unused))
    method = found.get("method")
    if method not in METHODS:
        raise ConfigError(f"method {shown(method)} is unknown; choose from {', '.join(METHODS)}")
    _check_metric(found.get("metric"))
    parameters = mapping_at(found.get("parameters"), "parameters")
    domains = []
    for word, words in parameters.items():
        name = setting_name(str(word))
        words = mapping_at(words, f"parameters: {name}")
        domains.append((name, parameter(name, words)))
        if name == "rounds" and isinstance(domains[-1][1], Choices):
            rounds = domains[-1][1].values[0]
    early = found.get("early_terminate")
    if early is not None and halving is not None:
        raise ConfigError("early_terminate and --halving mean the same; use only one of them")
    chosen = Halving(halving) if halving is not None else None
    if early is not None:
        chosen = _halving(mapping_at(early, "early_terminate"), rounds)
    others, seed_numbers = split_seeds(domains, seeds)
    count = _count(found.get("run_cap"), len(seed_numbers))
    return SweepSpec(method, others, seed_numbers, count, chosen, draw_seed)


def _count(cap: object, seeds: int) -> int | None:
    if cap is None:
        return None
    count = max(1, integer_at(cap, "run_cap", 1) // seeds)
    if seeds > 1:
        LOG.warning("run_cap %s: %d configurations with %d seeds each", cap, count, seeds)
    return count


def _check_metric(metric: object) -> None:
    if metric is None:
        return
    metric = mapping_at(metric, "metric")
    refuse_unknown(metric, ("name", "goal", "target"), "metric")
    name, goal = metric.get("name", METRIC), metric.get("goal", "maximize")
    if name not in METRICS:
        raise ConfigError(
            f"metric {shown(name)}: a sweep selects by {METRIC} only; selecting by test accuracy "
            "needs --select oracle and is called that in all results"
        )
    if goal != "maximize":
        raise ConfigError(f"metric goal {shown(goal)}: {METRIC} is maximized")
    if "target" in metric:
        raise ConfigError("metric target: not supported; end a sweep with run_cap or --budget")


def _halving(words: dict, rounds: int) -> Halving:
    refuse_unknown(words, EARLY_KEYS, "early_terminate")
    if words.get("type") != "hyperband":
        raise ConfigError(
            f"early_terminate type {shown(words.get('type'))} is not supported; hyperband is"
        )
    if ("min_iter" in words) == ("max_iter" in words):
        raise ConfigError("early_terminate: set min_iter, or max_iter and s")
    eta = integer_at(words.get("eta", 3), "early_terminate: eta", 2)
    cuts = integer_at(words["s"], "early_terminate: s", 1) if "s" in words else None
    halving = Halving(eta, None, cuts)  # refuses an s whose eta**s would never be computed
    if "min_iter" in words:
        first = integer_at(words["min_iter"], "early_terminate: min_iter", 1)
    else:
        halving = replace(halving, cuts=cuts or 1)
        most = integer_at(words["max_iter"], "early_terminate: max_iter", 1)
        first = -(-most // eta**halving.cuts)
    halving = replace(halving, first=first)
    marks = ", ".join(map(str, rungs(rounds, halving))) or "none before the last"
    LOG.warning(
        "early_terminate: W&B stops a run by comparing it with the runs before it; here all trials "
        "are compared after the same rounds (%s of %d) and the best 1/%d are kept",
        marks, rounds, eta,
    )  # fmt: skip
    return halving
