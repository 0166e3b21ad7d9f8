"""What a trial keeps of its rounds: validation by round, few enough numbers for its line."""

from collections.abc import Mapping, Sequence

from pipeline.federation.evaluate import mean, mean_of_all
from pipeline.federation.record import FoldRound

MOST = 100
"""Numbers of a curve; of more rounds every so many-th is kept."""
DIGITS = 5
"""Decimals: a row more or less of 100,000."""
NAMES = ("val_accuracy", "val_loss")

ByRound = dict[int, tuple[float | None, float | None]]
"""By round, counted from 0: validation accuracy and loss; None for what has none."""


def figures_of(folds: Sequence[FoldRound]) -> tuple[float | None, float | None]:
    """Means over a trial's folds of the mean validation accuracy, and loss where it is known."""
    accuracies = [mean(list(fold.val_accuracy.values())) for fold in folds]
    losses = [mean_of_all(fold.val_loss.values()) if fold.val_loss else None for fold in folds]
    return mean_of_all(accuracies), mean_of_all(losses)


def curves_of(
    by_round: Mapping[int, tuple[float | None, float | None]], rounds: int
) -> dict | None:
    """The curves as a trial's line has them; None where there is nothing.

    rounds   that were trained
    returns  "every": k, and by NAMES, as far as known, the values after k, 2 k, ... rounds and
             after the last one: fractions and nats of DIGITS decimals, None where not finite
    """
    every = max(1, -(-rounds // MOST))
    ends = [*range(every, rounds, every), rounds]
    kept = [by_round.get(end - 1, (None, None)) for end in ends]
    curves = {
        name: [None if value is None else round(value, DIGITS) for value in values]
        for name, values in zip(NAMES, zip(*kept, strict=True), strict=True)
        if any(value is not None for value in values)
    }
    return {"every": every, **curves} if curves else None
