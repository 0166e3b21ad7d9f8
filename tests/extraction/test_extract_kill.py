"""kill -9 at random moments of extractions: nothing lost, same bytes, no process left behind."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.container.disk import partial_of
from cache.store import info
from cache.table import CacheError
from tests.conftest import NEEDS_PROC, ROOT, on_posix
from tests.encoder import clips

KILLS = 16  # half of them kill only the parent
IMAGES, BATCH = 120, 2

pytestmark = on_posix("forks, and kills by process group")

# Imports once and forks an extraction for each line it reads, since importing torch and clip takes
# longer than the extraction. Flushes often, so that kills meet every state a file goes through.
NURSERY = """
import os, sys, warnings
from pathlib import Path
from pipeline import extract
from pipeline.extraction import rows as encode_rows
from pipeline.encoder.model import import_clip
warnings.simplefilter("error")
encode_rows.FLUSH_SECONDS = 0.02
import_clip()
print("ready", flush=True)
for line in sys.stdin:
    images, weights, out, workers, skip = line.split()
    child = os.fork()
    if child == 0:
        os.setsid()
        print(os.getpid(), flush=True)
        try:
            extract(images, model=weights, out=Path(out), batch={batch}, device="cpu",
                workers=int(workers), on_bad_image=skip)
            code = 0
        except BaseException as error:
            print(f"FAILED {{type(error).__name__}}: {{error}}", file=sys.stderr, flush=True)
            code = 1
        os._exit(code)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Nursery:
    """Runs one extraction after the other, in processes that can be killed."""

    def __init__(self, process: subprocess.Popen, images: Path, weights: Path) -> None:
        self.process, self.images, self.weights = process, images, weights
        self.groups: list[int] = []

    def begin(self, out: Path, workers: int = 2) -> int:
        words = (self.images, self.weights, out, workers, "skip")
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        self.groups.append(int(self.process.stdout.readline()))
        return self.groups[-1]

    def end(self) -> int:
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def nursery(tmp_path_factory) -> Iterator[Nursery]:
    folder = tmp_path_factory.mktemp("kill")
    weights = clips.save(clips.build(), folder / "clip.safetensors", "safetensors")
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        file = (
            folder
            / "images"
            / f"domain{number % 3}"
            / ("cat", "dog")[number % 2]
            / f"{number:03}.jpg"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(file)
    (folder / "images" / "domain1" / "dog" / "bad.jpg").write_bytes(b"no image")
    with (
        (folder / "errors").open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", NURSERY.format(batch=BATCH)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        ) as process,
    ):  # fmt: skip
        assert process.stdout.readline() == "ready\n", (folder / "errors").read_text()
        yield Nursery(process, folder / "images", weights)
        process.stdin.close()
    assert "FAILED" not in (folder / "errors").read_text()


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory) -> tuple[bytes, float]:
    """The bytes of an undisturbed extraction, and its seconds."""
    out = tmp_path_factory.mktemp("whole") / "x.h5"
    start = time.perf_counter()
    nursery.begin(out)
    assert nursery.end() == 0
    return out.read_bytes(), time.perf_counter() - start


def rows_done(out: Path) -> int:
    partial = partial_of(out)
    # Its first 512 bytes are written last: until then there is nothing to resume.
    if not partial.exists() or not partial.read_bytes()[:512].strip(b"\0"):
        return 0
    return info(partial)["rows_done"]


def wait_for_rows(out: Path, pid: int, rows: int) -> None:
    """Wait until the extraction has flushed so many rows or ended."""
    while not out.exists():
        with contextlib.suppress(CacheError, FileNotFoundError):  # renamed while it is looked at
            if rows_done(out) >= rows:
                return
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.002)


@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["parent only", "whole group"])
def test_random_kills_lose_nothing_and_end_with_the_same_bytes(
    nursery, undisturbed, tmp_path, kill
):
    whole, seconds = undisturbed
    draw = random.Random(kill.__name__)
    out, hit, midway, finished, done = tmp_path / "x.h5", 0, 0, 0, 0
    while hit < KILLS // 2 or not finished:
        pid = nursery.begin(out)
        if draw.random() < 0.5:
            time.sleep(draw.uniform(0.1, 1.0) * seconds)
        else:  # by the clock alone a machine that slows down is killed before it has written
            wait_for_rows(out, pid, done + draw.randint(1, IMAGES))
            time.sleep(draw.uniform(0, 0.02))
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it was done before
            pass
        code = nursery.end()
        assert code in (0, -signal.SIGKILL), "an extraction failed; see the nursery's errors"
        if code == -signal.SIGKILL:
            hit += 1
        if out.exists():
            assert out.read_bytes() == whole
            assert not partial_of(out).exists()
            out.unlink()
            finished, done = finished + 1, 0
        else:
            assert rows_done(out) >= done, "a kill lost rows that were flushed"
            done = rows_done(out)
            midway += 0 < done
        assert hit < 40 * KILLS, "kills, and no end"
    assert midway > 2, "too few kills met an extraction that had written rows"
    if partial_of(out).exists():
        nursery.begin(out)
        assert nursery.end() == 0 and out.read_bytes() == whole


@NEEDS_PROC
def test_no_worker_outlives_its_parent(nursery, undisturbed, tmp_path):
    group = nursery.begin(tmp_path / "x.h5")
    while not members(group) - {group} and rows_done(tmp_path / "x.h5") == 0:
        time.sleep(0.005)
    time.sleep(0.1)
    os.kill(group, signal.SIGKILL)
    nursery.end()
    # A worker looks for its parent every 5 seconds once it has started: 13 s on an idle machine.
    patience = time.monotonic() + 60
    left = set().union(*map(members, nursery.groups))
    while left and time.monotonic() < patience:
        time.sleep(0.1)
        left = set().union(*map(members, nursery.groups))
    assert not left


def members(group: int) -> set[int]:
    """The running processes of this group."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, its_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:  # gone meanwhile
                continue
            if int(its_group) == group and state != "Z":
                found.add(int(entry.name))
    return found
