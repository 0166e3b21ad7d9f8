"""The specification of a sweep: parameters, seeds, halving; and the trials it describes."""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pipeline.errors import ConfigError, ConflictError
from pipeline.federation.methods import METHODS as FEDERATED
from pipeline.settings import RunConfig
from pipeline.sweeps.halving import Halving
from pipeline.sweeps.space import (
    Choices,
    Domain,
    Normal,
    Range,
    Steps,
    ends_of,
    in_words,
    parse_words,
    setting_name,
    shown,
)
from pipeline.sweeps.trials import Record, Trial, make_trial

METHODS = ("grid", "random", "bayes")
METRIC = "val_accuracy"
MOST = 100_000
"""Most trials of one sweep: at a second each they take a day and fill 100 MB of trials.jsonl."""
BATCH = 32


@dataclass(frozen=True)
class SweepSpec:
    """A sweep; parameters are sorted by name, so their order does not matter."""

    method: str
    parameters: tuple[tuple[str, Domain], ...]
    seeds: tuple[int, ...] = (0,)
    """Every configuration trains once with each of them."""
    count: int | None = None
    """Maximum number of configurations; optional for a grid."""
    halving: Halving | None = None
    draw_seed: int = 0
    """Seed of random and bayes."""

    def __post_init__(self) -> None:
        """Raises ConfigError for an invalid sweep."""
        names = [name for name, _ in self.parameters]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"{twice} is set twice; list its values in one place")
        if not names and len(self.seeds) == 1:
            raise ConfigError("nothing is swept: pass --grid name=a,b, --seeds or --spec FILE")
        if self.count is not None and not 1 <= self.count <= MOST:
            raise ConfigError(f"{self.count} configurations requested; the limits are 1 and {MOST}")
        if self.method == "grid":
            _check_grid(self)
        elif self.count is None:
            raise ConfigError(f"method {self.method} is unbounded: set --random N or run_cap: N")
        if self.halving and size(dict(self.parameters).get("rounds", Choices((0,)))) > 1:
            raise ConfigError(
                "halving compares trials after the same rounds, so rounds cannot be swept"
            )
        if trial_count(self) > MOST:
            raise ConfigError(
                f"{_product(self)} = {trial_count(self):.3g} trials, and a sweep has at most "
                f"{MOST}; list fewer values, or draw some with --random N"
            )


def from_options(
    grid: Sequence[str],
    *,
    draws: int | None = None,
    seeds: int = 1,
    halving: int | None = None,
    draw_seed: int = 0,
) -> SweepSpec:
    """The sweep of `--grid name=words` (many), `--random N`, `--seeds` and `--halving ETA`.

    pipeline/sweeps/space.py has the grammar of the words after name=; seed=3,5 names seeds. Raises
    ConfigError, naming what is invalid.
    """
    parameters: list[tuple[str, Domain]] = []
    for option in grid:
        word, equals, words = option.partition("=")
        if not equals or not word.strip():
            raise ConfigError(f"--grid {shown(option)}: write name=a,b or name=low..high")
        name = setting_name(word)
        parameters.append((name, parse_words(name, words)))
    method = "grid" if draws is None else "random"
    cuts = Halving(halving) if halving is not None else None
    return SweepSpec(method, *split_seeds(parameters, seeds), draws, cuts, draw_seed)


def split_seeds(
    parameters: Iterable[tuple[str, Domain]], seeds: int
) -> tuple[tuple[tuple[str, Domain], ...], tuple[int, ...]]:
    """The parameters by name without seed, and the seeds: the values of seed, or 0, 1, ...

    Raises ConfigError if seeds are set twice, or seed is a range.
    """
    if not 1 <= seeds <= MOST:
        raise ConfigError(f"{seeds} seeds requested; the limits are 1 and {MOST}")
    named = [domain for name, domain in parameters if name == "seed"]
    others = tuple(sorted((p for p in parameters if p[0] != "seed"), key=lambda pair: pair[0]))
    if not named:
        return others, tuple(range(seeds))
    if seeds > 1 or len(named) > 1:
        raise ConfigError("seeds are set twice; use either --seeds N or a list of values of seed")
    if not isinstance(named[0], Choices):
        raise ConfigError("seed: list its values; every configuration trains with each of them")
    return others, cast(tuple[int, ...], named[0].values)  # parse_words made whole numbers


def trial_count(spec: SweepSpec) -> float:
    """The most trials that a spec can have."""
    configurations = math.prod(size(domain) for _, domain in spec.parameters)
    if spec.count is not None:
        configurations = min(configurations, spec.count)
    return configurations * len(spec.seeds)


def describe(spec: SweepSpec) -> dict[str, Any]:
    """Everything in a spec that determines its trials, as in spec.json."""
    return {
        "method": spec.method,
        "parameters": {name: in_words(domain) for name, domain in spec.parameters},
        "seeds": list(spec.seeds),
        "count": spec.count,
        "halving": dataclasses.asdict(spec.halving) if spec.halving else None,
        "draw_seed": spec.draw_seed,
        "metric": METRIC,
    }


def batch_size(spec: SweepSpec) -> int:
    """Configurations to ask for at a time: a quarter of a bayes search's, at most BATCH; else all.

    It depends on the spec, not on memory, or a sweep would differ between machines.
    """
    if spec.method != "bayes" or spec.count is None:
        return MOST
    return max(1, min(BATCH, spec.count // 4))


def config_of(trial: Trial, base: RunConfig) -> RunConfig:
    """The config of a trial; raises ConfigError for invalid settings."""
    return dataclasses.replace(base, **trial.settings, seed=trial.seed)


def ranks_by_loss(spec: SweepSpec, base: RunConfig) -> bool:
    """Whether trials, like their rounds, are compared by validation loss, because all have one."""
    swept = {name: ends_of(name, domain) for name, domain in spec.parameters}
    methods = swept.get("method", (base.method,))
    trained = all(FEDERATED[str(method)].learns for method in methods)
    return set(swept.get("choose", (base.choose,))) == {"loss"} and trained


def rank_of(record: Record, by_loss: bool) -> float | None:
    """The score that trials are compared by, higher is better: accuracy, or minus the loss."""
    if not by_loss:
        return record.val_accuracy
    return None if record.val_loss is None else -record.val_loss


def check_ends(spec: SweepSpec, base: RunConfig) -> None:
    """Tries each parameter's values, or its range's two ends, with the others at their first.

    Raises ConfigError for an invalid one, before anything is trained.
    """
    ends = {name: ends_of(name, domain) for name, domain in spec.parameters}
    first: dict[str, Any] = {name: values[0] for name, values in ends.items()}
    for name, values in ends.items():
        for value in values:
            # A value may conflict with the others' first: head cosine needs mode FedAtTxt.
            with contextlib.suppress(ConflictError):
                dataclasses.replace(base, **{**first, name: value})
    for seed in spec.seeds:
        dataclasses.replace(base, seed=seed)


def seeded(spec: SweepSpec, configuration: int, settings: dict[str, Any]) -> tuple[Trial, ...]:
    """One configuration's trials, numbered configuration * seeds + place of the seed."""
    first = configuration * len(spec.seeds)
    return tuple(make_trial(first + at, settings, seed) for at, seed in enumerate(spec.seeds))


def size(domain: Domain) -> float:
    """How many values a domain has, inf for fractions."""
    match domain:
        case Choices(values):
            return len(values)
        case Steps(first, last):
            return last - first + 1
        case Range(low, high):
            return 1 if low == high else math.inf
        case Normal():
            return math.inf


def _check_grid(spec: SweepSpec) -> None:
    for name, domain in spec.parameters:
        if isinstance(domain, Range | Normal) or (isinstance(domain, Steps) and domain.log):
            raise ConfigError(
                f"{name} is a range, and a grid cannot try all its values; list values, or "
                "draw some with --random N"
            )


def _product(spec: SweepSpec) -> str:
    if spec.count is not None:
        return f"{spec.count} configurations x {len(spec.seeds)} seeds"
    sizes = [f"{name} {size(domain):.6g}" for name, domain in spec.parameters]
    return " x ".join([*sizes, f"seeds {len(spec.seeds)}"])
