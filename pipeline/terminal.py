"""What leaves for people's terminals: names from outside as visible escapes, streams that may fail.

Whatever this process writes to stdout and stderr passes printable_lines() here; a sentence passes
printable(), which takes its newlines too. Imports little but the standard library.
"""

import contextlib
import errno
import io
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from pipeline.places import HOME

LOGGERS = ("pipeline", "cache", "kernels")
"""Roots of our loggers: their modules log under their own names."""
CLOSED_PIPE = 141  # what a shell gives for SIGPIPE: 128 + 13


def printable(value: object) -> str:
    r"""As one line of text: what could steer a terminal or forge a line, or is no text, as escapes.

    ESC becomes \x1b, a newline \n, U+202E (which turns the direction of writing) \u202e, a byte of
    a file's name that is no UTF-8 \udcff. Letters of all scripts stay.
    """
    text = str(value)
    return text if text.isprintable() else "".join(map(_visible, text))


def printable_lines(text: str) -> str:
    """As printable, but newlines and tabs stay: for text whose lines are our own."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c in "\n\t" else _visible(c) for c in text)


def _visible(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


class Shown(io.TextIOBase):
    """A text stream whose text cannot steer the terminal, and whose failure ends no work.

    After the first failure everything goes to the null device; `failed` keeps the reason. It has no
    `buffer`: bytes would go past the escapes.
    """

    def __init__(self, stream: TextIO, *, escape: bool = True) -> None:
        self._stream, self._escape = stream, escape
        self.failed: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream behind it."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """Of the stream behind it."""
        return self._stream.errors

    def writable(self) -> bool:
        """As a text stream's."""
        return True

    def write(self, text: str) -> int:
        """As a text stream's; returns the length of what was asked."""
        if not isinstance(text, str):
            raise TypeError(f"a text stream takes str, not {type(text).__name__}")
        try:
            self._stream.write(printable_lines(text) if self._escape else text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """As a text stream's."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def isatty(self) -> bool:
        """Whether a terminal is behind it."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The file descriptor behind it."""
        return self._stream.fileno()

    def for_cursor(self) -> "Shown":
        """The same stream without escapes: a progress bar moves the cursor."""
        return Shown(self._stream, escape=False)

    def _give_up(self, error: OSError) -> None:
        self.failed = self.failed or error
        with contextlib.suppress(OSError, ValueError):
            # What is in the stream's buffer would fail once more when Python ends.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


def cursor_stream() -> Any:
    """Where a progress bar writes: stderr with nothing escaped; None where there is no stderr."""
    return sys.stderr.for_cursor() if isinstance(sys.stderr, Shown) else sys.stderr


class StreamHandler(logging.Handler):
    """Shows log records on stderr or stdout, one line each, which cannot steer the terminal.

    Records below WARNING have no prefix: they are what a command tells its user anyway.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._stream = name

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record to what the stream is now; where that fails it is dropped."""
        prefix = {logging.DEBUG: f"[{record.name}] ", logging.INFO: ""}
        named = prefix.get(record.levelno, f"{record.levelname.capitalize()}: ")
        stream = getattr(sys, self._stream)
        if stream is None:  # pythonw
            return
        with contextlib.suppress(OSError, ValueError), _bars_aside():
            stream.write(printable(named + record.getMessage()) + "\n")
            stream.flush()


@contextlib.contextmanager
def log_to(name: str = "stderr", level: int = logging.INFO) -> Iterator[None]:
    """Shows on a stream what our loggers log from that level on while the context is open."""
    handler = StreamHandler(name)
    before = [(logger, logger.level) for logger in map(logging.getLogger, LOGGERS)]
    for logger, _ in before:
        logger.addHandler(handler)
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in before:
            logger.removeHandler(handler)
            logger.setLevel(old)


def _bars_aside() -> contextlib.AbstractContextManager[None]:
    """Progress bars leave the terminal's line while the context is open."""
    progress = sys.modules.get("pipeline.progress")  # not imported: there is no bar
    return progress.bars_aside() if progress else contextlib.nullcontext()


def guard_process() -> None:
    """Makes the streams, warnings and tracebacks of a command's process safe to show.

    Closed ones are opened on the null device first: the next file that is opened, as a cache, would
    be descriptor 2 otherwise, and get what libraries write to stderr.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        _open_if_closed(number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names on a terminal that has ASCII only
        setattr(sys, name, Shown(stream))
    sys.excepthook = lambda *raised: print(
        "".join(traceback.format_exception(*raised)), end="", file=sys.stderr
    )
    warnings.formatwarning = _warning_line
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.simplefilter("default")  # PYTHONWARNINGS=error: seen, but no end of the command


def exit_code(code: object) -> object:
    """The code a command ends with, once its results have left; says when they could not.

    141 after a closed pipe (`| head -1`), at least 1 after another failure of stdout.
    """
    assert isinstance(sys.stdout, Shown)
    sys.stdout.flush()
    failed = sys.stdout.failed
    if failed is None:
        return code
    if failed.errno in (errno.EPIPE, errno.ESHUTDOWN):
        return code or CLOSED_PIPE
    print(
        f"Error: stdout cannot be written ({failed.strerror}): what should have been printed there "
        "is lost; files that were written stand",
        file=sys.stderr,
    )
    return code or 1


def _open_if_closed(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened == number:
            os.set_inheritable(opened, True)
        else:
            os.dup2(opened, number)
            os.close(opened)


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: object = None
) -> str:
    """One line; other people's warnings have their first and where it comes from."""
    if HOME in Path(filename).parents and ".venv" not in Path(filename).parts:
        return f"Warning: {printable(message)}\n"
    first = str(message).strip().partition("\n")[0]
    return f"Warning: {printable(f'{first} ({category.__name__}, {filename}:{lineno})')}\n"
