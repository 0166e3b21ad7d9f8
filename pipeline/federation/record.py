"""The record of one round of a run: a line of rounds.jsonl."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FoldRound:
    """One fold after one round; accuracies are fractions, by domain."""

    held_out: str | None
    train_loss: dict[str, float]
    val_accuracy: dict[str, float]
    best: bool
    test_accuracy: dict[str, float] | None
    train_accuracy: dict[str, float] | None
    rejected: dict[str, str]
    """Clients whose updates were left out of the round, and why."""
    val_loss: dict[str, float | None] | None = None
    """By client, if it chooses rounds; None: not finite."""


@dataclass(frozen=True)
class RoundReport:
    """One round of all folds."""

    round: int
    folds: tuple[FoldRound, ...]


def held_out_name(held_out: Sequence[str]) -> str | None:
    """The name of a fold in results: its held-out domains joined by commas, None for none."""
    return ",".join(held_out) or None
