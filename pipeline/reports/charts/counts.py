"""Counts as a grid of cells, a row a client and a column a class: the darker, the more."""

from collections.abc import Sequence

from pipeline.reports.charts.svg import WIDTH, Markup, chart, element, label, number

LEFT, WIDE = 92, 860  # of the cells; units across a grid of many columns
LETTERS = 12
NARROW = 24  # columns that fit at a chart's usual width
HINTS = 3000  # cells up to which each says its number on hover
SHADES = 6


def count_chart(
    title: str, text: str, rows: Sequence[str], columns: Sequence[str],
    counts: Sequence[Sequence[int]],
) -> Markup:  # fmt: skip
    """Cells as dark as the square root of their share of the largest count; 0 stays empty.

    counts  (len(rows), len(columns)) whole numbers
    returns an <svg>; up to HINTS cells say their number on hover
    """
    width = WIDTH if len(columns) <= NARROW else WIDE
    wide, high = (width - LEFT) / max(len(columns), 1), 20.0 if len(rows) <= 30 else 9.0
    most = max((max(row, default=0) for row in counts), default=0)
    hints = len(rows) * len(columns) <= HINTS
    parts, shades = [], [""] * SHADES
    for r, row in enumerate(counts):
        if high > 10 or r % 2 == 0:
            y = (r + 0.5) * high + 4
            parts.append(label(rows[r], LETTERS, x=LEFT - 6, y=y, class_="end"))
        for c, count in enumerate(row):
            if not count:
                continue
            shade = max(1, round(SHADES * (count / most) ** 0.5))
            x, y, gap = LEFT + c * wide, r * high, min(1.0, wide / 8)
            if hints:
                hint = f"{rows[r]}, {columns[c]}: {count:,} rows"
                parts.append(element("rect", hint=hint, x=x, y=y, width=wide - gap, height=high - 1,
                                     fill_opacity=shade / SHADES, class_="right"))  # fmt: skip
            else:
                shades[shade - 1] += (
                    f"M{number(x)} {number(y)}h{number(wide - gap)}v{number(high - 1)}"
                    f"h{number(gap - wide)}z"
                )
    parts += [element("path", d=d, class_="cells", fill_opacity=(n + 1) / SHADES)
              for n, d in enumerate(shades) if d]  # fmt: skip
    bottom = len(rows) * high
    edge = element("rect", x=LEFT, y=0.0, width=wide * len(columns), height=bottom, class_="edge")
    every = max(1, -(-len(columns) // int((width - LEFT) / 22)))
    for c in range(0, len(columns), every):
        x, y = LEFT + (c + 0.5) * wide + 4, bottom + 12
        turned = f"rotate(-40 {x:.1f} {y:.1f})"
        parts.append(label(columns[c], LETTERS, x=x, y=y, transform=turned, class_="end"))
    return chart(title, text, bottom + 66, edge, *parts, width=width)
