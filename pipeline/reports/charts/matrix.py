"""A confusion matrix as squares: a row a true class, a column an answer."""

from collections.abc import Sequence

from pipeline.reports.charts.svg import WIDTH, Markup, chart, columns, element, label

LETTERS, LETTER = 14, 7.4  # of a class name beside a row, and units that a wide one takes
NUMBERS = 12  # classes up to which counts are written into the squares


def matrix_chart(title: str, text: str, names: Sequence[str], counts: Sequence[Sequence[int]]):
    """Squares as dark as their share of the row; right answers and errors in two colours.

    names   C class names
    counts  (C, C) rows of class c answered with class k
    returns an <svg>; a square's hover text says what it counts
    """
    margin = 8 + LETTER * min(max((columns(name) for name in names), default=0), LETTERS)
    side = (WIDTH - margin) / max(len(names), 1)
    below = 10 + 0.65 * (margin - 8)  # the slope of the longest name at 40 degrees
    parts: list[Markup] = []
    for true, row in enumerate(counts):
        total = sum(row)
        y = true * side
        parts.append(label(names[true], LETTERS, x=margin - 6, y=y + side / 2 + 4, class_="end"))
        for answer, count in enumerate(row):
            if count:
                where = (margin + answer * side, y, side)
                hint = f"{names[true]} answered {names[answer]}: {count} of {total}"
                parts += _square(where, true == answer, count, count / total, hint, len(names))
    low = len(names) * side + 12
    for answer, name in enumerate(names):
        x = margin + (answer + 0.5) * side + 4
        turned = f"rotate(-40 {x:.1f} {low:.1f})"
        parts.append(label(name, LETTERS, x=x, y=low, transform=turned, class_="end"))
    edge = element("rect", x=margin, y=0, width=len(names) * side, height=len(names) * side,
                   class_="edge")  # fmt: skip
    return chart(title, text, low + below, edge, *parts)


def _square(
    where: tuple[float, float, float], right: bool, count: int, share: float, hint: str, many: int
) -> list[Markup]:
    x, y, side = where
    gap = min(1.0, side / 10)
    inner = {"x": x + gap, "y": y + gap, "width": side - 2 * gap, "height": side - 2 * gap}
    parts = [
        element("rect", hint=hint, **inner, rx=min(2.0, side / 8),
                fill_opacity=0.08 + 0.92 * share, class_="right" if right else "wrong")
    ]  # fmt: skip
    if many <= NUMBERS:
        # Blended over a light card only the darkest squares need light words, over a dark one all
        # that are more than half filled need dark ones.
        style = "full" if share > 0.85 else "half" if share > 0.55 else ""
        parts.append(element("text", str(count), x=x + side / 2, y=y + side / 2 + 4,
                             class_=f"middle count {style}"))  # fmt: skip
    return parts
