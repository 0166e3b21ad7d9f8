"""Runs commands one after another, each in a process whose streams are in a hostile state.

Every case is a fork of a process that has imported torch already: as a command of its own each
would take seconds before its first line.
"""

import contextlib
import os
import pty
import runpy
import sys
import tempfile
from pathlib import Path

STATES = {
    "stdin closed": {0: "closed"},
    "stdout closed": {1: "closed"},
    "stderr closed": {2: "closed"},
    "all closed": {0: "closed", 1: "closed", 2: "closed"},
    "stdout full": {1: "full"},
    "stderr full": {2: "full"},
    "stdout a closed pipe": {1: "pipe"},
    "stderr a closed pipe": {2: "pipe"},
    "ASCII": {},
}
"""Descriptor -> what it is; the others are files that can be read afterwards."""


def run_all(cases: list[tuple[str, list[str]]]) -> list[tuple[int, str, str]]:
    """For each (state, words): the exit code, what came to stdout, what came to stderr.

    State "terminal": both are one terminal, and what it gets is the second of them.
    """
    import torch  # noqa: F401  before the forks, and nothing is computed before them

    import pipeline.extraction.extract
    import pipeline.runs.predict
    import pipeline.sweeps.reproduce
    import pipeline.sweeps.run  # noqa: F401
    from pipeline.encoder.model import import_clip

    import_clip()
    return [_on_terminal(words) if state == "terminal" else _run(state, words)
            for state, words in cases]  # fmt: skip


def _run(state: str, words: list[str]) -> tuple[int, str, str]:
    with tempfile.TemporaryDirectory() as folder:
        files = {number: Path(folder, str(number)) for number in (1, 2)}
        pid = os.fork()
        if pid == 0:
            with _no_return():
                for number in (0, 1, 2):
                    _put(number, STATES[state].get(number), files.get(number))
                _command(words, "ascii" if state == "ASCII" else "utf-8")
        _, status = os.waitpid(pid, 0)
        texts = [f.read_text("utf-8", "replace") if f.exists() else "" for f in files.values()]
        return os.waitstatus_to_exitcode(status), *texts


def _on_terminal(words: list[str]) -> tuple[int, str, str]:
    pid, terminal = pty.fork()
    if pid == 0:
        with _no_return():
            _command(words, "utf-8")
    shown = b""
    with contextlib.suppress(OSError):  # EIO: its other end is closed
        while piece := os.read(terminal, 65536):
            shown += piece
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), "", shown.decode("utf-8", "surrogateescape")


@contextlib.contextmanager
def _no_return():
    try:
        yield
    finally:
        os._exit(120)


def _put(number: int, what: str | None, file: Path | None) -> None:
    if what == "closed":
        os.close(number)
        return
    if what == "pipe":
        reader, opened = os.pipe()
        os.close(reader)
    elif what == "full":
        opened = os.open("/dev/full", os.O_WRONLY)
    else:
        flags = os.O_RDONLY if file is None else os.O_WRONLY | os.O_CREAT
        opened = os.open(file or os.devnull, flags, 0o600)
    os.dup2(opened, number)
    os.close(opened)


def _command(words: list[str], encoding: str) -> None:
    """As Python does at its start and its end, which a fork has not."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
            opened = open(number, "w" if number else "r", encoding=encoding, closefd=False)
        except OSError:
            opened = None
        setattr(sys, name, opened)
    sys.argv = ["pipeline", *words]
    code: object = 1
    try:
        runpy.run_module("pipeline", run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120  # as Python ends when the flushes at its end fail
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
