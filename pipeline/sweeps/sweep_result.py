"""What sweep returns: the object of `sweep --json`, with types."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.frames import frame
from pipeline.sweeps.trials import Record, read_all

if TYPE_CHECKING:
    from pandas import DataFrame


class Best(NamedTuple):
    """The configuration that was chosen.

    score, std  over its seeds, of what it was chosen by: validation accuracy, or the oracle's
    tested      {figure: test accuracy, mean over seeds}, which did not choose
    command     that trains it again
    """

    settings: dict[str, Any]
    score: float | None
    std: float | None
    tested: dict[str, float | None]
    command: str


class SweepResult(dict[str, Any]):
    """The object of `sweep --json` as a dict, and its main parts by attribute.

    It equals, and is written as, that dict.
    """

    @property
    def folder(self) -> Path:
        """The sweep's folder."""
        return Path(self["sweep"])

    @property
    def best(self) -> Best | None:
        """The configuration that was chosen; None where no trial could be."""
        found = self["best"]
        if found is None:
            return None
        score = found["val_accuracy" if self["select"] == "validation" else "oracle_accuracy"]
        tested = {name: spread["mean"] for name, spread in found["tested"].items()}
        return Best(found["settings"], score["mean"], score["std"], tested, found["command"])

    @property
    def trials(self) -> tuple[Record, ...]:
        """All that ended, in order of their numbers, read from the folder; see Record."""
        return tuple(sorted(read_all(self.folder).values(), key=lambda one: one.number))

    def to_frame(self) -> "DataFrame":
        """A row a trial: number, status, its settings, seed, rounds, seconds, val_accuracy, error.

        No test accuracies: choosing by them is not validation; pipeline.reports.tables.records has
        their means over seeds. Raises ConfigError where pandas is not installed or a file of the
        folder is damaged.
        """
        return frame(
            {
                "number": one.number,
                "status": one.status,
                **one.settings,
                "seed": one.seed,
                "rounds": one.rounds,
                "seconds": one.seconds,
                "val_accuracy": one.val_accuracy,
                "error": one.error,
            }
            for one in self.trials
        )
