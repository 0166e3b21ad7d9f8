"""Accuracies over two settings as a grid of cells: the darker, the higher."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.reports.charts.svg import WIDTH, Markup, chart, element, percent, short

LEFT = 62  # of the cells: room for the values of the setting that goes down
HEIGHT, BELOW = 22, 34  # of a row of cells, and of the labels below them
LETTERS = 7  # of a value beside a row; every second value is written below where there are many


class Grid(NamedTuple):
    """Accuracies over two settings: values[y][x], fractions, None where nothing is known.

    marked  (y, x) of what was chosen
    """

    name: str
    x_name: str
    y_name: str
    x: tuple[str, ...]
    y: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    marked: tuple[int, int] | None = None


def extremes(values: Sequence[Sequence[float | None]]) -> tuple[float, float]:
    """The least and the largest known value; 0 and 1 for none."""
    known = [value for row in values for value in row if value is not None]
    return (min(known), max(known)) if known else (0.0, 1.0)


def heat_chart(title: str, text: str, grid: Grid) -> Markup:
    """Cells as dark as they are near the largest value; the first row lies at the bottom.

    returns an <svg>; a cell's hover text says its settings and its accuracy
    """
    low, high = extremes(grid.values)
    wide = (WIDTH - LEFT) / max(len(grid.x), 1)
    bottom = 16 + HEIGHT * len(grid.y)

    def place(row: int, column: int) -> dict[str, float]:
        return {"x": LEFT + column * wide, "y": float(bottom - (row + 1) * HEIGHT),
                "width": wide, "height": float(HEIGHT)}  # fmt: skip

    parts = [element("text", grid.y_name, x=LEFT - 6, y=10, class_="end quiet")]
    for r, row in enumerate(grid.values):
        height = bottom - (r + 0.5) * HEIGHT + 4
        parts.append(element("text", short(grid.y[r], LETTERS), x=LEFT - 6, y=height, class_="end"))
        for c, value in enumerate(row):
            if value is not None:
                hint = f"{grid.y_name} {grid.y[r]}, {grid.x_name} {grid.x[c]}: {percent(value)} %"
                share = (value - low) / (high - low) if high > low else 1.0
                parts.append(element("rect", hint=hint, **place(r, c),
                                     fill_opacity=0.06 + 0.94 * share, class_="right"))  # fmt: skip
    every = -(-len(grid.x) // 8)
    for c in range(0, len(grid.x), every):
        at, name = LEFT + (c + 0.5) * wide, short(grid.x[c], LETTERS)
        parts.append(element("text", name, x=at, y=bottom + 14.0, class_="middle"))
    parts.append(element("text", grid.x_name, x=WIDTH - 2, y=bottom + 30, class_="end quiet"))
    if grid.marked:
        parts.append(element("rect", **place(*grid.marked), class_="picked"))
    return chart(title, text, bottom + BELOW, *parts)
