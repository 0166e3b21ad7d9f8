"""Parallel coordinates: an upright axis for each setting, a line for each trial."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.reports.charts.svg import chart, element, label, number

WIDE, STEP = 1200, 130  # units across, and the least between two axes
TOP, DEEP, SIDE = 30, 260, 95  # units above, along and beside the axes
LETTERS = 14


class Axis(NamedTuple):
    """One setting: the words at its heights, 0 at the foot and 1 at the head."""

    name: str
    words: Sequence[tuple[float, str]]


class Thread(NamedTuple):
    """One trial: its height on every axis, and what hovering shows."""

    name: str
    style: str
    heights: Sequence[float]


def parallel_chart(title: str, text: str, axes: Sequence[Axis], threads: Sequence[Thread]):
    """Axes from left to right as an <svg>; threads are drawn in order, the last on top."""
    step = max(STEP, (WIDE - 2 * SIDE) / max(len(axes) - 1, 1))
    parts = [
        element("path", hint=thread.name, d=_path(thread, step), class_=f"thread {thread.style}")
        for thread in threads
    ]
    for at, axis in enumerate(axes):
        x = SIDE + step * at
        parts.append(element("path", d=f"M{number(x)} {TOP}V{TOP + DEEP}", class_="axis"))
        parts.append(label(axis.name, 17, x=x, y=14, class_="middle name"))
        parts += [
            label(word, LETTERS, x=x + 6, y=_height(up) + 4, class_="halo")
            for up, word in axis.words
        ]
    width = 2 * SIDE + step * (len(axes) - 1)
    return chart(title, text, TOP + DEEP + 12, *parts, width=width)


def _height(up: float) -> float:
    return float(TOP + DEEP * (1 - up))


def _path(thread: Thread, step: float) -> str:
    points = (
        f"{number(SIDE + step * n)} {number(_height(up))}" for n, up in enumerate(thread.heights)
    )
    return "M" + "L".join(points)
