"""The part of a sweep's report that holds it against released figures."""

from pathlib import Path
from typing import Any

from pipeline.report_files import content_of, fraction, read_object
from pipeline.report_parts import Cell, accuracy, gain, section, table, warnings
from pipeline.reproduced import FIGURES, NAME, doubts
from pipeline.svg import Markup


def reproduced_part(folder: Path) -> Markup:
    """What `reproduce` found, cell by cell beside the released table; nothing for other sweeps.

    Raises ConfigError for a reproduced.json that is none.
    """
    file = folder / NAME
    if not file.exists():
        return Markup("")
    document = read_object(file)
    with content_of(file):
        rows = [_cells(row) for row in [*document["rows"], document["mean"]]]
        seeds, said = len(document["seeds"]), doubts(document)
    heads = ["held out"]
    for name in FIGURES:
        heads += [name, "gain"]
    return section(
        "The paper's table",
        f"Accuracy in %, mean over {seeds} seed(s); gain: points above zero-shot CLIP; released: "
        "overall as the released code's README has it; difference: our overall less it.",
        warnings(said),
        table("The paper's table", [*heads, "std", "released", "difference"], rows, last="mean"),
    )


def _cells(row: dict[str, Any]) -> list[Cell]:
    cells = [Cell(str(row["held_out"]), None, "word name")]
    for name in FIGURES:
        reached = fraction(row[name]["mean"])
        cells += [accuracy(reached), gain(reached, fraction(row["zero_shot"][name]))]
    overall, released = row["overall"], fraction(row["released"])
    ours = fraction(overall["mean"])
    return [*cells, accuracy(fraction(overall["std"])), accuracy(released), gain(ours, released)]
