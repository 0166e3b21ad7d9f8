"""What is recorded of one round of a run: a line of rounds.jsonl."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


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
    """By client, where rounds are chosen by it; None: not finite."""


@dataclass(frozen=True)
class RoundReport:
    """One round of all folds."""

    round: int
    folds: tuple[FoldRound, ...]

    def to_json(self) -> str:
        """The line of rounds.jsonl; val_loss is in it where rounds are chosen by it."""
        told = asdict(self)
        for fold in told["folds"]:
            if fold["val_loss"] is None:
                del fold["val_loss"]
        return json.dumps(told, allow_nan=False)


def held_out_name(held_out: Sequence[str]) -> str | None:
    """How results call a fold: its held-out domains joined by commas, None for none."""
    return ",".join(held_out) or None
