"""SIGINT and SIGTERM: work in progress is finished and saved first; how to resume is printed."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 60.0  # seconds from a signal to the end; a longer wait may be for a dead disk


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM append their number; a second SIGINT interrupts at once.

    A process that has not stopped PATIENCE seconds after a signal is ended as if killed, with the
    signal's exit code; the next command resumes from what is on the disk. Outside the main thread,
    which alone can handle signals, the list stays empty.
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
        with contextlib.suppress(RuntimeError):  # no thread can be started: without a watch then
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
                f"Error: did not stop within {PATIENCE:.0f} s of {name}, ended without saving the "
                "current work; run the same command to resume from the last save\n"
            )
            with contextlib.suppress(OSError):
                os.write(2, words.encode())
            os._exit(128 + stop[0])
