"""SIGINT and SIGTERM: work in progress is finished and saved first; how to resume is printed."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 60.0  # seconds from a signal to the end; what waits longer may wait for a dead disk


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM add their number to; a second SIGINT breaks off at once.

    A process that has not stopped PATIENCE seconds after a signal ends as if it was killed, with
    the signal's exit code: what is on disk then is what a later command resumes from.
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
    over = threading.Event()
    watch = threading.Thread(target=_end_late, args=(stop, over), name="signals", daemon=True)
    try:
        with contextlib.suppress(RuntimeError):  # no more threads: then without
            watch.start()
        yield stop
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_late(stop: list[int], over: threading.Event) -> None:
    while not over.wait(1.0):
        if stop:
            break
    since = time.monotonic()
    while not over.wait(1.0):
        if time.monotonic() - since > PATIENCE:
            name = signal.Signals(stop[0]).name
            words = (
                f"Error: not stopped {PATIENCE:.0f} s after {name}, ended without saving the work "
                "at hand; the same command resumes from what was saved before\n"
            )
            with contextlib.suppress(OSError):
                os.write(2, words.encode())
            os._exit(128 + stop[0])
