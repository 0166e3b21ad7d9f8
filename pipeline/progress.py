"""Progress bars: live on a terminal, log lines elsewhere."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from pipeline.terminal import cursor_stream, printable

LOG = logging.getLogger(__name__)


class Bar(tqdm):
    """tqdm's bar, with control characters escaped.

    Without a terminal each state that it would show is logged as a line.
    """

    def __str__(self) -> str:
        return printable(super().__str__())

    @property
    def live(self) -> bool:
        """Whether it is shown on a terminal now."""
        return not self.disable and self.fp.isatty()

    def started(self, count: float = 1) -> None:
        """Counts the first work without its rate: it includes compiling and allocating.

        Ten seconds of compiling in a round of 50 ms would make the time left two hundred times too
        long.
        """
        if self.disable:  # then it has no clock
            return
        self.n += count
        self.initial = self.last_print_n = self.n
        self.start_t = self.last_print_t = self._time()

    @property
    def left(self) -> float | None:
        """Seconds until the total is reached, at the rate since `started`; None before that."""
        if self.disable:
            return None
        done, spent = self.n - self.initial, self._time() - self.start_t
        return None if done <= 0 or spent <= 0 else (self.total - self.n) * spent / done

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Shows the bar, or `msg` in its place; false where there was nothing to move."""
        if self.live:
            return bool(super().display(msg, pos))
        if msg is None and not self.disable:
            LOG.info("%s", self)
        return False


def progress_bar(*, seconds: float = 30, leave: bool = False, **settings: Any) -> Bar:
    """A bar on stderr: live on a terminal, elsewhere a log line every `seconds`.

    Nothing is shown without stderr (pythonw), or if our loggers are not enabled.
    """
    stream = cursor_stream()
    live = stream is not None and stream.isatty()
    return Bar(
        **{"disable": stream is None or not LOG.isEnabledFor(logging.INFO), **settings},
        file=stream,
        mininterval=0.1 if live else seconds,
        delay=0 if live else seconds,
        dynamic_ncols=True,
        leave=leave and live,
    )


@contextlib.contextmanager
def bars_aside() -> Iterator[None]:
    """Clears live bars while the context is open, and shows them again afterwards."""
    bars = [bar for bar in list(getattr(Bar, "_instances", ())) if bar.live]
    if not bars:  # no lock then: a bar that logs holds it
        yield
        return
    with Bar.get_lock():
        for bar in bars:
            bar.clear(nolock=True)
        yield
        for bar in bars:
            bar.refresh(nolock=True)
