"""The pieces of a report page: sections, cards with charts, tables, and the page around them."""

import base64
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.json_files import word
from pipeline.reports.charts.svg import Markup, element, percent, printable
from pipeline.reports.data import ACCURACIES, Result

GAINS = tuple(name for which in ACCURACIES for name in (which, "gain"))
DEPTH = 3  # levels of a value inside a value that get lines of their own; below, it is JSON
PAGE = Path(__file__).resolve().parent / "templates"


class Cell(NamedTuple):
    """What a table's cell shows, what it is sorted by (itself when None), and its classes."""

    text: object
    sort: object = None
    style: str | None = None


def section(title: str, lead: str | Markup, *inside: Markup, level: str = "h3") -> Markup:
    """A heading, a sentence, and what belongs to them; nothing when all that is inside is empty."""
    body = [part for part in inside if part]
    if inside and not body:
        return Markup("")
    intro = element("p", lead, class_="lead") if lead else ""
    return element("section", element(level, title), intro, *body)


def cards(*figures: Markup) -> Markup:
    """Figures side by side as far as the window is wide."""
    return element("div", *figures, class_="cards") if figures else Markup("")


def figure(
    title: str, body: Markup, *, keys: Sequence[Markup] = (), note: str = "", full: bool = False
) -> Markup:
    """A card: title, legend, picture, a sentence under it; `full` takes the whole width."""
    return element(
        "figure",
        element("figcaption", title),
        element("ul", *(element("li", key) for key in keys), class_="legend") if keys else "",
        scroll(body, title) if full else body,
        element("p", note, class_="note") if note else "",
        class_="full" if full else None,
    )


def key(name: str, style: str, kind: str) -> Markup:
    """A legend's entry; kind is line, level, dot, cross, ring, bar or mark."""
    shapes = {
        "line": {"d": "M0 5H22"},
        "level": {"d": "M0 5H22"},
        "dot": {"d": "M11 5h0.01"},
        "cross": {"d": "m8 2 6 6m0-6-6 6"},
        "mark": {"d": "M11 0V10"},
        "thread": {"d": "M0 5H22"},
    }
    if kind in shapes:
        shape = element("path", class_=f"{kind} {style}", **shapes[kind])
    elif kind == "ring":
        shape = element("circle", cx=11, cy=5, r=4, class_=f"ring {style}")
    else:
        shape = element("rect", x=2, y=1, width=18, height=8, rx=2, class_=f"bar {style}")
    return element("svg", shape, viewBox="0 0 22 10", aria_hidden="true") + element("span", name)


def table(
    name: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, caption: str = "",
    last: str = "", chosen: Collection[int] = (), sortable: bool = True,
) -> Markup:  # fmt: skip
    """A table whose columns a script makes sortable, unless told not to.

    name    for screen readers
    caption a sentence above it
    last    class of the last row, which then stays last: it is a foot
    chosen  the rows that are set off
    """
    words = [all(cell.style and "word" in cell.style for cell in column)
             for column in zip(*rows, strict=True)] or [False] * len(heads)  # fmt: skip
    head = element("tr", *(
        element("th", name, scope="col", class_="word" if word else None)
        for name, word in zip(heads, words, strict=True)
    ))  # fmt: skip
    lines = [_row(row, "chosen" if at in chosen else None) for at, row in enumerate(rows)]
    foot = element("tfoot", _row(rows[-1], last)) if last else ""
    body = element("tbody", *(lines[:-1] if last else lines))
    whole = element("table", element("thead", head), body, foot,
                    class_="sortable" if sortable else None)  # fmt: skip
    said = element("p", caption, class_="note") if caption else ""
    return Markup(said) + scroll(whole, name)


def scroll(inside: Markup, name: str) -> Markup:
    """A region that scrolls sideways by itself, by keyboard too, so that the page never does."""
    return element("div", inside, class_="scroll", tabindex=0, role="region", aria_label=name)


def tiles(facts: Sequence[tuple[str, str, str]]) -> Markup:
    """A label, a large figure and a small remark each."""
    return element("dl", *(
        element("div", element("dt", label), element("dd", big, class_="big"),
                element("dd", small, class_="small"))
        for label, big, small in facts
    ), class_="tiles")  # fmt: skip


def warnings(sentences: Sequence[str]) -> Markup:
    """What people should know before they read on; nothing for none."""
    if not sentences:
        return Markup("")
    return element("ul", *(element("li", said) for said in sentences), class_="warnings")


def facts(pairs: Sequence[tuple[str, object]]) -> Markup:
    """Names and values, one pair a line; what is inside a value follows it, set in."""
    items = [
        element("dt", name, class_=f"in{depth}" if depth else None) + element("dd", value)
        for name, value, depth in _lines(pairs)
    ]
    return element("dl", *items, class_="facts")


def accuracy(value: float | None, style: str | None = None) -> Cell:
    """A fraction in percent, sorted as the number."""
    return Cell(percent(value), "" if value is None else value, style)


def setting(value: object) -> Cell:
    """A setting's value: words to the left, numbers to the right."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(word(value), value)
    return Cell(word(value), "" if value is None else None, "word name")


def gain(value: float | None, start: float | None) -> Cell:
    """value - start in percentage points, with its sign; coloured unless it rounds to 0."""
    if value is None or start is None:
        return Cell("\u2013", "")
    points = round(100 * (value - start), 2)
    style = "up" if points > 0 else "down" if points < 0 else None
    return Cell(f"{points:+.2f}", points, style)


def gains(result: Result) -> list[Cell]:
    """The cells under GAINS: what was reached, and what was gained over zero-shot CLIP."""
    cells = []
    for which in ACCURACIES:
        value = getattr(result.scores, which)
        start = getattr(result.zero_shot, which) if result.zero_shot else None
        cells += [accuracy(value), gain(value, start)]
    return cells


def page(title: str, links: Sequence[tuple[str, str]], body: Markup, footer: str) -> str:
    """The whole HTML file: style and script are inside, and its policy allows nothing else.

    links  (anchor, name) of the parts; shown when there are several
    """
    css, script = ((PAGE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    items = [element("li", element("a", name, href=f"#{at}")) for at, name in links]
    nav = element("nav", element("ul", *items), aria_label="Parts") if len(items) > 1 else ""
    csp = (
        f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return str(
        Markup((PAGE / "page.html").read_text("utf-8")).format(
            csp=csp, title=printable(title), css=Markup(css), nav=nav, body=body,
            footer=footer, script=Markup(script),
        )
    )  # fmt: skip


def _lines(pairs: Iterable[tuple[str, object]], depth: int = 0) -> Iterator[tuple[str, str, int]]:
    for name, value in pairs:
        if isinstance(value, dict) and value and depth < DEPTH:
            yield name, "", depth
            yield from _lines(((str(key), inner) for key, inner in value.items()), depth + 1)
        elif isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            yield name, ", ".join(value), depth
        else:
            yield name, str(value) if isinstance(value, Path) else word(value), depth


def _row(row: Sequence[Cell], style: str | None) -> Markup:
    return element("tr", *(
        element("td", cell.text, data_sort=None if cell.sort is None else str(cell.sort),
                class_=cell.style, title=cell.text if cell.style and "name" in cell.style else None)
        for cell in row
    ), class_=style)  # fmt: skip


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
