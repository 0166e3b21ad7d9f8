"""Signals: noted, and after a while obeyed by a process that waits for something else."""

import itertools
import signal
import subprocess
import sys
import threading
import time

import pytest

from pipeline.signals import noted_signals
from tests.conftest import ROOT, on_posix

# The main thread waits as it would for a thread that writes to a disk which does not answer.
WAITS = """
import threading, time
from pipeline import signals
signals.PATIENCE = 2.0
lock = threading.Lock()
lock.acquire()
with signals.noted_signals():
    print("ready", flush=True)
    {wait}
"""


WAITING = ("threading.Event().wait()", "lock.acquire()", "time.sleep(1e6)")
NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(scope="module")
def ended() -> dict[tuple[str, int], tuple[int, str]]:
    """How each process ended and what it said; all wait out their two seconds together."""
    started, found = {}, {}
    for wait, number in itertools.product(WAITING, NUMBERS):
        started[wait, number] = subprocess.Popen(
            [sys.executable, "-c", WAITS.format(wait=wait)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    for (_, number), process in started.items():
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
    for case, process in started.items():
        said = process.communicate(timeout=60)[1]
        found[case] = process.returncode, said
    return found


@on_posix("sends signals")
@pytest.mark.parametrize("wait", WAITING)
@pytest.mark.parametrize("number", NUMBERS)
def test_a_process_that_does_not_stop_is_ended(ended, wait, number):
    code, said = ended[wait, number]
    assert code == 128 + number
    assert said.startswith(f"Error: did not stop within 2 s of {number.name}")
    assert said.count("\n") == 1


def test_a_noted_signal_that_is_obeyed_ends_nothing(monkeypatch):
    monkeypatch.setattr("pipeline.signals.PATIENCE", 0.0)
    before, handler = threading.active_count(), signal.getsignal(signal.SIGTERM)
    with noted_signals() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop == [signal.SIGTERM]
    time.sleep(2.5)  # two looks of the watch
    assert threading.active_count() == before
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_second_interrupt_breaks_off_at_once():
    with pytest.raises(KeyboardInterrupt), noted_signals() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        pytest.fail(f"{stop} were noted")
