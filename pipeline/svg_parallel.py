"""Parallel coordinates: an upright axis for each setting, a line for each trial."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from pipeline.svg import chart, element, number, short

STEP, TOP, DEEP, SIDE = 130, 30, 250, 60  # units between axes, above, along and beside them
LETTERS = 13


class Axis(NamedTuple):
    """One setting: the words at its heights, 0 at the foot and 1 at the head."""

    name: str
    words: Sequence[tuple[float, str]]


class Thread(NamedTuple):
    """One trial: its height on every axis (None: not set), and what hovering shows."""

    name: str
    style: str
    heights: Sequence[float | None]


def parallel_chart(title: str, text: str, axes: Sequence[Axis], threads: Sequence[Thread]):
    """Axes from left to right as an <svg>; threads are drawn in order, the last on top."""
    width = 2 * SIDE + STEP * max(len(axes) - 1, 1)
    parts: list[Markup] = [
        element(
            "path", element("title", thread.name), d=_path(thread), class_=f"thread {thread.style}"
        )
        for thread in threads
    ]
    for at, axis in enumerate(axes):
        x = SIDE + STEP * at
        parts.append(element("path", d=f"M{x} {TOP}V{TOP + DEEP}", class_="axis"))
        head = element("title", axis.name)
        parts.append(element("text", head, short(axis.name, 17), x=x, y=14, class_="middle name"))
        parts += [
            element("text", element("title", word), short(word, LETTERS), x=x + 6,
                    y=_height(up) + 4, class_="halo")
            for up, word in axis.words
        ]  # fmt: skip
    return chart(title, text, TOP + DEEP + 12, *parts, width=max(width, 401))


def _height(up: float) -> float:
    return float(TOP + DEEP * (1 - up))


def _path(thread: Thread) -> str:
    steps, pen = [], "M"
    for at, up in enumerate(thread.heights):
        if up is None:
            pen = "M"
            continue
        steps.append(f"{pen}{SIDE + STEP * at} {number(_height(up))}")
        pen = "L"
    return "".join(steps)
