"""Results of a run: a JSON line for each round, typed results, and a table for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.federation.evaluate import mean
from pipeline.federation.record import RoundReport
from pipeline.frames import frame
from pipeline.terminal import printable

if TYPE_CHECKING:
    from pandas import DataFrame

RELEASED_PACS = {"art_painting": 0.9515, "cartoon": 0.9536, "photo": 0.9546, "sketch": 0.9499}
"""Overall accuracy by held-out domain that the released code's README prints (ViT-B/32)."""

CHOSEN_BY = {
    "accuracy": "the earliest of the best mean validation accuracy",
    "loss": "the earliest of the least mean validation loss",
    "last": "the last, regardless of validation",
}
"""Descriptions of the setting `choose` in results."""


class Accuracies(NamedTuple):
    """Test accuracies, fractions: on held-out domains, on those trained on, and over all domains.

    None where there are no such rows.
    """

    unseen: float | None
    participants: float | None
    overall: float | None


FIGURES = Accuracies._fields


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
        """A row a fold: held_out, settings, best_round, val_accuracy, FIGURES, zero_shot_FIGURES.

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


def round_line(report: RoundReport) -> str:
    """The line of rounds.jsonl; val_loss is in it where rounds are chosen by it."""
    line = asdict(report)
    for fold in line["folds"]:
        if fold["val_loss"] is None:
            del fold["val_loss"]
    return json.dumps(line, allow_nan=False)


def mean_results(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Plain mean of the accuracies over folds; None if no fold has one."""

    def means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {n: mean([row[n] for row in rows if row[n] is not None]) for n in FIGURES}

    return {**means(results), "zero_shot": means([row["zero_shot"] for row in results])}


def table(document: dict[str, Any]) -> str:
    """The results of `federate --json` as text for people, accuracies in percent."""
    released = released_figures(document["cache"])
    untested = any(result["overall"] is None for result in document["results"])
    rows = [["held out", "round", *["validation"] * untested, *FIGURES, "gate moved", "changed",
             *["released"] * bool(released)]]  # fmt: skip
    for result in document["results"]:
        figures = [arrow(result["zero_shot"][name], result[name]) for name in FIGURES]
        round_ = "-" if result["best_round"] is None else str(result["best_round"])
        gate = result["gate"]
        gated = gate is not None and gate["distance"] is not None
        moved = f"{gate['distance']:.3f}" if gated else "-"
        changed = "-" if gate is None else f"{gate['changed']}/{gate['tested']}"
        last = [percent(released.get(result["held_out"]))] if released else []
        first = [result["held_out"] or "none", round_, *[_validation(result)] * untested]
        rows.append([*first, *figures, moved, changed, *last])
    if len(document["results"]) > 1:
        figures = [arrow(document["mean"]["zero_shot"][n], document["mean"][n]) for n in FIGURES]
        last = [percent(mean(list(released.values())))] if released else []
        rows.append(["mean", "", *[""] * untested, *figures, "", "", *last])
    note = "accuracy in %, zero-shot CLIP on both sides of the arrow: nothing was trained"
    if any(result["best_round"] is not None for result in document["results"]):
        note = (
            "accuracy in %, zero-shot -> adapter; rounds count from 0; gate moved: 0 is "
            "zero-shot's uniform gate, 1 a single channel; changed: test rows whose answer differs "
            f"from zero-shot's; round: {CHOSEN_BY[document['config'].get('choose', 'accuracy')]}"
        )
    if document["config"].get("refit") == "yes":
        note += "\nrefit: training used validation rows too, so validation figures include them"
    private = document.get("privacy")
    if private and private["epsilon"] is not None:
        note += (
            f"\ncentral DP: epsilon {private['epsilon']:.2f} at delta {private['delta']:g}; "
            f"{private['note']}"
        )
    return f"{aligned(rows)}\n{note}"


def released_figures(cache: dict[str, Any]) -> dict[str, float]:
    """RELEASED_PACS for a cache of PACS by ViT-B/32, nothing for others."""
    is_pacs = cache["dataset"] == "pacs" and cache["model"] == "ViT-B/32"
    return RELEASED_PACS if is_pacs else {}


def arrow(start: float | None, reached: float | None) -> str:
    """71.20 -> 75.00: what CLIP alone has and the adapter reaches; "-" for None."""
    return "-" if reached is None else f"{percent(start)} -> {percent(reached)}"


def _validation(result: dict[str, Any]) -> str:
    start, reached = result["zero_shot"]["val_accuracy"], result["val_accuracy"]
    return percent(start) + ("" if reached is None else f" -> {percent(reached)}")


def percent(fraction: float | None) -> str:
    """0.9515 -> "95.15"; "-" for None."""
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of columns, the first one left-aligned."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _accuracies(found: dict[str, Any]) -> Accuracies:
    return Accuracies(*(found[name] for name in FIGURES))
