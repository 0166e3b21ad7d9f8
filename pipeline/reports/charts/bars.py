"""Horizontal bars from zero, each with its name above it and a mark to be compared with."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.reports.charts.svg import WIDTH, Markup, Scale, chart, element, label, number

ROW, BAR = 31, 9  # units a bar takes with its name, and alone
LETTERS = 58  # about what fits beside each other at the chart's width


class Bar(NamedTuple):
    """One bar: its length, the words at its right, and what it is compared with."""

    name: str
    style: str
    value: float
    text: str
    mark: float | None = None  # a tick across the bar: zero-shot, or the floor
    spread: tuple[float, float] | None = None  # whiskers


def bar_chart(title: str, text: str, bars: Sequence[Bar], *, high: float | None = None) -> Markup:
    """Bars as an <svg>, one above the other in the given order.

    high  what 100 % is: the value at the right edge, with a groove that shows its length; None for
          the largest that is drawn
    """
    reach = [v for b in bars for v in (b.value, b.mark or 0.0, *(b.spread or ()))]
    x = Scale(0.0, high or max(reach, default=0.0) or 1.0, 0, WIDTH)
    parts = [
        part for at, bar in enumerate(bars) for part in _bar(bar, x, at * ROW, high is not None)
    ]
    return chart(title, text, max(len(bars), 1) * ROW, *parts)


def _bar(bar: Bar, x: Scale, top: float, full: bool) -> list[Markup]:
    under = top + 17

    def box(width: float, style: str) -> Markup:
        return element("rect", x=0, y=under, width=width, height=BAR, rx=2, class_=style)

    parts = [
        label(bar.name, LETTERS - len(bar.text), x=0, y=top + 12),
        element("text", bar.text, x=WIDTH, y=top + 12, class_="end"),
        *([box(WIDTH, "groove")] if full else []),
        box(max(x(bar.value), 0.5), f"bar {bar.style}"),
    ]
    if bar.spread:
        low, high = (number(x(v)) for v in bar.spread)
        middle = number(under + BAR / 2)
        parts.append(element("path", d=f"M{low} {middle}H{high}", class_="whisker"))
    if bar.mark is not None:
        at = min(max(x(bar.mark), 1), WIDTH - 1)
        d = f"M{number(at)} {number(under - 3)}v{BAR + 6}"
        parts.append(element("path", d=d, class_="mark"))
    return parts
