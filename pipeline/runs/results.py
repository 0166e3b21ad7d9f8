"""Results of a run: a JSON line for each round, a JSON object at the end, a table for people."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipeline.federation.evaluate import mean
from pipeline.federation.record import RoundReport
from pipeline.terminal import printable

RELEASED_PACS = {"art_painting": 0.9515, "cartoon": 0.9536, "photo": 0.9546, "sketch": 0.9499}
"""Overall accuracy by held-out domain that the released code's README prints (ViT-B/32)."""

CHOSEN_BY = {
    "accuracy": "the earliest of the best mean validation accuracy",
    "loss": "the earliest of the least mean validation loss",
    "last": "the last, regardless of validation",
}
"""How results describe the setting `choose`."""


def round_line(report: RoundReport) -> str:
    """The line of rounds.jsonl; val_loss is in it where rounds are chosen by it."""
    told = asdict(report)
    for fold in told["folds"]:
        if fold["val_loss"] is None:
            del fold["val_loss"]
    return json.dumps(told, allow_nan=False)


def mean_results(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Plain mean of the accuracies over folds; None where no fold has one."""
    names = ("unseen", "participants", "overall")

    def means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {n: mean([row[n] for row in rows if row[n] is not None]) for n in names}

    return {**means(results), "zero_shot": means([row["zero_shot"] for row in results])}


def table(document: dict[str, Any]) -> str:
    """The results of `federate --json` as text for people, accuracies in percent."""
    released = released_figures(document["cache"])
    head = ["held out", "round", "unseen", "participants", "overall"]
    head += ["gate moved", "changed"] + (["released"] if released else [])
    untested = any(result["overall"] is None for result in document["results"])
    if untested:
        head.insert(2, "validation")
    rows = [head]
    for result in document["results"]:
        figures = [_both(result, name) for name in ("unseen", "participants", "overall")]
        round_ = "-" if result["best_round"] is None else str(result["best_round"])
        gate = result["gate"]
        gated = gate is not None and gate["distance"] is not None
        moved = f"{gate['distance']:.3f}" if gated else "-"
        changed = "-" if gate is None else f"{gate['changed']}/{gate['tested']}"
        last = [percent(released.get(result["held_out"]))] if released else []
        if untested:
            figures.insert(0, _validation(result))
        rows.append([result["held_out"] or "none", round_, *figures, moved, changed, *last])
    if len(document["results"]) > 1:
        figures = [_both(document["mean"], n) for n in ("unseen", "participants", "overall")]
        last = [percent(mean(list(released.values())))] if released else []
        rows.append(["mean", "", *[""] * untested, *figures, "", "", *last])
    note = "accuracy in %, zero-shot CLIP on both sides of the arrow: nothing was trained"
    if any(result["best_round"] is not None for result in document["results"]):
        note = (
            "accuracy in %, zero-shot -> adapter; rounds count from 0; gate moved: 0 is "
            "zero-shot's uniform gate, 1 a single channel; changed: test rows answered unlike "
            f"zero-shot; round: {CHOSEN_BY[document['config'].get('choose', 'accuracy')]}"
        )
    if document["config"].get("refit") == "yes":
        note += "\nrefit: validation rows trained too; validation figures are of rows that trained"
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


def _both(result: dict[str, Any], name: str) -> str:
    if result[name] is None:
        return "-"
    return f"{percent(result['zero_shot'][name])} -> {percent(result[name])}"


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
