"""SIGINT and SIGTERM: the work at hand is finished and written first, then the way on is said."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(Exception):
    """A signal asked to stop; what was done is written."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number, self.exit_code = number, 128 + number


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM add their number to; a second SIGINT breaks off at once.

    Empty for good outside the main thread, which alone may change what a signal does.
    """
    stop: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, _: object) -> None:
        if stop and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
