"""What the page of a sweep shows of released figures, where `reproduce` made the sweep."""

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.digests import unsealed
from pipeline.json_files import content_of, fraction, read_object, whole
from pipeline.reports.charts.bars import Bar, bar_chart
from pipeline.reports.charts.svg import percent
from pipeline.reports.render import Figure, Key, Tile
from pipeline.reports.spread import Spread
from pipeline.sweeps.reproduced import FIGURES, NAME, doubts
from pipeline.terminal import counted


class Line(NamedTuple):
    """What is held out, what is reached and zero-shot's by figure, the released overall figure."""

    held_out: str
    figures: tuple[tuple[Spread, float | None], ...]
    released: float | None


class Reproduced(NamedTuple):
    """The paper's table again, its mean last; released: whether released figures are known."""

    title: str
    lines: list[Line]
    seeds: int
    rounds: int
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
        name = str(document["dataset"])
        return Reproduced(
            f"{name.upper() if released else name} reproduced", found, len(document["seeds"]),
            whole(document["rounds"]), released, doubts(document),
        )  # fmt: skip


def reproduced_tiles(found: Reproduced) -> list[Tile]:
    """Overall accuracy beside zero-shot's and the released one, and over how many seeds."""
    mean = found.lines[-1]
    overall, zero_shot = mean.figures[-1]
    std = "" if overall.std is None else f", std {percent(overall.std)}"
    tiles = [
        Tile("Overall accuracy", f"{percent(overall.mean)} %", counted(found.seeds, "seed") + std),
        Tile("Zero-shot CLIP", f"{percent(zero_shot)} %", "the same test rows"),
    ]
    if mean.released is not None and overall.mean is not None:
        by = 100 * (overall.mean - mean.released)
        small = f"ours {by:+.2f} points"
        tiles.append(Tile("Released", f"{percent(mean.released)} %", small))
    tiles.append(Tile("Rounds", f"{found.rounds:,}", f"{len(found.lines) - 1} trainings a seed"))
    return tiles


def reproduced_figures(found: Reproduced) -> list[Figure]:
    """Bars of overall accuracy by what is held out, beside zero-shot's; released ones as bars."""
    bars = []
    for line in found.lines:
        overall, zero_shot = line.figures[-1]
        if overall.mean is None:
            continue
        std = "" if overall.std is None else f" ± {percent(overall.std)}"
        ends = None if overall.std is None else (
            max(overall.mean - overall.std, 0.0), min(overall.mean + overall.std, 1.0)
        )  # fmt: skip
        words = f"{percent(overall.mean)}{std}"
        bars.append(Bar(line.held_out, "c0", overall.mean, words, zero_shot, ends))
        if line.released is not None:
            name = f"{line.held_out}, released"
            bars.append(Bar(name, "rest", line.released, percent(line.released)))
    if not bars:
        return []
    keys = [Key("ours, mean ± std over seeds", "c0", "bar"), Key("zero-shot", "", "mark")]
    keys += [Key("released", "rest", "bar")] * found.released
    title = "Overall accuracy by held-out domain, %"
    picture = bar_chart(title, f"{len(bars)} bars", bars, high=1.0)
    return [Figure(title, picture, keys)]


def _line(row: dict[str, Any]) -> Line:
    figures = tuple(
        (Spread(*(fraction(row[n][of]) for of in Spread._fields)), fraction(row["zero_shot"][n]))
        for n in FIGURES
    )
    return Line(str(row["held_out"]), figures, fraction(row["released"]))
