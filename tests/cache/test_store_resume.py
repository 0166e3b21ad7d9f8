"""Kills lose nothing and change no byte; a .partial begun for something else is kept."""

import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cache import store
from cache.container import disk, userblock
from cache.table import CacheError, StaleCache
from tests.cache import caches

PROGRAM = Path(caches.__file__)


@pytest.mark.parametrize("last_sync", range(1, 12))
def test_killed_at_each_sync_ends_with_the_same_bytes(tmp_path, undisturbed, last_sync):
    # Ten syncs: 2 and the folder at creation, 2 in each of two flushes, 2 and the folder at
    # publication. An eleventh is never met, so that child ends well.
    path = tmp_path / "a.h5"
    assert run(path, 0, last_sync, rows=10).wait() == (9 if last_sync <= 10 else 0)
    if not path.exists():
        with pytest.raises(CacheError, match="no such file"):
            store.read_table(path)
        caches.write_slowly(path, 10, 0)
    assert path.read_bytes() == undisturbed
    assert not disk.partial_of(path).exists()


def test_kill_9_at_random_moments_ends_with_the_same_bytes(tmp_path):
    caches.write_slowly(tmp_path / "undisturbed.h5", 300, 0)
    path, partial, done = tmp_path / "a.h5", tmp_path / "a.h5.partial", 0
    for kill in range(14):
        child = run(path, 0.05, 0, rows=300)
        if kill % 2:  # else it may still be starting, or be making the .partial
            child.stdout.readline()
        time.sleep(random.uniform(0, 0.25))
        child.kill()  # SIGKILL where there are signals
        assert child.wait() != 0
        if partial.exists() and any(partial.read_bytes()[:512]):
            found = store.info(partial)["rows_done"]
            assert found >= done  # nothing flushed is lost
            done = found
    assert 0 < done < 300
    caches.write_slowly(path, 300, 0)
    assert path.read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()
    assert not partial.exists()


def test_a_half_made_partial_is_made_again(tmp_path):
    drawn = caches.draw()
    whole = caches.make(tmp_path / "whole.h5", drawn).read_bytes()
    with caches.begin(tmp_path / "begun.h5", drawn):
        begun = disk.partial_of(tmp_path / "begun.h5").read_bytes()
    half_made = bytes(512) + begun[512:]  # the user block is written last
    for length in (0, 1, 511, 512, 600, 3000, len(half_made)):
        path = tmp_path / f"{length}.h5"
        disk.partial_of(path).write_bytes(half_made[:length])
        assert caches.make(path, drawn).read_bytes() == whole


def test_a_damaged_partial_is_refused_and_force_begins_again(tmp_path):
    drawn, path = caches.draw(), tmp_path / "a.h5"
    with caches.begin(path, drawn):
        pass
    partial = disk.partial_of(path)
    raw = partial.read_bytes()
    for spoiled in (raw[:-1], b"\x01" + raw[1:], raw.replace(b"class 1", b"class 9", 1), raw[:513]):
        partial.write_bytes(spoiled)
        with pytest.raises(CacheError, match="--force") as caught:
            caches.begin(path, drawn)
        assert not isinstance(caught.value, StaleCache) and partial.read_bytes() == spoiled
    caches.make(path, drawn, force=True)
    store.verify(path)


CHANGES = {
    "preprocessing.version": {
        "identity": {"model": "demo", "preprocessing": {"version": "2.0", "size": 32}, "seed": 0}
    },
    "seed": {"identity": {"model": "demo", "preprocessing": {"version": "1.0", "size": 32}}},
    "extra": {"identity": caches.draw()["identity"] | {"extra": None}},
    "class_names.1": {"class_names": ["class 0", "other", "class 2"]},
    "logit_scale": {"logit_scale": 50.0},
    "dtype": {"dtype": "float32"},
    "labels": {"labels": (caches.draw()["labels"] + 1) % 3},
    "paths": {"paths": None},
    "split": {"split": np.zeros(50, np.int8)},
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_partial_begun_for_something_else_is_stale(tmp_path, field):
    drawn, path = caches.draw(), tmp_path / "a.h5"
    with caches.begin(path, drawn) as writer:
        caches.fill(writer, drawn)
    before = disk.partial_of(path).read_bytes()
    with pytest.raises(StaleCache, match=re.escape(field)) as caught:
        caches.begin(path, drawn, **CHANGES[field])
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    assert "--force" in str(caught.value) and disk.partial_of(path).read_bytes() == before
    with caches.begin(path, drawn, **CHANGES[field], force=True) as writer:
        assert len(writer.todo) == 50


def test_two_writers_and_who_holds_it(tmp_path):
    path, drawn = tmp_path / "a.h5", caches.draw(35)
    child = run(path, 0.5, 0)
    child.stdout.readline()
    with pytest.raises(CacheError, match="another extraction") as caught:
        caches.begin(path, drawn)
    if os.name == "posix":
        assert f"process {child.pid}" in str(caught.value)
    child.kill()
    child.wait()
    with caches.begin(path, drawn) as writer:  # the dead one's lock is no obstacle
        with pytest.raises(CacheError, match="another extraction"):
            caches.begin(path, drawn)
        caches.fill(writer, drawn)
        writer.publish()
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    with pytest.raises(CacheError, match="exists; pass --force"):
        caches.begin(path, drawn)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    caches.make(path, caches.draw(35, seed=1), force=True)
    assert store.info(path)["identity"]["seed"] == 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("undisturbed") / "a.h5"
    caches.write_slowly(path, 10, 0)
    return path.read_bytes()


def run(path: Path, pause: float, last_sync: int, rows: int = 35) -> subprocess.Popen:
    words = [sys.executable, str(PROGRAM), str(path), str(rows), str(pause), str(last_sync)]
    return Reaped(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Reaped(subprocess.Popen):
    def wait(self, timeout: float | None = None) -> int:
        code = super().wait(timeout)
        self.stdout.close()
        self.stderr.close()
        return code


def test_rows_of_an_unfinished_cache_that_were_damaged_are_made_again(tmp_path):
    """A resumed cache vouches for every byte of the features and the status of done rows."""
    drawn = caches.draw(9000, 4)
    whole = caches.make(tmp_path / "whole.h5", drawn).read_bytes()
    path = tmp_path / "a.h5"
    for rows in (np.arange(5000), np.arange(8900)):
        with caches.begin(path, drawn) as writer:
            todo = np.intersect1d(writer.todo, rows)
            writer.put(todo, drawn["features"][todo], np.ones(len(todo)))
    begun = disk.partial_of(path).read_bytes()
    with userblock.open_cache(disk.partial_of(path)) as (_, block):
        places = block.regions
    draw = random.Random(0)
    for name, left in (("features", 71_200), ("row_status", 9000), ("block_crc32", 12)):
        for at in [0, left - 1, *(draw.randrange(left) for _ in range(10))]:
            raw = bytearray(begun)
            raw[places[name].offset + at] ^= 1 << draw.randrange(8)
            disk.partial_of(path).write_bytes(raw)
            try:
                with caches.begin(path, drawn) as writer:
                    redone = len(writer.todo)
                    caches.fill(writer, drawn)
                    writer.publish()
            except CacheError as error:  # a status that no writer leaves
                assert name == "row_status" and "row_status" in str(error)
                continue
            assert path.read_bytes() == whole and 100 <= redone <= 100 + 4096
            path.unlink()


def test_a_writer_killed_while_it_publishes_makes_nothing_again(tmp_path, monkeypatch):
    drawn = caches.draw(5000, 4)
    whole = caches.make(tmp_path / "whole.h5", drawn).read_bytes()
    path = tmp_path / "a.h5"
    with caches.begin(path, drawn) as writer:
        caches.fill(writer, drawn)
        monkeypatch.setattr(
            "cache.container.writer.file_sha256", lambda file: 1 / 0
        )  # the checksums stand
        with pytest.raises(ZeroDivisionError):
            writer.publish()
    monkeypatch.undo()
    with caches.begin(path, drawn) as writer:
        assert len(writer.todo) == 0
        writer.publish()
    assert path.read_bytes() == whole
