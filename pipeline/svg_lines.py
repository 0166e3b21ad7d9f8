"""A chart of values by round: lines, level lines, marks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from pipeline.svg import BOTTOM, LEFT, RIGHT, TOP, Scale, chart, element, frame, number, place, span

HEIGHT = 230
POINTS = 1000  # of a line at most: more than the pixels it gets


class Line(NamedTuple):
    """A named series; a value that is None leaves a gap."""

    name: str
    style: str  # classes of the style sheet
    rounds: Sequence[int]
    values: Sequence[float | None]


class Level(NamedTuple):
    """A dashed line across the chart."""

    name: str
    style: str
    value: float


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
    limits: tuple[float, float] | None = None,
    least: float = 0.0,
) -> Markup:
    """Lines over rounds as an <svg>; hovering a line shows its name and last value.

    value_text  writes a value on the axis and in hover texts
    limits      of the value axis; None for those of what is drawn, at least `least` apart
    """
    drawn = [v for line in lines for v in line.values if v is not None]
    drawn += [level.value for level in levels] + [mark.value for mark in marks]
    rounds = [r for line in lines for r in (line.rounds[:1], line.rounds[-1:]) for r in r]
    low, high = limits or span(drawn, least=least)
    x = Scale(min(rounds, default=0), max(rounds, default=0), LEFT + 4, RIGHT - 4)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    hints = [
        f"{line.name}, {value_text(last)} at the end"
        for line in lines
        for last in [next((v for v in reversed(line.values) if v is not None), 0.0)]
    ]
    parts = [frame(x, y, "round", value_text, height=HEIGHT)]
    parts += [
        element("path", element("title", f"{level.name}: {value_text(level.value)}"),
                d=f"M{LEFT} {number(place(y, level.value))}H{RIGHT}", class_=f"level {level.style}")
        for level in levels
    ]  # fmt: skip
    parts += [
        element("path", element("title", hint), d=_path(line, x, y), class_=f"line {line.style}")
        for line, hint in zip(lines, hints, strict=True)
    ]
    parts += [
        element("circle", element("title", f"{mark.name}: {value_text(mark.value)}"),
                cx=place(x, mark.round), cy=place(y, mark.value), r=4, class_=f"ring {mark.style}")
        for mark in marks
    ]  # fmt: skip
    return chart(title, text, HEIGHT, *parts)


def thin(values: Sequence[float | None], most: int = POINTS) -> list[int]:
    """Positions to draw: all of up to `most`, else the first, last, lowest and highest of blocks.

    Peaks and gaps of the whole series stay; ascending, at most `most`.
    """
    if len(values) <= most:
        return list(range(len(values)))
    blocks = most // 4
    edges = [len(values) * k // blocks for k in range(blocks + 1)]
    kept: list[int] = []
    for start, end in zip(edges, edges[1:], strict=False):
        there = [at for at in range(start, end) if values[at] is not None]
        low_high = (
            {min(there, key=values.__getitem__), max(there, key=values.__getitem__)}
            if there
            else set()
        )
        kept += sorted({start, end - 1} | low_high)
    return kept


def _path(line: Line, x: Scale, y: Scale) -> str:
    steps, pen = [], "M"
    for at in thin(line.values):
        value = line.values[at]
        if value is None:
            pen = "M"
            continue
        steps.append(f"{pen}{number(place(x, line.rounds[at]))} {number(place(y, value))}")
        pen = "L"
    if len(steps) == 1:
        steps.append("h0.01")  # a lone point: a round cap shows it
    return "".join(steps)
