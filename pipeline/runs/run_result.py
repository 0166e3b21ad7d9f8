"""What federate returns: the object of `federate --json`, with types."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.frames import frame

if TYPE_CHECKING:
    from pandas import DataFrame

FIGURES = ("unseen", "participants", "overall")


class Accuracies(NamedTuple):
    """Test accuracies, fractions: on held-out domains, on those trained on, and over all domains.

    None where there are no such rows.
    """

    unseen: float | None
    participants: float | None
    overall: float | None


class FoldResult(NamedTuple):
    """What one training reached in its chosen round.

    held_out      its held-out domains as results call them; None for none
    best_round    the chosen one; None where nothing was trained
    val_accuracy  the mean over clients in that round
    accuracy      of the adapter on test rows;  zero_shot  of CLIP without it on the same rows
    per_domain    {domain: test accuracy of the adapter}
    """

    held_out: str | None
    best_round: int | None
    val_accuracy: float | None
    accuracy: Accuracies
    zero_shot: Accuracies
    per_domain: dict[str, float | None]


class RunResult(dict[str, Any]):
    """The object of `federate --json` as a dict, and its main parts by attribute.

    It equals, and is written as, that dict.
    """

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self["run"])

    @property
    def folds(self) -> tuple[FoldResult, ...]:
        """One for each held-out choice of the config, in its order."""
        return tuple(
            FoldResult(
                one["held_out"],
                one["best_round"],
                one["val_accuracy"],
                _accuracies(one),
                _accuracies(one["zero_shot"]),
                dict(one["per_domain"]),
            )
            for one in self["results"]
        )

    @property
    def mean(self) -> Accuracies:
        """The plain mean over folds."""
        return _accuracies(self["mean"])

    def to_frame(self) -> "DataFrame":
        """A row a fold: held_out, settings, best_round, val_accuracy, FIGURES, zero_shot_...

        Raises ConfigError where pandas is not installed.
        """
        names = ("method", "head", "seed")
        settings = {name: self["config"][name] for name in names}
        return frame(
            {
                "held_out": fold.held_out,
                **settings,
                "best_round": fold.best_round,
                "val_accuracy": fold.val_accuracy,
                **fold.accuracy._asdict(),
                **{f"zero_shot_{name}": value for name, value in fold.zero_shot._asdict().items()},
            }
            for fold in self.folds
        )


def _accuracies(found: dict[str, Any]) -> Accuracies:
    return Accuracies(*(found[name] for name in FIGURES))
