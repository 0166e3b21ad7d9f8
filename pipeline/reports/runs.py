"""Several runs and sweeps side by side: a table to filter and sort, and chosen curves together."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.reports.charts.svg import Markup, printable
from pipeline.reports.listing import FIGURES, Listed
from pipeline.reports.render import render
from pipeline.reports.trials import setting_heads, varied

DRAWN = 5  # curves that are laid over each other before any is chosen
MANY = 20  # rows of a table without a height of its own
SETTINGS = 16  # columns of settings that differ; more are in the pages of the runs
SCRIPT = "runs.js"
OWN = ("method", "seed", "backend", "device")  # settings with a column of their own, or of no use


def runs_part(rows: Sequence[Listed], links: Mapping[Path, str]) -> Markup:
    """The part of a page that lists and compares; curves are drawn by SCRIPT.

    links  by folder, where its own page or part is
    """
    settings = [dict(row.settings) for row in rows]
    names = [name for name in varied(settings) if name not in OWN]
    drawn = [row.curves for row in rows if row.curves]
    return render(
        "runs.html",
        anchor="compared",
        rows=list(zip(rows, settings, strict=True)),
        links=links,
        figures=FIGURES,
        names=names[:SETTINGS],
        left=names[SETTINGS:],
        heads=setting_heads(names[:SETTINGS], settings),
        datasets=len({row.dataset for row in rows if row.dataset}),
        chosen=DRAWN,
        many=MANY,
        data=[_points(row) for row in rows] if drawn else [],
    )


def _points(row: Listed) -> dict[str, object]:
    """The curves of a line for SCRIPT: rounds, and percent with two decimals."""
    return {
        "name": printable(row.name),
        **{
            what: [curve.rounds, [None if v is None else round(100 * v, 2) for v in curve.values]]
            for what, curve in row.curves.items()
        },
    }
