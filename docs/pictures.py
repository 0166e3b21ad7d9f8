"""Makes docs/terminal.svg and docs/report.png from a real run of ./run.sh federate.

    python -m docs.pictures

Takes as long as the run, about half a minute. The report's picture needs a Chromium; without one
only docs/terminal.svg is made.
"""

import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from html import escape
from pathlib import Path

from tests.conftest import ROOT
from tests.docs_check import left_out
from tests.reports import chromium

DOCS = ROOT / "docs"
COLUMNS, WIDTH, LINE = 100, 8, 17  # characters a line; units a character and a line
REPORT = (1180, 1290)  # pixels of the report's top that are shown


def main() -> None:
    """A run in a scratch copy without data or caches, so that it prints what a newcomer sees.

    Paths of the copy are shown as they are in a clone: relative to the project.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "project"
        shutil.copytree(ROOT, copy, ignore=left_out)
        given = os.environ | {"FEDCLIP_PYTHON": sys.executable}
        done = subprocess.run(["./run.sh", "federate"], cwd=copy, env=given, check=True, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        said = done.stdout.replace(f"{copy}/", "")
        (DOCS / "terminal.svg").write_text(terminal("./run.sh federate", said), "utf-8")
        if chromium.find() is None:
            names = ", ".join(chromium.NAMES)
            sys.exit(f"docs/report.png was not made: no browser is installed, none of {names}")
        page = copy / said.split()[-1]
        page.write_text(page.read_text("utf-8").replace(f"{copy}/", ""), "utf-8")
        (DOCS / "report.png").write_bytes(screenshot(page, Path(scratch) / "profile"))


def terminal(command: str, said: str) -> str:
    """An SVG of a terminal: the command, then what it printed, without progress bars."""
    kept = [part for part in re.split(r"[\n\r]", said) if part.strip() and not _is_bar(part)]
    lines = [f"$ {command}"] + [row for line in kept for row in textwrap.wrap(line, COLUMNS)]
    width, height = COLUMNS * WIDTH + 32, LINE * len(lines) + 28
    rows = "\n".join(
        f'<text x="16" y="{26 + LINE * at}">{escape(line)}</text>' for at, line in enumerate(lines)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">\n'
        f"<title>{escape(command)}</title>\n<style>text {{ font: 13px ui-monospace, SFMono-Regular,"
        " Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #d6dae2; white-space: pre }"
        " text:first-of-type { fill: #7fd1ae; font-weight: 600 }</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#1a1f27"/>\n{rows}\n</svg>\n'
    )


def screenshot(page: Path, profile: Path) -> bytes:
    """The top of a report as PNG."""
    width, height = REPORT
    with chromium.Browser(profile) as browser:
        browser.open(page, width)
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = browser.ask("Page.captureScreenshot", format="png", clip=clip,
                           captureBeyondViewport=True)  # fmt: skip
        return base64.b64decode(shot["data"])


def _is_bar(part: str) -> bool:
    return bool(re.search(r"\d+%\||it/s|/s\]|\|", part))


if __name__ == "__main__":
    main()
