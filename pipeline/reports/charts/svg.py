"""Markup as escaped strings, and what charts share: scales, ticks, a frame, short labels."""

import itertools
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup as Markup  # this is its door: others import it from here
from markupsafe import escape

WIDTH = 400
"""Units across a chart: about its pixels on a narrow screen, so its text is readable there."""
HEIGHT = 230  # of a plot with axes
LEFT, RIGHT, TOP, BOTTOM = 38, 388, 10, 30  # the plot's edges; BOTTOM counts from below
COLOURS = 7  # classes c0 to c6 of the style sheet; what comes after is drawn quiet


@dataclass(frozen=True)
class Scale:
    """Values low to high onto units start to end; scale(value) is where the value lies."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """start + (end - start) * share of the way from low to high; the middle if they are one."""
        length = self.high - self.low
        share = (value - self.low) / length if length > 0 else 0.5
        return self.start + (self.end - self.start) * share


class Level(NamedTuple):
    """A dashed line across the chart."""

    name: str
    style: str
    value: float


def element(name: str, *inside: object, hint: str | None = None, **attributes: object) -> Markup:
    """<name attributes>inside</name>, with everything escaped that is not Markup already.

    inside      strings, made printable(), or Markup
    hint        what hovering shows
    attributes  class_ is class, stroke_width is stroke-width; None is left out; floats are written
                with two decimals at most. Raises ValueError for NaN and Inf: they are not drawn
    """
    # Plain joins of escaped parts: Markup.format took half of the time of a whole report.
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if hint is not None:
        inside = (element("title", hint), *inside)
    return Markup(f"<{name}{written}>{''.join(map(_text, inside))}</{name}>")


def label(name: str, most: int, **attributes: object) -> Markup:
    """A <text> of a name, cut to `most` columns; hovering shows all of it."""
    return element("text", short(name, most), hint=name, **attributes)


def chart(title: str, text: str, height: float, *inside: Markup, width: float = WIDTH) -> Markup:
    """An <svg> of `width` x `height` units with a name and a description for screen readers.

    One wider than WIDTH never shrinks: what holds it scrolls.
    """
    return element(
        "svg",
        element("title", title),
        element("desc", text),
        *inside,
        viewBox=f"0 0 {number(width)} {number(height)}",
        width=width if width > WIDTH else None,
        role="img",
        class_="chart wide" if width > WIDTH else "chart",
    )


def span(values: Sequence[float], *, least: float = 0.0) -> tuple[float, float]:
    """The lowest and highest value with 6 % air, at least `least` apart; 0 and 1 for none."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    air = max(0.06 * (high - low), (least - (high - low)) / 2, 1e-12)
    return low - air, high + air


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from low to high, about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((k * power for k in (1, 2, 5) if rough <= k * power), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def frame(
    y: Scale, y_text: Callable[[float], str], x_title: str, along: Sequence[Markup]
) -> list[Markup]:
    """Grid lines and labels of a plot; y ticks are written by `y_text`, `along` lies below it."""
    across = [
        _across(y(v), class_="grid")
        + element("text", y_text(v), x=LEFT - 6, y=y(v) + 4, class_="end")
        for v in ticks(y.low, y.high)
    ]
    title = element("text", x_title, x=RIGHT, y=HEIGHT - 2, class_="end quiet")
    return [*across, _across(HEIGHT - BOTTOM, class_="axis"), *along, title]


def level_lines(levels: Sequence[Level], y: Scale, y_text: Callable[[float], str]) -> list[Markup]:
    """The levels of a plot; hovering over one shows its name and value."""
    return [
        _across(y(each.value), hint=f"{each.name}: {y_text(each.value)}",
                class_=f"level {each.style}")
        for each in levels
    ]  # fmt: skip


def colour(at: int) -> str:
    """The style of the at-th series: c0 to c6, then quiet."""
    return f"c{at}" if at < COLOURS else "rest"


def short(name: str, most: int) -> str:
    """The name, cut to `most` columns by an ellipsis, before a client's number (photo/12)."""
    if columns(name) <= most:
        return name
    head, slash, number = name.rpartition("/")
    if slash and number.isascii() and number.isdigit() and len(number) + 3 < most:
        return f"{short(head, most - len(number) - 1)}/{number}"
    ends = itertools.accumulate(columns(letter) for letter in name)
    return name[: sum(end < most for end in ends)] + "\u2026"


def columns(name: str) -> int:
    """How wide a name is, in Latin letters: Chinese, Japanese and Korean ones take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in name)


def number(value: float) -> str:
    """At most two decimals, no trailing zeros; ValueError for NaN and Inf."""
    if not math.isfinite(value):
        raise ValueError(f"{value} cannot be drawn")
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else str(int(value))


def percent(fraction: float | None, digits: int = 2) -> str:
    """0.7091 -> 70.91; a dash for None."""
    return "\u2013" if fraction is None else f"{100 * fraction:.{digits}f}"


def printable(text: str) -> str:
    """The text with U+FFFD for characters that do not print: controls, overrides, surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _across(height: float, **attributes: str) -> Markup:
    return element("path", d=f"M{LEFT} {number(height)}H{RIGHT}", **attributes)


def _text(value: object) -> str:
    if isinstance(value, Markup):
        return value
    if isinstance(value, float):
        return number(value)
    return escape(printable(str(value)))
