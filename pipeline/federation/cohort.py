"""The cohort of a round: sampled clients, those that drop out, and stragglers."""

import math
from typing import NamedTuple

import numpy as np

_STREAM = 20  # separates these draws from others of the same seed


class Cohort(NamedTuple):
    """The clients sampled for a round, in client order."""

    clients: np.ndarray  # (M,) int64
    reports: np.ndarray  # (M,) bool, False for those that drop out after sampling
    work: np.ndarray  # (M,) float64, share of its local steps that a client takes, 0 < work <= 1


def cohort(
    clients: int,
    round: int,
    seed: int,
    fold: int = 0,
    *,
    client_fraction: float = 1.0,
    dropout: float = 0.0,
    stragglers: float = 0.0,
    poisson: bool = False,
) -> Cohort:
    """max(1, int(client_fraction * clients)) clients, drawn without replacement.

    clients     K; if there are any, at least one is sampled and at least one reports
    fold        the fold's number in its own config, so that a run among others draws as alone
    dropout     probability that a sampled client trains and does not report; never all of them
    stragglers  probability that a sampled client takes a share of its steps, uniform over (0, 1]
    poisson     sample each client independently, as DP accounting assumes; the cohort may be empty
    Draws depend only on (seed, round, fold) and clients: a larger fraction, dropout or stragglers
    only adds clients to those of a smaller one.
    Source: FedAvg, arXiv:1602.05629 (fraction); FedProx, arXiv:1812.06127 (stragglers).
    """
    # NEP 19 guarantees that RandomState's stream never changes.
    draw = np.random.RandomState([seed, round, fold, clients, _STREAM])
    chance, leave, late, work = draw.uniform(size=(4, clients))
    if poisson:
        chosen = np.flatnonzero(chance < client_fraction)
    else:
        many = max(1, math.floor(_rounded(client_fraction * clients)))
        chosen = np.sort(chance.argsort(kind="stable")[:many])
    reports = leave[chosen] >= dropout
    if len(chosen) and not poisson and not reports.any():
        reports[leave[chosen].argmax()] = True
    share = np.where(late[chosen] < stragglers, 1 - work[chosen], 1.0)  # uniform() can be 0
    return Cohort(chosen, reports, share)


def steps_of(work: float, steps: int) -> int:
    """The local steps of `steps` that a client takes: ceil(work * steps), at least one if any."""
    return min(steps, max(1, math.ceil(_rounded(work * steps))))


def _rounded(product: float) -> float:
    # 0.29 * 100 is 28.999999999999996
    return round(product, 9)
