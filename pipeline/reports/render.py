"""Plain data to HTML by the templates in templates/; the only importer of Jinja2."""

import base64
import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.json_files import is_number, word
from pipeline.reports.charts.svg import Markup, number, percent, printable
from pipeline.reports.data import ACCURACIES

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).resolve().parent / "templates"
DEPTH = 3  # levels of a value inside a value that get lines of their own; below, it is JSON


class Key(NamedTuple):
    """A legend's entry; kind is line, level, dot, cross, ring, bar, mark or thread."""

    name: str
    style: str
    kind: str


class Figure(NamedTuple):
    """A card: title, picture, legend, a sentence under it; `full` takes the whole width."""

    title: str
    picture: Markup
    keys: Sequence[Key] = ()
    note: str = ""
    full: bool = False


class Tile(NamedTuple):
    """A label, a large figure and a small remark."""

    label: str
    big: str
    small: str


def render(template: str, **data: object) -> Markup:
    """The template filled with data; every value in it that is not Markup is escaped.

    Raises jinja2.UndefinedError for a name that data does not have.
    """
    return Markup(_environment().get_template(template).render(**data, toc=[]))


def page(
    title: str,
    links: Sequence[tuple[str, str]],
    parts: Sequence[Markup],
    scripts: Sequence[str] = ("page.js",),
    reload: int | None = None,
) -> bytes:
    """The whole HTML file, as UTF-8, with the time at its foot.

    Style and script are inside, and its policy allows nothing else.

    links    (anchor, name) of the parts; shown when there are several
    scripts  files of templates/
    reload   seconds after which a browser loads the page again; None: it does not
    """
    css = (TEMPLATES / "page.css").read_text("utf-8")
    script = "".join((TEMPLATES / name).read_text("utf-8") for name in scripts)
    csp = (
        f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    now = time.strftime("%Y-%m-%d %H:%M:%S" if reload else "%Y-%m-%d %H:%M", time.localtime())
    foot = f"Written {now} by ./run.sh, from the files of the results above alone."
    if reload:
        foot += f" It is written again, and loaded again every {reload} s."
    return render(
        "page.html", title=title, links=links, parts=parts, foot=foot, csp=Markup(csp),
        css=Markup(css), script=Markup(script), reload=reload,
    ).encode("utf-8")  # fmt: skip


def duration(seconds: float) -> str:
    """14.3 s, 3 min 20 s, 7 h 18 min."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60:,} h {minutes % 60} min" if minutes >= 120 else f"{minutes} min {rest} s"
    )


def lines(pairs: Iterable[tuple[str, object]], depth: int = 0) -> Iterator[tuple[str, str, int]]:
    """Name, value and depth of each pair; what is inside a value follows it, one level deeper."""
    for name, value in pairs:
        if isinstance(value, dict) and value and depth < DEPTH:
            yield name, "", depth
            yield from lines(((str(key), inner) for key, inner in value.items()), depth + 1)
        elif isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            yield name, ", ".join(value), depth
        else:
            yield name, str(value) if isinstance(value, Path) else word(value), depth


def sentence(words: str) -> str:
    """The words with a capital and a full stop."""
    words = words.strip()
    return f"{words[:1].upper()}{words[1:]}."


def points(value: float, start: float) -> float:
    """value - start in percentage points, two decimals."""
    return round(100 * (value - start), 2) + 0.0  # -0.0 has a sign


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # only where a page is made

    made = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        finalize=_shown, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.globals |= {"ACCURACIES": ACCURACIES}
    made.filters |= {
        "comma": lambda count: f"{count:,}", "duration": duration, "lines": lines,
        "percent": percent, "points": points, "word": word, "numeric": is_number,
    }  # fmt: skip
    return made


def _shown(value: object) -> object:
    """What a template's {{ value }} writes, before it is escaped."""
    if isinstance(value, Markup):
        return value
    if value is None:
        return "\u2013"
    return number(value) if isinstance(value, float) else printable(str(value))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
