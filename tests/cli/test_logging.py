"""Who hears what: nothing in a library, one handler in a command, bars and lines apart."""

import io
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import progress, terminal
from tests.cli.commands import call
from tests.conftest import ROOT
from tests.runs.small_runs import config, run, small, stored

WORDS = ("--rounds", 2, "--batch", 8, "--device", "cpu", "--backend", "torch")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def file(tmp_path):
    stored(tmp_path)
    return tmp_path / "small.h5"


def test_a_library_user_hears_nothing_unless_asked(tmp_path, capfd):
    loud = config(method="trimmed-mean", lr=10.0, mu=0.5)
    run(small(), tmp_path / "quiet", loud)
    assert capfd.readouterr() == ("", "")
    code = "import logging, cache, pipeline\nfor n in ('pipeline.x', 'cache.x'):\n"
    code += "    logging.getLogger(n).error('not shown')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_levels_of_a_command(file, tmp_path):
    def talk(*options):
        out = tmp_path / ("run" + "".join(options))
        done = call("federate", file, *WORDS, "--mu", 0.5, "--out", out, *options)
        assert "unseen" in done.stdout
        return done.stderr

    usual, quiet, loud = talk(), talk("-q"), talk("--verbose")
    assert "results in" in usual and "Warning: mu has no effect" in usual
    assert quiet.splitlines() == [line for line in usual.splitlines() if "Warning: " in line]
    assert "[pipeline." in loud and "[pipeline." not in usual
    assert talk("-v", "-q") == quiet  # the last one counts


def test_a_command_leaves_the_loggers_as_they_were(file):
    before = [(logging.getLogger(name).level, list(logging.getLogger(name).handlers))
              for name in terminal.LOGGERS]  # fmt: skip
    call("cache", "verify", file, "-v")
    call("cache", "verify", file.parent / "none", "-q", code=4)
    after = [(logging.getLogger(name).level, list(logging.getLogger(name).handlers))
             for name in terminal.LOGGERS]  # fmt: skip
    assert before == after


@given(st.text(st.characters(exclude_categories=())), st.sampled_from([20, 30, 40]))
def test_every_record_is_one_printable_line(text, level):
    behind, before = io.StringIO(newline=""), sys.stderr
    sys.stderr = behind
    try:
        with terminal.log_to():
            logging.getLogger("pipeline.somewhere").log(level, "of %s", text)
    finally:
        sys.stderr = before
    (line,) = behind.getvalue().split("\n")[:-1]
    assert line.isprintable() and line.startswith({30: "Warning: ", 40: "Error: "}.get(level, "of"))


def test_log_lines_do_not_tear_a_living_bar(monkeypatch):
    behind = Terminal()
    monkeypatch.setattr(sys, "stderr", behind)
    with terminal.log_to(), progress.progress_bar(total=9, desc="bar") as bar:
        bar.update(3)
        bar.refresh()
        logging.getLogger("pipeline.somewhere").warning("a line")
        bar.update(3)
    shown = behind.getvalue()
    at = shown.index("Warning: a line\n")
    line_before = shown[:at].rsplit("\n", 1)[-1]
    assert line_before.endswith("\r") and not line_before.rstrip("\r").rsplit("\r", 1)[-1].strip()
    assert "bar" in shown[at:]  # shown again behind it


def test_without_a_terminal_a_bar_is_lines(monkeypatch):
    behind = io.StringIO()
    monkeypatch.setattr(sys, "stderr", behind)
    with terminal.log_to(), progress.progress_bar(total=9, desc="bar", seconds=0) as bar:
        for _ in range(9):
            bar.update()
            bar.refresh()
            logging.getLogger("pipeline.somewhere").warning("a line")
    shown = behind.getvalue()
    assert "\r" not in shown and "\x1b" not in shown
    assert {line.split(":")[0] for line in shown.splitlines()} == {"bar", "Warning"}


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_quiet_silences_bars(monkeypatch, level):
    behind = Terminal()
    monkeypatch.setattr(sys, "stderr", behind)
    with terminal.log_to("stderr", level), progress.progress_bar(total=9) as bar:
        bar.update(3)
        bar.refresh()
    assert not behind.getvalue()
