"""The part of a sweep's report that holds it against released figures."""

from pathlib import Path
from typing import Any

from pipeline.digests import unsealed
from pipeline.json_files import content_of, fraction, read_object
from pipeline.reports.charts.svg import Markup
from pipeline.reports.parts import Cell, accuracy, gain, section, table, warnings
from pipeline.sweeps.reproduced import FIGURES, NAME, doubts


def reproduced_part(folder: Path) -> Markup:
    """What `reproduce` found, cell by cell beside the released table; nothing for other sweeps.

    Raises ConfigError for a reproduced.json that is none.
    """
    file = folder / NAME
    if not file.exists():
        return Markup("")
    with content_of(file):
        document = unsealed(read_object(file))
        released = any(row["released"] is not None for row in document["rows"])
        rows = [_cells(row, released) for row in [*document["rows"], document["mean"]]]
        seeds, said = len(document["seeds"]), doubts(document)
    heads = ["held out", *(head for name in FIGURES for head in (name, "gain")), "std"]
    lead = f"Accuracy in %, mean over {seeds} seed(s); gain: points above zero-shot CLIP; std: of "
    lead += "overall over seeds"
    if released:
        heads += ["released", "difference"]
        lead += "; released: overall as the released code's README has it; difference: ours less it"
    return section(
        "The paper's table",
        f"{lead}.",
        warnings(said),
        table("The paper's table", heads, rows, last="mean"),
    )


def _cells(row: dict[str, Any], released: bool) -> list[Cell]:
    cells = [Cell(str(row["held_out"]), None, "word name")]
    for name in FIGURES:
        reached = fraction(row[name]["mean"])
        cells += [accuracy(reached), gain(reached, fraction(row["zero_shot"][name]))]
    cells.append(accuracy(fraction(row["overall"]["std"])))
    if not released:
        return cells
    published = fraction(row["released"])
    return [*cells, accuracy(published), gain(fraction(row["overall"]["mean"]), published)]
