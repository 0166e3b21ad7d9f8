"""What a sweep tries next: ask for trials and tell how they ended; grid, random and bayes."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.config import ConfigError, ConflictError, RunConfig
from pipeline.sweep_space import Choices, Steps, at, at_step
from pipeline.sweep_spec import SweepSpec, check_ends, seeded
from pipeline.trials import Record, Trial, configuration_id

MISSES = 1000
"""Draws in a row that bring nothing new before a random search counts as complete."""


class State(NamedTuple):
    """How far a search is, in trials."""

    asked: int
    ended: int
    most: int
    """Trials in all; a bayes search in a small space may end before."""


class Search(NamedTuple):
    """The three functions of a search."""

    ask: Callable[[int], tuple[Trial, ...]]
    """The trials of the next n configurations, those that had ended before left out; () at the end.

    Raises ConfigError for n < 1.
    """
    tell: Callable[[Sequence[Record]], None]
    """How trials ended, in any order and number."""
    state: Callable[[], State]


def open_search(
    spec: SweepSpec, base: RunConfig, folder: Path, ended: Mapping[str, Record]
) -> Search:
    """The search that a spec asks for.

    base    what the swept settings are put into
    folder  of the sweep, held by its lock; bayes keeps study.journal there
    ended   what trials.jsonl holds, by trial id: asked for no more, unless it failed

    Raises ConfigError for settings that cannot be, or when bayes has no Optuna.
    """
    known = {id: record for id, record in ended.items() if record.status != "failed"}
    if spec.method == "bayes":
        from pipeline.search_bayes import bayes

        check_ends(spec, base)
        return bayes(spec, base, folder, known)
    return listed(listed_trials(spec, base), len(spec.seeds), known)


def listed(trials: Sequence[Trial], seeds: int, ended: Mapping[str, Record]) -> Search:
    """A search through a list, seeds of one configuration next to each other."""
    waiting = [trial for trial in trials if trial.id not in ended]
    told = set(ended) & {trial.id for trial in trials}
    at = 0

    def ask(n: int) -> tuple[Trial, ...]:
        nonlocal at
        _check_n(n)
        groups = itertools.groupby(waiting[at:], key=lambda trial: trial.number // seeds)
        asked = tuple(trial for _, group in itertools.islice(groups, n) for trial in group)
        at += len(asked)
        return asked

    def tell(records: Sequence[Record]) -> None:
        told.update(record.id for record in records)

    def state() -> State:
        return State(len(trials) - len(waiting) + at, len(told), len(trials))

    return Search(ask, tell, state)


def listed_trials(spec: SweepSpec, base: RunConfig) -> tuple[Trial, ...]:
    """Every trial of a grid or random search, seeds innermost, each settings once.

    The same spec and base give the same trials; a random search of more draws begins with those
    of fewer. It ends before its count when MISSES draws in a row bring nothing new.

    Combinations that cannot be (head cosine with mode FedAtImg) are left out. Raises ConfigError
    when no other is left, and for settings that cannot be in any combination.
    """
    check_ends(spec, base)
    settings = _grid(spec, base) if spec.method == "grid" else _draws(spec, base)
    configurations = enumerate(itertools.islice(settings, spec.count))
    return tuple(trial for number, each in configurations for trial in seeded(spec, number, each))


def _grid(spec: SweepSpec, base: RunConfig) -> Iterable[dict]:
    names = [name for name, _ in spec.parameters]
    found, refused = 0, None
    for values in itertools.product(*(_every(*pair) for pair in spec.parameters)):
        settings = dict(zip(names, values, strict=True))
        try:
            dataclasses.replace(base, **settings)
        except ConflictError as error:
            refused = error
            continue
        found += 1
        yield settings
    if not found and refused:
        raise ConfigError(f"no combination can be trained; the last: {refused}")


def _draws(spec: SweepSpec, base: RunConfig) -> Iterable[dict]:
    rng = random.Random(spec.draw_seed)  # random() of a seed is the same in every Python
    seen: set[str] = set()
    refused, misses = None, 0
    while misses < MISSES:
        settings = {name: at(name, domain, rng.random()) for name, domain in spec.parameters}
        misses += 1
        if configuration_id(settings) in seen:
            continue
        try:
            dataclasses.replace(base, **settings)
        except ConfigError as error:
            refused = error
            continue
        misses = 0
        seen.add(configuration_id(settings))
        yield settings
    if not seen and refused:
        raise ConfigError(f"none of {MISSES} draws can be trained; the last: {refused}")


def _every(name: str, domain: Choices | Steps) -> Iterable:
    if isinstance(domain, Choices):
        return domain.values
    return [at_step(name, domain, k) for k in range(domain.first, domain.last + 1)]


def _check_n(n: int) -> None:
    if n < 1:
        raise ConfigError(f"a search is asked for {n} configurations; ask for 1 or more")
