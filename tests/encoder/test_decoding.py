"""Decoding workers: killed, crashing, stopped, hung or missing ones only change messages."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.encoder import decoding
from pipeline.encoder.decoding import decoded_images
from pipeline.encoder.pixels import IMAGE_LIMITS, Limits, load_pixels
from pipeline.errors import ConfigError, DataError, Interrupted
from tests.conftest import ROOT, logged, on_posix
from tests.extraction.extraction import Said

pytestmark = on_posix("stops and kills processes")

SIZE, IMAGES = 8, 40
SOON = Limits(seconds=3.0)
SOON_WARNED = """
import runpy, sys
from pipeline.encoder import decoding
decoding.SAY_AFTER = 0.5
runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
"""
PATIENCE = 60.0  # timeout for busy machines

# What the name of a file does to the process that opens it.
TRAPS = """
import os, signal, time, PIL.Image
plain = PIL.Image.open
def opened(file, *rest, **named):
    name = os.path.basename(file.name)
    if "once" in name:
        try:
            os.close(os.open(file.name + ".met", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return plain(file, *rest, **named)
    for number in ("SIGSEGV", "SIGKILL", "SIGABRT", "SIGSTOP"):
        if number in name:
            os.kill(os.getpid(), getattr(signal, number))
    if "exit" in name:
        os._exit(3)
    if "hang" in name:
        time.sleep(3600)
    return plain(file, *rest, **named)
PIL.Image.open = opened
"""


@pytest.fixture
def files(tmp_path, monkeypatch) -> list[str]:
    """Images, and workers with TRAPS; this process has none."""
    (tmp_path / "traps").mkdir()
    (tmp_path / "traps" / "sitecustomize.py").write_text(TRAPS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "traps"))
    return [draw(tmp_path / f"{n:02}.png", n) for n in range(IMAGES)]


def draw(path: Path, seed: int) -> str:
    noise = np.random.default_rng(seed).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "PNG")
    return str(path)


def decode_all(files, workers=2, limits=IMAGE_LIMITS, stop=()) -> tuple[list, Said]:
    with (
        logged() as said,
        decoded_images(files, SIZE, workers=workers, limits=limits, stop=stop) as images,
    ):
        return list(images), said


def assert_right(files, found, bad=()) -> None:
    assert len(found) == len(files)
    for file, one in zip(files, found, strict=True):
        if file in bad:
            assert one.pixels is None and one.reason
        else:
            assert np.array_equal(one.pixels, load_pixels(Path(file), SIZE)), (file, one.reason)


@pytest.mark.parametrize("workers", [-3, 0, 1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 3, IMAGES])
def test_every_image_comes_once_and_in_order(files, workers, count):
    found, said = decode_all(files[:count], workers)
    assert_right(files[:count], found)
    assert not said


@pytest.mark.parametrize("trap", ["SIGSEGV", "SIGABRT", "exit"])
@pytest.mark.parametrize("place", [0, 17, IMAGES - 1])
def test_an_image_that_crashes_its_decoder_is_unreadable_and_no_other_is(files, trap, place):
    files[place] = draw(Path(files[place]).with_name(f"{trap}.png"), place)
    found, said = decode_all(files)
    assert_right(files, found, bad=[files[place]])
    how = "exit code 3" if trap == "exit" else trap
    assert f"crashes ({how})" in found[place].reason
    assert any(files[place] in line and how in line for line in said)


@pytest.mark.parametrize("trap", ["SIGSEGV", "SIGKILL", "exit"])
def test_a_worker_that_dies_once_costs_no_image(files, trap):
    for place in (3, 30):
        files[place] = draw(Path(files[place]).with_name(f"{place}-once-{trap}.png"), place)
    found, said = decode_all(files)
    assert_right(files, found)
    assert len(said) == 2


def test_kills_from_outside_at_one_image_end_it_by_name(files):
    files[5] = draw(Path(files[5]).with_name("SIGKILL.png"), 5)
    with pytest.raises(DataError, match=r"SIGKILL\.png; pass fewer --workers"):
        decode_all(files)


@pytest.mark.parametrize("trap", ["SIGSTOP", "hang"])
def test_a_worker_that_stands_still_is_ended_and_its_image_named(files, trap, monkeypatch):
    monkeypatch.setattr(decoding, "SAY_AFTER", 1.0)
    for place in (4, 5):
        files[place] = draw(Path(files[place]).with_name(f"{place}-{trap}.png"), place)
    found, said = decode_all(files, limits=SOON)
    assert_right(files, found, bad=files[4:6])
    for place in (4, 5):
        assert "took longer than 3 s" in found[place].reason
        assert any(line.startswith(f"waiting for {files[place]} for") for line in said)


def test_a_header_that_takes_long_to_read_is_ended(files):
    """Pillow reads comments of a PPM byte by byte: 40 MB of them take most of a minute."""
    Path(files[2]).write_bytes(b"P6\n" + (b"#" + b"x" * 70 + b"\n") * 600_000 + b"1 1 255\nabc")
    found, _ = decode_all(files, workers=1, limits=Limits(seconds=1.5))
    assert_right(files, found, bad=[files[2]])


def test_a_thread_that_stands_still_is_left_behind(files, monkeypatch):
    plain, over = decoding.read_image, threading.Event()

    def read(file, *rest):
        if "hang" in file:
            over.wait(PATIENCE)
        return plain(file, *rest)

    monkeypatch.setattr(decoding, "read_image", read)
    files[7] = draw(Path(files[7]).with_name("hang.png"), 7)
    found, _ = decode_all(files, workers=0, limits=SOON)
    over.set()
    assert_right(files, found, bad=[files[7]])


def test_many_threads_that_stand_still_are_an_error(files, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(decoding, "read_image", lambda *words: over.wait(PATIENCE))
    with pytest.raises(DataError, match=f"{decoding.MOST_STUCK} images take longer"):
        decode_all(files, workers=0, limits=Limits(seconds=0.5))
    over.set()


def test_processes_that_outlive_a_kill_are_left_behind_and_counted(files, monkeypatch):
    """As with processes that wait for a dead disk."""
    spawned, plain = [], decoding._spawn

    def spawn():
        spawned.append(plain())
        return spawned[-1]

    monkeypatch.setattr(decoding, "_spawn", spawn)
    monkeypatch.setattr(decoding, "_end", lambda process: False)
    for place in range(8):
        files[place] = draw(Path(files[place]).with_name(f"{place}-hang.png"), place)
    started = time.monotonic()
    with pytest.raises(DataError, match="storage that does not respond"):
        decode_all(files, limits=Limits(seconds=1.5))
    assert time.monotonic() - started < PATIENCE
    for process in spawned:
        process.kill()
        process.wait(PATIENCE)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("trap", ["SIGSTOP", "hang"])
def test_a_signal_ends_waiting_for_a_worker_that_stands_still(files, trap, workers, monkeypatch):
    over = threading.Event()
    if workers == 0:
        monkeypatch.setattr(decoding, "read_image", lambda *words: over.wait(PATIENCE))
    files[0] = draw(Path(files[0]).with_name(f"{trap}.png"), 0)
    stop: list[int] = []
    threading.Timer(1.0, stop.append, [signal.SIGTERM]).start()
    with pytest.raises(Interrupted) as caught:
        decode_all(files, workers, stop=stop)
    over.set()
    assert caught.value.number == signal.SIGTERM


def no_process(number: int):
    def spawn():
        raise OSError(number, os.strerror(number))

    return spawn


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EMFILE, errno.ENOMEM, errno.ENOENT])
def test_without_processes_a_thread_decodes_and_that_is_said(files, number, monkeypatch):
    monkeypatch.setattr(decoding, "_spawn", no_process(number))
    found, said = decode_all(files)
    assert_right(files, found)
    assert len(said) == 1 and os.strerror(number) in said[0] and "in this process" in said[0]


def test_fewer_processes_than_asked_for_do_it(files, monkeypatch):
    plain, left = decoding._spawn, [1, 2]
    monkeypatch.setattr(
        decoding, "_spawn", lambda: plain() if left and left.pop() else no_process(errno.EAGAIN)()
    )
    found, said = decode_all(files, workers=4)
    assert_right(files, found)
    assert len(said) == 1 and "decoding with 2 workers" in said[0]


def test_processes_that_cannot_begin_are_done_without(files, monkeypatch):
    monkeypatch.setattr(decoding, "SERVE", "raise SystemExit(5)")
    found, said = decode_all(files)
    assert_right(files, found)
    assert any("exit code 5" in line for line in said) and "in this process" in said[-1]


def test_processes_that_never_begin_are_done_without(files, monkeypatch):
    monkeypatch.setattr(decoding, "SERVE", "import time; time.sleep(3600)")
    monkeypatch.setattr(decoding, "START_SECONDS", 1.0)
    found, said = decode_all(files)
    assert_right(files, found)
    assert "in this process" in said[-1]


def test_a_thread_that_cannot_open_files_ends_it(files, monkeypatch):
    def read(*words):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(decoding, "read_image", read)
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        decode_all(files, workers=0)


def test_no_thread_is_one_line(files, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ConfigError, match="no thread can be started"):
        decode_all(files)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_process_thread_or_pipe_is_left(files, workers):
    before = threading.active_count()
    open_files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with contextlib.suppress(ZeroDivisionError):  # left in the middle
        with decoded_images(files, SIZE, workers=workers, limits=IMAGE_LIMITS) as images:
            next(images)
            raise ZeroDivisionError
    patience = time.monotonic() + PATIENCE
    while threading.active_count() > before and time.monotonic() < patience:
        time.sleep(0.05)
    assert threading.active_count() <= before
    if open_files:
        assert len(os.listdir("/proc/self/fd")) <= open_files


@pytest.mark.parametrize(
    ("workers", "number", "trap"),
    [
        (0, signal.SIGTERM, "hang"),
        (2, signal.SIGTERM, "SIGSTOP"),
        (2, signal.SIGINT, "hang"),
    ],
)
def test_extract_ends_at_once_beside_a_worker_that_stands_still(
    files, weights, tmp_path, workers, number, trap
):
    tree = tmp_path / "tree"
    for place, file in enumerate(files):
        target = tree / "photo" / ("cat", "dog")[place % 2] / Path(file).name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    draw(tree / "photo" / "dog" / f"99-{trap}.png", 1)
    command = [
        sys.executable, "-c", SOON_WARNED, "extract", "--dataset", tree, "--model", weights,
        "--out", tmp_path / "x.h5", "--device", "cpu", "--workers", workers, "--batch", 4,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'traps'}{os.pathsep}{ROOT}"}
    with subprocess.Popen(
        list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        for line in process.stderr:
            if "waiting for" in line:
                break
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(PATIENCE) == 128 + number
    assert "Traceback" not in rest and "stopped; run the same command" in rest
