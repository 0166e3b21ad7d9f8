"""Points in a plane, coloured by group; a cross or a dot."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.reports.charts.svg import (
    WIDTH,
    Markup,
    Scale,
    chart,
    columns,
    element,
    label,
    number,
    short,
)

HEIGHT = 300
EDGE = 8  # units kept free around the points
LETTERS, LETTER, LINE = 16, 6.2, 13  # of a name: at most, and units that one and a line take


class Cloud(NamedTuple):
    """Points of one look; one path draws them all, so a thousand take 12 KB."""

    name: str
    style: str
    crosses: bool
    points: Sequence[tuple[float, float]]


def scatter_chart(
    title: str,
    text: str,
    clouds: Sequence[Cloud],
    limits: tuple[float, float, float, float],
    named: Sequence[tuple[str, float, float]] = (),
) -> Markup:
    """Clouds as an <svg> without axes: directions of a projection have no unit.

    limits  left, right, bottom, top; pictures to be compared share them
    named   names and where they are written, as near to it as others leave room
    """
    left, right, bottom, top = limits
    # One unit is as long upwards as across, or distances would lie.
    scale = min((WIDTH - 2 * EDGE) / max(right - left, 1e-12),
                (HEIGHT - 2 * EDGE) / max(top - bottom, 1e-12))  # fmt: skip
    wide, tall = (right - left) * scale / 2, (top - bottom) * scale / 2
    x = Scale(left, right, WIDTH / 2 - wide, WIDTH / 2 + wide)
    y = Scale(bottom, top, HEIGHT / 2 + tall, HEIGHT / 2 - tall)
    parts = [
        element("path", hint=cloud.name, d=_dots(cloud, x, y),
                class_=f"{'cross' if cloud.crosses else 'dot'} {cloud.style}")
        for cloud in clouds
        if cloud.points
    ]  # fmt: skip
    edge = element("rect", x=0.5, y=0.5, width=WIDTH - 1, height=HEIGHT - 1, rx=4, class_="edge")
    at = [(name, x(a), y(b)) for name, a, b in named]
    return chart(title, text, HEIGHT, edge, *parts, *_names(at))


def _names(named: Sequence[tuple[str, float, float]]) -> list[Markup]:
    """Names at places in units, moved up or down until they lie apart."""
    written: list[tuple[float, float, float]] = []
    parts = []
    for full, x, y in named:
        half = columns(short(full, LETTERS)) * LETTER / 2
        x = min(max(x, half + EDGE), WIDTH - half - EDGE)
        for move in sorted(range(-9, 10), key=abs):
            up = y + move * LINE
            apart = all(abs(x - a) > half + b or abs(up - c) >= LINE for a, b, c in written)
            if apart and LINE < up < HEIGHT - EDGE:
                written.append((x, half, up))
                parts.append(label(full, LETTERS, x=x, y=up, class_="middle halo"))
                break
    return parts


def _dots(cloud: Cloud, x: Scale, y: Scale) -> str:
    shape = "m-2-2l4 4m0-4l-4 4" if cloud.crosses else "h0.01"
    return "".join(
        f"M{number(round(x(a), 1))} {number(round(y(b), 1))}{shape}" for a, b in cloud.points
    )
