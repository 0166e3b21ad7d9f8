"""Searches of a sweep: ask for trials, and tell how they ended; grid, random and bayes."""

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import ConfigError, ConflictError
from pipeline.settings import RunConfig
from pipeline.sweeps.space import Choices, Steps, at, at_step
from pipeline.sweeps.spec import SweepSpec, check_ends, seeded
from pipeline.sweeps.trials import Record, Trial, configuration_id

MISSES = 1000
"""Consecutive draws without a new configuration after which a random search is complete."""


class Search(NamedTuple):
    """The three functions of a search."""

    ask: Callable[[int], tuple[Trial, ...]]
    """The trials of the next n configurations, except those that ended before; () at the end."""
    tell: Callable[[Sequence[Record]], None]
    """Takes records of trials that ended, in any order and number."""
    most: Callable[[], int]
    """Trials in all, as far as is known; a bayes search in a small space may end with fewer."""


def open_search(
    spec: SweepSpec, base: RunConfig, folder: Path, ended: Mapping[str, Record]
) -> Search:
    """The search that a spec asks for.

    base    the settings that are not swept
    folder  of the sweep, whose lock is held; bayes keeps study.journal there
    ended   the records of trials.jsonl by trial id: not asked for again unless failed

    Raises ConfigError for invalid settings, or for bayes without Optuna.
    """
    known = {id: record for id, record in ended.items() if record.status != "failed"}
    if spec.method == "bayes":
        from pipeline.sweeps.bayes import bayes

        check_ends(spec, base)
        return bayes(spec, base, folder, known)
    return listed(listed_trials(spec, base), len(spec.seeds), known)


def check_search(spec: SweepSpec, base: RunConfig) -> tuple[Trial, ...]:
    """The trials of a grid or random search; () for bayes, whose trials are not known in advance.

    Raises ConfigError as open_search does, and if no settings are valid, without a folder.
    """
    refits = dict(spec.parameters).get("refit")
    if spec.parameters and (base.refit == "yes" or refits is not None):
        raise ConfigError(
            "refit trains on the validation rows that a sweep compares its trials by: sweep with "
            "--refit no, then train the best with --refit yes --choose last; a sweep over seeds "
            "alone may use it"
        )
    if spec.method != "bayes":
        return listed_trials(spec, base)
    from pipeline.sweeps.bayes import distributions

    check_ends(spec, base)
    distributions(spec)
    one = dataclasses.replace(spec, method="random", count=1)
    _combinations(one, lambda settings: dataclasses.replace(base, **settings))
    return ()


def listed(trials: Sequence[Trial], seeds: int, ended: Mapping[str, Record]) -> Search:
    """A search through a list, seeds of one configuration next to each other."""
    waiting = (trial for trial in trials if trial.id not in ended)
    groups = itertools.groupby(waiting, key=lambda trial: trial.number // seeds)

    def ask(n: int) -> tuple[Trial, ...]:
        return tuple(trial for _, group in itertools.islice(groups, n) for trial in group)

    return Search(ask, lambda records: None, lambda: len(trials))


def listed_trials(spec: SweepSpec, base: RunConfig) -> tuple[Trial, ...]:
    """Every trial of a grid or random search, seeds innermost, each settings once.

    The same spec and base give the same trials; a random search of more draws begins with those
    of fewer. It ends early after MISSES draws without anything new.

    Conflicting combinations (head cosine with mode FedAtImg) that came up come after the others and
    do not count: their trials fail when planned, each with its reason. Raises ConfigError if there
    are no others, and for values outside their limits.
    """
    check_ends(spec, base)
    found, conflicts = _combinations(spec, lambda settings: dataclasses.replace(base, **settings))
    return tuple(
        trial
        for number, each in enumerate([*found, *conflicts])
        for trial in seeded(spec, number, each)
    )


def base_of(spec: SweepSpec, given: Mapping[str, Any]) -> RunConfig:
    """The config of the settings that are not swept.

    If RunConfig(**given) conflicts, as it does when partition=iid is swept with clients=4, it has
    the swept values of the first combination that does not. Raises ConfigError if all conflict.
    """
    try:
        return RunConfig(**given)
    except ConflictError:
        one = spec if spec.method == "grid" else dataclasses.replace(spec, method="random")
        one = dataclasses.replace(one, count=1)
        found, _ = _combinations(one, lambda settings: RunConfig(**{**given, **settings}))
        return RunConfig(**{**given, **found[0]})


def reasons(whys: Iterable[str], most: int = 5) -> str:
    """Lists reasons with their number of trials, the commonest first."""
    counted = Counter(whys).most_common()
    said = [f"{why} ({count})" for why, count in counted[:most]]
    left = sum(count for _, count in counted[most:])
    return "; ".join([*said, *([f"and {left} more"] if left else [])])


def _combinations(
    spec: SweepSpec, configure: Callable[[dict[str, Any]], RunConfig]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Up to spec.count valid settings, and the conflicting ones that came up before the last.

    Raises ConfigError if none are valid.
    """
    found: list[dict[str, Any]] = []
    conflicts: list[dict[str, Any]] = []
    whys: list[str] = []
    misses = 0
    for settings in _grid(spec) if spec.method == "grid" else _draws(spec):
        misses += 1
        try:
            if settings is not None:
                configure(settings)
                found.append(settings)
                misses = 0
        except ConflictError as error:
            conflicts.append(settings)
            whys.append(str(error))
        except ConfigError as error:  # a normal draw outside its setting's limits
            whys.append(str(error))
        if len(found) == spec.count or (misses == MISSES and spec.method != "grid"):
            break
    if not found:
        raise ConfigError(f"no combination can be trained: {reasons(whys)}")
    return found, conflicts


def _grid(spec: SweepSpec) -> Iterator[dict[str, Any]]:
    names = [name for name, _ in spec.parameters]
    for values in itertools.product(*(_every(*pair) for pair in spec.parameters)):
        yield dict(zip(names, values, strict=True))


def _draws(spec: SweepSpec) -> Iterator[dict[str, Any] | None]:
    """Endless draws; None in place of a repeated one."""
    rng = random.Random(spec.draw_seed)  # the same in every Python
    seen: set[str] = set()
    while True:
        settings = {name: at(name, domain, rng.random()) for name, domain in spec.parameters}
        new = configuration_id(settings) not in seen
        seen.add(configuration_id(settings))
        yield settings if new else None


def _every(name: str, domain: Choices | Steps) -> Iterable:
    if isinstance(domain, Choices):
        return domain.values
    return [at_step(name, domain, k) for k in range(domain.first, domain.last + 1)]
