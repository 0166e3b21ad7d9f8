"""A chart of values by round: lines, level lines, marks."""

import itertools
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
    level_lines,
    number,
    ticks,
)

POINTS = 1000  # of a line at most: more than the pixels it gets
ALL_POINTS = 8000  # of a chart, as long as a line keeps 100


class Line(NamedTuple):
    """A named series; a value that is None leaves a gap."""

    name: str
    style: str  # classes of the style sheet
    rounds: Sequence[int]
    values: Sequence[float | None]


class Band(NamedTuple):
    """What lies between two lines."""

    name: str
    style: str
    rounds: Sequence[int]
    ends: Sequence[tuple[float, float]]


class Mark(NamedTuple):
    """A ring around one point."""

    name: str
    style: str
    round: int
    value: float


def line_chart(
    title: str,
    text: str,
    lines: Sequence[Line],
    levels: Sequence[Level] = (),
    marks: Sequence[Mark] = (),
    *,
    value_text: Callable[[float], str] = number,
    limits: tuple[float, float],
    last_round: int,
    bands: Sequence[Band] = (),
) -> Markup:
    """Lines over rounds as an <svg>; hovering a line shows its name and last value.

    value_text  writes a value on the axis and in hover texts
    limits      lowest and highest value, and last_round the last round, that the axes reach:
                charts to be compared share them
    """
    x = Scale(0, last_round, LEFT + 4, RIGHT - 4)
    y = Scale(*limits, HEIGHT - BOTTOM, TOP)
    most = max(100, min(POINTS, ALL_POINTS // max(len(lines), 1)))
    along = [
        element("text", number(v), x=x(v), y=HEIGHT - BOTTOM + 15, class_="middle")
        for v in ticks(0, last_round, 6)
        if v == int(v)
    ]
    rings = [
        element("circle", hint=f"{mark.name}: {value_text(mark.value)}", cx=x(mark.round),
                cy=y(mark.value), r=4, class_=f"ring {mark.style}")
        for mark in marks
    ]  # fmt: skip
    drawn = _clipped([_line(line, x, y, most, value_text) for line in lines], lines, limits)
    return chart(
        title, text, HEIGHT, *frame(y, value_text, "round", along),
        *(_band(band, x, y) for band in bands), *level_lines(levels, y, value_text), *drawn, *rings,
    )  # fmt: skip


def _clipped(
    drawn: Sequence[Markup], lines: Sequence[Line], limits: tuple[float, float]
) -> list[Markup]:
    """The lines; where one leaves the axis all of them inside an <svg>, which cuts at its edge."""
    values = [v for line in lines for v in line.values if v is not None]
    if not values or (limits[0] <= min(values) and max(values) <= limits[1]):
        return list(drawn)
    wide, high = RIGHT - LEFT + 4, HEIGHT - BOTTOM - TOP
    return [element("svg", *drawn, x=LEFT, y=TOP, width=wide, height=high,
                    viewBox=f"{LEFT} {TOP} {wide} {high}")]  # fmt: skip


def _band(band: Band, x: Scale, y: Scale) -> Markup:
    kept = thin([high for _, high in band.ends])
    low, high = (
        [f"{number(x(band.rounds[at]))} {number(y(band.ends[at][k]))}" for at in kept]
        for k in (0, 1)
    )
    d = f"M{'L'.join(low + high[::-1])}Z"
    return element("path", hint=band.name, d=d, class_=f"band {band.style}")


def thin(values: Sequence[float | None], most: int = POINTS) -> list[int]:
    """Positions to draw: all of up to `most`, else the first, last, lowest and highest of blocks.

    Peaks stay, a gap shorter than a block may close; ascending, at most `most`.
    """
    if len(values) <= most:
        return list(range(len(values)))
    blocks = most // 4
    edges = [len(values) * k // blocks for k in range(blocks + 1)]
    kept: list[int] = []
    for start, end in itertools.pairwise(edges):
        known = [at for at in range(start, end) if values[at] is not None] or [start]
        peaks = {choose(known, key=lambda at: values[at] or 0.0) for choose in (min, max)}
        kept += sorted({start, end - 1} | peaks)
    return kept


def _line(line: Line, x: Scale, y: Scale, most: int, value_text: Callable[[float], str]) -> Markup:
    steps, last = [], None
    drawing = False
    for at in thin(line.values, most):
        value = line.values[at]
        if value is not None:
            point = f"{number(x(line.rounds[at]))} {number(y(value))}"
            # The hair's breadth shows a lone point between two gaps: its caps are round.
            steps.append(f"L{point}" if drawing else f"M{point}h0.01")
            last = value
        drawing = value is not None
    hint = line.name if last is None else f"{line.name}, {value_text(last)} at the end"
    style = f"line {line.style}" + (" lone" if len(steps) == 1 else "")
    return element("path", hint=hint, d="".join(steps), class_=style)
