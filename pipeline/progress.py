"""A line on the terminal that moves while a command works."""

from typing import Any

from tqdm import tqdm

from pipeline.terminal import cursor_stream, printable


class Bar(tqdm):
    """tqdm's bar, whose words cannot steer the terminal."""

    def __str__(self) -> str:
        return printable(super().__str__())


def progress_bar(*, seconds: float = 30, leave: bool = False, **settings: Any) -> Bar:
    """A bar on stderr: a living one in a terminal, a line every so many seconds elsewhere.

    None is shown where there is no stderr (pythonw).
    """
    stream = cursor_stream()
    living = stream is not None and stream.isatty()
    return Bar(
        **{"disable": stream is None, **settings},
        file=stream,
        mininterval=0.1 if living else seconds,
        dynamic_ncols=True,
        leave=leave,
    )
