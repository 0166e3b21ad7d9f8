"""Hostile names of domains, classes and settings on pages: thousands, and each page stays harmless.

    python -m tests.reliability.names --count 1000

Names are strung together from what breaks out of HTML, attributes, SVG, CSS, scripts and terminals.
Each page must hold one script, our own, no handler, no address and no tag from a name
(tests/reports/report_pages.py). Exit code 1 where one does.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from pipeline.reports.page import write_report
from tests.reports import report_folders
from tests.reports.report_pages import Page, harmless

PIECES = (
    "<script>alert(1)</script>", "</script>", "<img src=x onerror=alert(1)>", "\"><svg onload=x>",
    "' onmouseover='x", "</title>", "</style>", "<!--", "-->", "]]>", "<![CDATA[", "&lt;b&gt;",
    "&#60;b&#62;", "javascript:alert(1)", "url(http://127.0.0.1/)", "<a href=//x>", "\\u003cb>",
    "{{7*7}}", "${x}", "<iframe srcdoc=x>", "<base href=//x>", "<meta http-equiv=x>", "`", "=",
    "=HYPERLINK(1)", "%3Cscript%3E", "\u202e", "\u0000", "\x1b[2J", "\u2028", "\ufeff", "é漢🐶",
    "<math><mtext></table><style>", "<noscript><p title='</noscript><img src=x>'>", "a" * 60,
)  # fmt: skip


def name(draw: random.Random, number: int) -> str:
    """One to four pieces and a number, so that no two are one."""
    return "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 4))) + str(number)


def page_of_domains(folder: Path, names: list[str]) -> bytes:
    """A run whose domains are called so."""
    run = report_folders.made_run(folder, len(names), 3, len(names))
    for file in ("config.json", "rounds.jsonl", "summary.json"):
        text = (run / file).read_text("utf-8")
        for number, each in reversed(list(enumerate(names))):
            text = text.replace(f'"domain {number}"', json.dumps(each))
        (run / file).write_text(text, "utf-8")
    return write_report(run).read_bytes()


def page_of_classes(folder: Path, names: list[str]) -> bytes:
    """A trained run whose classes, and first domains, are called so.

    Unprintable names are left out: a cache refuses them.
    """
    names = [each for each in names if each.isprintable()]
    before = report_folders.HOSTILE
    report_folders.HOSTILE = tuple(names)
    try:
        run = report_folders.real_run(folder, classes=len(names), rounds=1, head="low-rank")
        return write_report(run).read_bytes()
    finally:
        report_folders.HOSTILE = before


def page_of_settings(folder: Path, names: list[str]) -> bytes:
    """A sweep over a setting with such values."""
    before = report_folders.HOSTILE
    report_folders.HOSTILE = tuple(names)
    try:
        return write_report(report_folders.made_sweep(folder, 3 * len(names))).read_bytes()
    finally:
        report_folders.HOSTILE = before


def shown(page: Page, names: list[str]) -> int:
    """How many of the names stand on the page as text, by their beginnings."""
    return sum(each[:6] in page.text for each in names)


def main() -> int:
    """Counts names, pages, and those that did harm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    asked = parser.parse_args()
    draw, pages, seen, bad, at = random.Random(0), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        while at < asked.count:
            make = (page_of_domains, page_of_classes, page_of_settings)[pages % 3]
            names = [name(draw, at + k) for k in range(20)]
            html = make(Path(folder, str(pages)), names)
            try:
                seen += shown(harmless(html), names)
            except AssertionError as error:
                bad += 1
                print(f"{make.__name__}, names {at} to {at + 19}: {str(error)[:200]}")
            pages, at = pages + 1, at + 20
    print(f"{at:,} names on {pages} pages, {seen:,} of them shown as text, {bad} pages did harm")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
