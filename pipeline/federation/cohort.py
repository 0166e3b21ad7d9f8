"""Who takes part in a round: the clients chosen, those that drop out, those that run late."""

import math
from typing import NamedTuple

import numpy as np

_STREAM = 20  # keeps these draws apart from others of the same seed


class Cohort(NamedTuple):
    """The clients chosen for a round, in client order."""

    clients: np.ndarray  # (M,) int64
    reports: np.ndarray  # (M,) bool, False for those that drop out after they were chosen
    work: np.ndarray  # (M,) float64, share of its local steps that a client does, 0 < work <= 1


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

    clients     K; with one or more, at least one is chosen and at least one reports
    fold        the fold's number inside its own config, so that a run among others draws as alone
    dropout     chance of a chosen client to train and not report; never all of them
    stragglers  chance of a chosen client to do a share of its steps, uniform over (0, 1]
    poisson     choose each client by a draw of its own, as DP accounting assumes; may choose none,
                and then none need report either
    What is drawn depends on (seed, round, fold) and clients alone: a greater fraction, dropout or
    stragglers only adds clients to those of a smaller one.
    Source: FedAvg, arXiv:1602.05629 (fraction); FedProx, arXiv:1812.06127 (stragglers).
    """
    # RandomState's stream is promised never to change (NEP 19).
    draw = np.random.RandomState([seed, round, fold, clients, _STREAM])
    chance, leave, late, work = draw.uniform(size=(4, clients))
    if poisson:
        chosen = np.flatnonzero(chance < client_fraction)
    else:
        many = max(1, math.floor(_mended(client_fraction * clients)))
        chosen = np.sort(chance.argsort(kind="stable")[:many])
    reports = leave[chosen] >= dropout
    if len(chosen) and not poisson and not reports.any():
        reports[leave[chosen].argmax()] = True
    share = np.where(late[chosen] < stragglers, 1 - work[chosen], 1.0)  # uniform() may be 0
    return Cohort(chosen, reports, share)


def steps_of(work: float, steps: int) -> int:
    """Local steps that a client takes of its `steps`: ceil(work * steps), at least one if any."""
    return min(steps, max(1, math.ceil(_mended(work * steps))))


def _mended(product: float) -> float:
    # 0.29 * 100 is 28.999999999999996
    return round(product, 9)
