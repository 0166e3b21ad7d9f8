"""A chart of values at named places or along a number: dots, a line of means, level lines."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.reports.charts.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    Level,
    Markup,
    Scale,
    chart,
    element,
    frame,
    label,
    level_lines,
    number,
)

EDGE = 14  # units kept free beside the first and the last place
LETTERS, LONGEST = 62, 15  # that fit under the whole chart, and in one word at its edge


class Dot(NamedTuple):
    """One value at x, and what hovering shows."""

    name: str
    style: str
    x: float
    y: float


def points_chart(
    title: str,
    text: str,
    dots: Sequence[Dot],
    line: Sequence[tuple[float, float]],
    levels: Sequence[Level],
    *,
    x_title: str,
    words: Sequence[tuple[float, str]],
    value_text: Callable[[float], str],
    limits: tuple[float, float],
) -> Markup:
    """Dots, and a line over them, as an <svg>.

    words   labels along the axis, x from 0 (left) to 1 (right); limits as in line_chart
    """
    x, y = Scale(0, 1, LEFT + EDGE, RIGHT - EDGE), Scale(*limits, HEIGHT - BOTTOM, TOP)
    room = min(max(LETTERS // max(len(words), 1), 3), LONGEST)
    along = [
        label(word, room, x=x(at), y=HEIGHT - BOTTOM + 15, class_="middle") for at, word in words
    ]
    parts = [*frame(y, value_text, x_title, along), *level_lines(levels, y, value_text)]
    if line:
        points = "L".join(f"{number(x(a))} {number(y(b))}" for a, b in line)
        parts.append(element("path", d=f"M{points}h0.01", class_="line c0 strong"))
    parts += [
        element("path", hint=dot.name, class_=f"dot {dot.style}",
                d=f"M{number(round(x(dot.x), 1))} {number(round(y(dot.y), 1))}h0.01")
        for dot in dots
    ]  # fmt: skip
    return chart(title, text, HEIGHT, *parts)
