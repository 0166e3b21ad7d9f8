"""Flipped bits are found; a full or read-only disk is one line."""

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cache import store
from cache.container import disk, userblock
from cache.table import CacheError, check_table, unusable_rows
from tests.cache import caches
from tests.conftest import on_linux, on_posix

PROGRAM = Path(caches.__file__)


def test_every_flipped_bit_is_found(tmp_path):
    drawn = caches.draw(5000, 3)
    path = caches.make(tmp_path / "a.h5", drawn, split=np.zeros(5000, np.int8))
    raw = path.read_bytes()
    with userblock.open_cache(path) as (_, block):
        regions = block.regions
    starts = [0, 24, 200, 508, 512, 520, 600, 2000, len(raw) - 1]
    starts += [offset for offset, _ in regions.values()]
    spots = [(8 * start + bit) for start in starts for bit in range(8)]
    spots += random.Random(0).sample(range(8 * len(raw)), 500)
    good, names = store.load_features(store.read_table(path)), store.read_paths(path)
    with path.open("r+b", buffering=0) as file:
        for spot in spots:
            where, bit = divmod(spot, 8)
            file.seek(where)
            file.write(bytes([raw[where] ^ (1 << bit)]))
            with pytest.raises(CacheError) as caught:
                store.verify(path)
            assert "\n" not in str(caught.value)
            region = next((n for n, (at, size) in regions.items() if at <= where < at + size), None)
            if region == "features":
                row = (where - regions["features"].offset) // (3 * 2)
                first, last = map(
                    int, re.search(r"rows (\d+) to (\d+)", str(caught.value)).groups()
                )
                assert first <= row <= last
                with pytest.raises(CacheError, match=f"rows {first} to {last}"):
                    store.load_features(store.read_table(path))
            elif region == "paths":
                np.testing.assert_array_equal(store.load_features(store.read_table(path)), good)
                with pytest.raises(CacheError, match="paths"):
                    store.read_paths(path)
            else:
                with pytest.raises(CacheError):
                    store.read_table(path)
            file.seek(where)
            file.write(raw[where : where + 1])
    store.verify(path)
    assert store.read_paths(path) == names


def test_nan_on_disk_is_refused_with_its_row(tmp_path):
    drawn = caches.draw(dtype="float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache.container.writer.unusable_rows", lambda *_: (np.zeros(0, int), ""))
        drawn["features"][[7, 9], 1] = np.nan, np.inf
        path = caches.make(tmp_path / "a.h5", drawn)
    table = store.read_table(path)
    for look in (store.load_features, store.check_features, check_table):
        with pytest.raises(CacheError, match="features of 2 of rows 0 to 49, first in row 7"):
            look(table)
    with pytest.raises(CacheError, match="first in row 7"):
        store.verify(path)


@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float16", 0, "zeros only"),
        ("float32", 0, "zeros only"),
        ("float32", 1e-30, "zeros only"),
        ("float32", 1e30, "overflow float32"),
    ],
)
def test_rows_without_a_direction_are_refused(tmp_path, dtype, value, message):
    drawn = caches.draw(dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache.container.writer.unusable_rows", lambda *_: (np.zeros(0, int), ""))
        drawn["features"][[7, 9]] = value
        path = caches.make(tmp_path / "a.h5", drawn)
    for read in (
        lambda: store.load_features(store.read_table(path)),
        lambda: store.verify(path),
        lambda: check_table(store.read_table(path)),
    ):
        with pytest.raises(CacheError, match=f"{message}.* 2 of rows 0 to 49, first in row 7"):
            read()
    # Rows of unreadable images are zeros, and left out.
    table = store.read_table(caches.make(tmp_path / "b.h5", drawn, unreadable=(7, 9)))
    assert len(store.load_features(table)) == 48
    store.verify(tmp_path / "b.h5")


@given(st.integers(-45, 38), st.integers(1, 5), st.sampled_from([np.float16, np.float32]))
def test_what_is_let_through_has_a_length_in_float32(power, width, dtype):
    with np.errstate(over="ignore", under="ignore"):
        rows = np.full((1, width), float(f"1e{power}")).astype(dtype)
        length = np.sqrt((rows.astype(np.float32) ** 2).sum(dtype=np.float32))
    bad, what = unusable_rows(rows)
    assert bool(len(bad)) == bool(what)
    if not len(bad):
        unit = rows[0].astype(np.float64) / np.float64(length)
        assert abs(np.linalg.norm(unit) - 1) < 1e-6
    if 1e-18 < np.linalg.norm(rows.astype(np.float64)) < 1e18:
        assert not len(bad)


def test_disk_space_is_taken_at_the_beginning(tmp_path):
    drawn = caches.draw(20000, 64)
    with caches.begin(tmp_path / "a.h5", drawn):
        status = disk.partial_of(tmp_path / "a.h5").stat()
        if hasattr(status, "st_blocks"):
            assert status.st_blocks * 512 >= 20000 * 64 * 2


FULL_DISK = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.cache import caches
from cache.table import CacheError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    caches.make(Path(sys.argv[2]), caches.draw(20000, 64))
except CacheError as error:
    print(error)
"""


@on_posix("limits the size of files")
@pytest.mark.parametrize("limit", [100, 3000, 50_000, 2_000_000])
def test_no_space_is_one_line_and_leaves_nothing(tmp_path, limit):
    words = [
        sys.executable,
        "-c",
        FULL_DISK,
        str(PROGRAM.parents[2]),
        str(tmp_path / "a.h5"),
        str(limit),
    ]
    said = subprocess.run(words, capture_output=True, text=True, check=True)
    words = rf".*a\.h5\.partial: too large .*file size limit: .*limit is {limit:,}; .*\n$"
    assert re.match(words, said.stdout)
    assert not said.stderr and not list(tmp_path.iterdir())


@on_linux("mounts a tmpfs")
def test_a_small_disk_is_full_at_the_beginning(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted: run it as root, with CAP_SYS_ADMIN")
    try:
        with pytest.raises(CacheError, match=r"no space left: it needs 3,\d\d\d,\d\d\d bytes, 1,0"):
            caches.make(tmp_path / "a.h5", caches.draw(20000, 64))
        assert not list(tmp_path.iterdir())
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(CacheError, match="cannot be written: Read-only file system"):
            caches.make(tmp_path / "a.h5", caches.draw())
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@on_posix("takes a folder's permissions away")
def test_a_read_only_folder_is_one_line():
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    drawn, user = caches.draw(), os.geteuid()
    folder.chmod(0o555)
    os.seteuid(user or 65534)  # permissions do not bind root
    try:
        with pytest.raises(CacheError, match="a.h5: cannot be written: Permission denied"):
            caches.make(folder / "a.h5", drawn)
    finally:
        os.seteuid(user)
        shutil.rmtree(folder)


@given(
    bits=arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=6)),
    step=st.sampled_from([1, -1, 2]),
)
@example(
    bits=np.array([[0x0001, 0x8000], [0x8000, 0], [0x7BFF, 0xFBFF], [0x7C00, 1]], np.uint16), step=1
)
@example(bits=np.array([[0x7C01]], np.uint16), step=1)
@example(bits=np.array([[0xFE01, 1], [0xFC00, 1], [0x8001, 0], [0x7BFF] * 2], np.uint16), step=-1)
def test_float16_rows_are_judged_by_their_bits_as_float32_by_their_squares(bits, step):
    rows = bits[::step, ::step].view(np.float16)
    with np.errstate(invalid="ignore"):
        wide = rows.astype(np.float32)
        sound = np.isfinite(wide).all(axis=1) & wide.any(axis=1)  # any() warns of a signalling NaN
    bad, what = unusable_rows(rows)
    assert (bad.tolist(), what) == (unusable_rows(wide)[0].tolist(), unusable_rows(wide)[1])
    assert bad.tolist() == np.flatnonzero(~sound).tolist()
