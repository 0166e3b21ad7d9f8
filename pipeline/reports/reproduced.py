"""What the page of a sweep shows of released figures, where `reproduce` made the sweep."""

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.digests import unsealed
from pipeline.json_files import content_of, fraction, read_object
from pipeline.sweeps.reproduced import FIGURES, NAME, doubts

Line = tuple[str, list[tuple[float | None, float | None]], float | None, float | None]
"""What is held out; reached and zero-shot by figure; std of overall; the released overall."""


class Reproduced(NamedTuple):
    """The paper's table again, its mean last; released: whether released figures are known."""

    lines: list[Line]
    seeds: int
    released: bool
    doubts: list[str]


def read_reproduced(folder: Path) -> Reproduced | None:
    """What `reproduce` found, next to the released table; None for other sweeps.

    Raises ConfigError for a damaged reproduced.json.
    """
    file = folder / NAME
    if not file.exists():
        return None
    with content_of(file):
        document = unsealed(read_object(file))
        released = any(row["released"] is not None for row in document["rows"])
        found = [_line(row) for row in [*document["rows"], document["mean"]]]
        return Reproduced(found, len(document["seeds"]), released, doubts(document))


def _line(row: dict[str, Any]) -> Line:
    pairs = [(fraction(row[n]["mean"]), fraction(row["zero_shot"][n])) for n in FIGURES]
    std = fraction(row["overall"]["std"])
    return str(row["held_out"]), pairs, std, fraction(row["released"])
