"""The documentation: its commands are known and parse, its links lead somewhere."""

import re
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

from docs.pictures import terminal
from tests import docs_check
from tests.conftest import ROOT
from tests.docs_commands import PAGES, Shown, parse, plan, shown_commands

COMMANDS = [one for page in PAGES for one in shown_commands(page)]
MADE_PAGE = """
Say `./run.sh cache
info a.h5` or `python -m pipeline federate`; `--json` is no command.

```bash
./run.sh sweep a.h5 \\
    --grid lr=1,2   # two of them
rm -rf build
```

    K="--rounds 3"
    KK="a.h5 $K"
    ./run.sh federate $KK --held-out x
    not a command

```
./run.sh shown by a program
```
"""


@pytest.mark.parametrize(
    "shown", COMMANDS, ids=lambda one: f"{one.page}:{one.line} {one.text[:50]}"
)
def test_a_documented_command_is_known_and_parses(shown):
    assert plan(shown.text).words, f"docs-check does not know {shown.text}"
    parse(shown.text)
    if plan(shown.text).words[0] == "./run.sh":
        parse(" ".join(plan(shown.text).words))


def test_commands_are_found_where_people_see_them(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(MADE_PAGE)
    assert [(one.line, one.text) for one in shown_commands(page)] == [
        (2, "./run.sh cache info a.h5"),
        (3, "python -m pipeline federate"),
        (6, "./run.sh sweep a.h5 --grid lr=1,2"),
        (8, "rm -rf build"),
        (13, "./run.sh federate a.h5 --rounds 3 --held-out x"),
    ]
    assert plan("rm -rf build").words is None and plan("./run.sh fly").words is None
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(
    "command",
    ["./run.sh federate --no-such-option", "./run.sh cache fly", "./run.sh predict --run x",
     "./run.sh sweep a.h5 --halving many", "./run.sh test tests/no.py", "python -m tests.no",
     "pip install -r no.txt", "./run.sh bench walking"],
)  # fmt: skip
def test_what_is_wrong_does_not_parse(command):
    with pytest.raises((click.UsageError, ValueError)):
        parse(command)


def test_docs_check_fails_where_one_command_does(capsys):
    good, bad, lost = (Shown("page.md", line, text) for line, text in enumerate(
        ("./run.sh cache --help", "./run.sh cache info none.h5", "make all")))  # fmt: skip
    assert docs_check.check_all([good, good], ROOT) == 0
    assert capsys.readouterr().out.endswith("1 ran, 0 parsed, 0 FAILED\n")
    assert docs_check.check_all([good, bad, lost], ROOT) == 1
    told = capsys.readouterr().out
    assert "no such file" in told and "not a command that docs-check knows" in told
    assert told.endswith("1 ran, 0 parsed, 2 FAILED\n")


def targets(page: Path) -> list[str]:
    """The files that a page links to or shows."""
    found = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    return [target for target in found if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_pictures_are_there(page):
    for target in targets(page):
        assert (page.parent / target).exists(), f"{page.name}: {target}"
    if page == ROOT / "README.md":
        assert {"docs/report.png", "docs/design.md"} <= set(targets(page))


def test_the_terminal_s_picture_is_what_was_printed_without_bars():
    said = (
        "begun\r 50%|#####     | 2/4 [00:01<00:01, 2round/s]\na -> b & <c>\n\n" + "x " * 60 + "\n"
    )
    svg = ElementTree.fromstring(terminal("./run.sh federate", said))
    texts = [one.text for one in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[:3] == ["$ ./run.sh federate", "begun", "a -> b & <c>"]
    assert [len(line) for line in texts[3:]] == [99, 19]
