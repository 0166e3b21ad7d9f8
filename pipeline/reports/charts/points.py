"""A chart of values at named places or along a number: dots, a line of means, level lines."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.reports.charts.lines import HEIGHT, Level
from pipeline.reports.charts.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Markup,
    Scale,
    chart,
    element,
    number,
    place,
    short,
    ticks,
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
    bottom = HEIGHT - BOTTOM
    parts = [
        element("path", d=f"M{LEFT} {number(place(y, v))}H{RIGHT}", class_="grid")
        + element("text", value_text(v), x=LEFT - 6, y=place(y, v) + 4, class_="end")
        for v in ticks(*limits)
    ]
    parts.append(element("path", d=f"M{LEFT} {bottom}H{RIGHT}", class_="axis"))
    room = min(max(LETTERS // max(len(words), 1), 3), LONGEST)
    parts += [
        element("text", element("title", word), short(word, room), x=place(x, at), y=bottom + 15,
                class_="middle")
        for at, word in words
    ]  # fmt: skip
    parts.append(element("text", x_title, x=RIGHT, y=HEIGHT - 2, class_="end quiet"))
    parts += [
        element("path", element("title", f"{level.name}: {value_text(level.value)}"),
                d=f"M{LEFT} {number(place(y, level.value))}H{RIGHT}", class_=f"level {level.style}")
        for level in levels
    ]  # fmt: skip
    if line:
        points = "L".join(f"{number(place(x, a))} {number(place(y, b))}" for a, b in line)
        parts.append(element("path", d=f"M{points}h0.01", class_="line c0 strong"))
    parts += [
        element("path", element("title", dot.name), class_=f"dot {dot.style}",
                d=f"M{number(round(place(x, dot.x), 1))} {number(round(place(y, dot.y), 1))}h0.01")
        for dot in dots
    ]  # fmt: skip
    return chart(title, text, HEIGHT, *parts)
