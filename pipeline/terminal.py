"""Output for terminals: control characters as visible escapes, streams that may fail.

Everything that this process writes to stdout and stderr passes printable_lines(); a sentence passes
printable(), which escapes newlines too. Imports little but the standard library.
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
    r"""One line of text, with escapes for what could control a terminal or forge a line.

    ESC becomes \x1b, a newline \n, U+202E (which reverses the writing direction) \u202e, a byte of
    a file name that is not UTF-8 \udcff. Letters of all scripts stay.
    """
    text = str(value)
    return text if text.isprintable() else "".join(map(_visible, text))


def counted(number: int, noun: str, ending: str = "s") -> str:
    """A number and its noun: "1 seed", "2,400 rows"; ending of the plural: "es" of classes."""
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def printable_lines(text: str) -> str:
    """As printable, but newlines and tabs stay: for text whose lines are our own."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c in "\n\t" else _visible(c) for c in text)


def _visible(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


class Shown(io.TextIOBase):
    """A text stream that escapes control characters, and whose failure does not end the command.

    After the first failure everything goes to the null device; `failed` keeps the reason. It has no
    `buffer`: bytes would bypass the escapes.
    """

    def __init__(self, stream: TextIO, *, escape: bool = True) -> None:
        self._stream, self._escape = stream, escape
        self.failed: OSError | None = None

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the underlying stream."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """That of the underlying stream."""
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
        """Whether the underlying stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The file descriptor of the underlying stream."""
        return self._stream.fileno()

    def for_cursor(self) -> "Shown":
        """The same stream without escapes: a progress bar moves the cursor."""
        return Shown(self._stream, escape=False)

    def _give_up(self, error: OSError) -> None:
        self.failed = self.failed or error
        with contextlib.suppress(OSError, ValueError):
            # What is left in the stream's buffer would fail again when Python exits.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


def cursor_stream() -> Any:
    """stderr without escapes, for progress bars; None without stderr."""
    return sys.stderr.for_cursor() if isinstance(sys.stderr, Shown) else sys.stderr


class StreamHandler(logging.Handler):
    """Shows log records on stderr or stdout, one escaped line each.

    Records below WARNING have no prefix: they are a command's ordinary messages.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._stream = name

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record to the current stream; drops it if that fails."""
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
    """Shows records of our loggers, from a level on, while the context is open."""
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
    """Clears progress bars while the context is open."""
    progress = sys.modules.get("pipeline.progress")  # not imported: there is no bar
    return progress.bars_aside() if progress else contextlib.nullcontext()


def guard_process() -> None:
    """Makes the streams, warnings and tracebacks of a command's process safe to show.

    Closed streams are opened on the null device first: otherwise the next opened file, such as a
    cache, would become descriptor 2 and receive what libraries write to stderr.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        _open_if_closed(number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for names on ASCII terminals
        setattr(sys, name, Shown(stream))
    sys.excepthook = lambda *raised: print(
        "".join(traceback.format_exception(*raised)), end="", file=sys.stderr
    )
    warnings.formatwarning = _warning_line
    if any(action == "error" for action, *_ in warnings.filters):
        warnings.simplefilter("default")  # PYTHONWARNINGS=error must not end a command


def exit_code(code: object) -> object:
    """Flushes stdout and returns a command's exit code; reports a stdout that failed.

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
        f"Error: stdout cannot be written ({failed.strerror}): its output is lost; files that were "
        "written are complete",
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
    """A warning as one line; other packages' get their first line and their origin."""
    if HOME in Path(filename).parents and ".venv" not in Path(filename).parts:
        return f"Warning: {printable(message)}\n"
    first = str(message).strip().partition("\n")[0]
    return f"Warning: {printable(f'{first} ({category.__name__}, {filename}:{lineno})')}\n"
