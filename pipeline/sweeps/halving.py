"""Synchronous successive halving: which trials of a sweep continue after how many rounds.

All trials are compared after the same rounds, whatever batches they train in. Optuna's pruners and
W&B's hyperband compare a trial with those before it: of 27 trials that report together they stop
none or 26, depending only on the order.
Source: Jamieson and Talwalkar, arXiv:1502.07943; Li et al., Hyperband, arXiv:1603.06560.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import ConfigError
from pipeline.groups import by_key
from pipeline.sweeps.trials import Record, Trial, configuration_id, has_own_adapters

CUTS = 3
"""At eta 3, one of 27 configurations trains to the end."""


@dataclass(frozen=True)
class Halving:
    """Keep the best 1/eta of the configurations at each cut."""

    eta: int = 3
    first: int | None = None
    """Rounds before the first cut; None: as early as `cuts` cuts need."""
    cuts: int | None = None
    """Most cuts; None: CUTS, or all that fit if `first` is given."""

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers that never cut anything."""
        for name, value, low in (("eta", self.eta, 2), ("first", self.first, 1)):
            if value is not None and not low <= value <= 10**7:
                raise ConfigError(f"halving: {name} must lie in {low} to 10000000; got {value}")
        if self.cuts is not None and not 1 <= self.cuts <= 64:
            raise ConfigError(f"halving: cuts must lie in 1 to 64; got {self.cuts}")


def rungs(rounds: int, halving: Halving) -> tuple[int, ...]:
    """The rounds after which trials are cut, ascending, each in 1 to rounds - 1.

    first * eta**k for k = 0, 1, ...; without `first` it is ceil(rounds / eta**k) for k = cuts to 1.
    """
    eta = halving.eta
    if halving.first is None:
        marks = [-(-rounds // eta**k) for k in range(halving.cuts or CUTS, 0, -1)]
    else:
        fit = math.ceil(math.log(max(rounds / halving.first, 1), eta)) + 1
        marks = [halving.first * eta**k for k in range(min(halving.cuts or fit, fit))]
    return tuple(sorted({mark for mark in marks if 1 <= mark < rounds}))


def kept(configurations: int, eta: int) -> int:
    """Configurations that a cut keeps: floor(configurations / eta), at least 1."""
    return max(1, configurations // eta) if configurations else 0


Entered = TypeVar("Entered", Trial, Record)
"""What came to a cut."""


def survivors(
    trials: Sequence[Entered], scores: Mapping[str, float | None], eta: int
) -> tuple[Entered, ...]:
    """The trials that continue, in the order given.

    All seeds of a configuration are kept or cut together: its score is the mean over them, and it
    is cut if one of them diverged or failed. Of equal ones the earlier is kept. Fewer than
    kept(...) remain if too many diverged. Methods in which clients have adapters of their own are
    cut among themselves.

    trials  all that reached this cut, in every batch of the sweep (or of one bayes batch),
    including those that a killed sweep already recorded as ended here
    scores  by trial id: the best validation accuracy so far; None or not finite: diverged or failed

    Raises KeyError for a trial without a score: leaving one out would change the result.
    """
    groups = by_key((configuration_id(trial.settings), trial) for trial in trials)
    best: list[str] = []
    for own in (False, True):
        apart = {n: g for n, g in groups.items() if has_own_adapters(g[0].settings) is own}
        ranked = sorted(
            (-score, min(trial.number for trial in group), name)
            for name, group in apart.items()
            if (score := _mean([scores[trial.id] for trial in group])) is not None
        )
        best += [name for _, _, name in ranked[: kept(len(apart), eta)]]
    kept_ids = {trial.id for name in best for trial in groups[name]}
    return tuple(trial for trial in trials if trial.id in kept_ids)


def trial_rounds(trials: int, seeds: int, rounds: int, halving: Halving | None) -> int:
    """Rounds that `trials` trials train in total if none diverges, to estimate the time left."""
    live, before, total = trials // seeds, 0, 0
    for mark in rungs(rounds, halving) if halving else ():
        total += live * (mark - before)
        live, before = kept(live, halving.eta), mark
    return seeds * (total + live * (rounds - before))


def _mean(scores: Sequence[float | None]) -> float | None:
    if any(score is None or not math.isfinite(score) for score in scores):
        return None
    return math.fsum(scores) / len(scores)
