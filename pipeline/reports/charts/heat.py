"""Accuracies over two settings as a grid of cells: the darker, the higher."""

from collections.abc import Sequence

from pipeline.reports.charts.svg import WIDTH, Markup, chart, element, percent, short

LEFT = 62  # of the cells: room for the values of the setting that goes down
HEIGHT, BELOW = 22, 34  # of a row of cells, and of the labels below them
LETTERS = 7  # of a value beside a row; every second value is written below where there are many


def heat_chart(
    title: str,
    text: str,
    x: Sequence[str],
    y: Sequence[str],
    values: Sequence[Sequence[float | None]],
    marked: tuple[int, int] | None,
    names: tuple[str, str],
) -> Markup:
    """Cells as dark as they are near the largest value; the first row lies at the bottom.

    values  (len(y), len(x)) fractions, None for an empty cell;  marked: (row, column) in a frame
    names   of the settings across and down
    returns an <svg>; a cell's hover text says its settings and its accuracy
    """
    known = [value for row in values for value in row if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    wide = (WIDTH - LEFT) / max(len(x), 1)
    bottom = 16 + HEIGHT * len(y)

    def place(row: int, column: int) -> dict[str, float]:
        return {"x": LEFT + column * wide, "y": float(bottom - (row + 1) * HEIGHT),
                "width": wide, "height": float(HEIGHT)}  # fmt: skip

    parts = [element("text", names[1], x=LEFT - 6, y=10, class_="end quiet")]
    for r, row in enumerate(values):
        height = bottom - (r + 0.5) * HEIGHT + 4
        parts.append(element("text", short(y[r], LETTERS), x=LEFT - 6, y=height, class_="end"))
        for c, value in enumerate(row):
            if value is not None:
                hint = f"{names[1]} {y[r]}, {names[0]} {x[c]}: {percent(value)} %"
                share = (value - low) / (high - low) if high > low else 1.0
                parts.append(element("rect", hint=hint, **place(r, c),
                                     fill_opacity=0.06 + 0.94 * share, class_="right"))  # fmt: skip
    every = -(-len(x) // 8)
    for c in range(0, len(x), every):
        at = LEFT + (c + 0.5) * wide
        parts.append(element("text", short(x[c], LETTERS), x=at, y=bottom + 14.0, class_="middle"))
    parts.append(element("text", names[0], x=WIDTH - 2, y=bottom + 30, class_="end quiet"))
    if marked:
        parts.append(element("rect", **place(*marked), class_="picked"))
    return chart(title, text, bottom + BELOW, *parts)
