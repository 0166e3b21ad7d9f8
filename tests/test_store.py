"""The cache on disk: what goes in comes out, kills lose nothing, damage is found."""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache import disk, store, userblock
from cache.table import CacheError, StaleCache, check_table, class_index, domain_index
from tests import caches

PROGRAM = Path(caches.__file__)


def same(table, drawn, keep=slice(None)) -> None:
    for name in ("features", "labels", "domains"):
        np.testing.assert_array_equal(getattr(table, name), drawn[name][keep])
    np.testing.assert_array_equal(table.text_features, drawn["text_features"])
    assert table.features.dtype == drawn["features"].dtype
    assert (table.labels.dtype, table.domains.dtype) == (np.int64, np.int64)
    assert (*table.class_names, *table.domain_names) == (
        *drawn["class_names"],
        *drawn["domain_names"],
    )
    assert table.identity == drawn["identity"] and table.logit_scale == drawn["logit_scale"]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.sampled_from([1, 2, 3, 33, 4095, 4096, 4097, 9000]),
    width=st.sampled_from([1, 3, 32, 33]),
    classes=st.sampled_from([1, 2, 255, 256, 257]),
    dtype=st.sampled_from(["float16", "float32"]),
    seed=st.integers(0, 99),
)
def test_what_goes_in_comes_out(tmp_path, rows, width, classes, dtype, seed):
    drawn = caches.draw(rows, width, classes, seed, dtype)
    rng = np.random.default_rng(seed)
    split = rng.integers(0, 3, rows).astype(np.int8) if seed % 2 else None
    bad = tuple(np.flatnonzero(rng.random(rows) < 0.2)[: rows - 1]) if seed % 3 == 0 else ()
    path = tmp_path / f"{uuid.uuid4()}.h5"
    with caches.begin(path, drawn, split=split) as writer:
        order = rng.permutation(rows)  # any order, in pieces of any size
        for piece in np.array_split(order, min(rows, 7)):
            status = np.where(np.isin(piece, bad), 2, 1)
            writer.put(piece, drawn["features"][piece].astype(np.float32), status)
        writer.publish()
    store.verify(path)
    table = store.read_table(path)
    keep = ~np.isin(np.arange(rows), bad)
    same(table, drawn, keep)
    assert (table.split is None) == (split is None)
    if split is not None:
        np.testing.assert_array_equal(table.split, split[keep])
    assert store.read_paths(path) == [p for p, k in zip(drawn["paths"], keep, strict=True) if k]
    loaded = store.load_features(table)
    assert loaded.dtype == np.float32 and loaded.flags.writeable
    np.testing.assert_array_equal(loaded, drawn["features"][keep].astype(np.float32))
    assert sorted(p.name for p in tmp_path.glob(path.name + "*")) == [
        path.name
    ]  # no lock, no partial


def test_write_table_and_the_hashes_as_documented(tmp_path):
    drawn = caches.draw(70, 5, dtype="float32")
    made = store.read_table(caches.make(tmp_path / "a.h5", drawn, unreadable=(3,)))
    store.write_table(tmp_path / "b.h5", made)
    again = store.read_table(tmp_path / "b.h5")
    keep = np.arange(70) != 3
    said = b"fedclip content 1 float32 69 5 3\n"
    for array, kind in ((drawn["features"], "<f4"), (drawn["labels"], "<i8")):
        said += array[keep].astype(kind).tobytes()
    said += drawn["domains"][keep].astype("<i8").tobytes()
    said += drawn["text_features"].astype("<f4").tobytes()
    assert made.content_sha256 == again.content_sha256 == hashlib.sha256(said).hexdigest()
    text = json.dumps(drawn["identity"], sort_keys=True, separators=(",", ":"))
    assert made.fingerprint == again.fingerprint == hashlib.sha256(text.encode()).hexdigest()[:32]
    assert store.fingerprint({"b": (1, 2), "a": "é"}) == store.fingerprint({"a": "é", "b": [1, 2]})
    assert store.read_paths(tmp_path / "b.h5") == [""] * 69
    assert store.info(tmp_path / "b.h5")["rows"] == 69


def test_the_documented_example_reads_the_cache(tmp_path, monkeypatch):
    document = (PROGRAM.parent.parent / "docs" / "cache-format.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", document, re.DOTALL).group(1)
    drawn = caches.draw()
    caches.make(tmp_path / "pacs.h5", drawn)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(example, names)
    np.testing.assert_array_equal(names["features"], drawn["features"])
    np.testing.assert_array_equal(names["labels"], drawn["labels"])
    assert names["paths"] == drawn["paths"]
    assert names["metadata"]["class_names"] == drawn["class_names"]


def test_info_of_a_partial_and_of_a_complete_cache(tmp_path):
    path, drawn = tmp_path / "a.h5", caches.draw()
    with caches.begin(path, drawn) as writer:
        writer.put(np.array([4, 2]), drawn["features"][[4, 2]], np.array([1, 2]))
        writer.flush()
        half = store.info(disk.partial_of(path))
        caches.fill(writer, drawn)
        writer.publish()
    full = store.info(path)
    assert (half["complete"], half["rows_done"], half["unreadable"]) == (False, 2, 1)
    assert (full["complete"], full["rows_done"], full["unreadable"]) == (True, 50, 1)
    assert half["content_sha256"] is None
    assert full["content_sha256"] == store.read_table(path).content_sha256
    for about in (half, full):
        assert (about["rows"], about["width"], about["classes"], about["domains"]) == (50, 6, 3, 2)
        assert about["model"] == "demo" and about["fingerprint"] == store.fingerprint(
            drawn["identity"]
        )
        json.dumps(about)


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


def test_compare_identity_shows_both_values():
    with pytest.raises(StaleCache, match=r'preprocessing\.version = "12".*asked for "13"'):
        store.compare_identity(
            {"a": 1, "preprocessing": {"version": "13"}},
            {"preprocessing": {"version": "12"}, "a": 1},
            "x.h5",
        )
    with pytest.raises(StaleCache, match=r"names\.1 = nothing, asked for \"b\""):
        store.compare_identity({"names": ("a", "b")}, {"names": ["a"]}, "x.h5")
    with pytest.raises(StaleCache, match="characters"):
        store.compare_identity({"names": "y" * 5000}, {}, "x.h5")
    store.compare_identity({"a": (1, {"b": None})}, {"a": [1, {"b": None}]}, "x.h5")


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


def test_put_refuses_what_does_not_fit(tmp_path):
    drawn = caches.draw()
    features = drawn["features"].astype(np.float32)
    with caches.begin(tmp_path / "a.h5", drawn) as writer:
        features[5, 2], features[6, 1] = np.nan, 1e6
        with pytest.raises(CacheError, match=r"row 5 \(photo/class/005.jpg\) has NaN or Inf"):
            writer.put(np.arange(6), features[:6], np.ones(6))
        with pytest.raises(CacheError, match=r"row 6 .* too large for float16.*store float32"):
            writer.put(np.array([6]), features[6:7], np.ones(1))
        writer.put(np.array([5, 6]), features[5:7], np.array([2, 2]))
        for rows, count, status in (
            ([5], 1, [1]),
            ([1, 1], 2, [1, 1]),
            ([1], 2, [1]),
            ([1], 1, [3]),
        ):
            with pytest.raises(ValueError, match="put"):
                writer.put(np.array(rows), features[:count], np.array(status))
        with pytest.raises(CacheError, match="48 of 50 rows"):
            writer.publish()
        assert writer.todo.tolist() == [0, 1, 2, 3, 4, *range(7, 50)]
    with caches.begin(tmp_path / "a.h5", drawn) as writer:  # leaving the block flushed it
        assert len(writer.todo) == 48
        writer.put(writer.todo, features[writer.todo], np.full(48, 2))
        with pytest.raises(CacheError, match="not one image"):
            writer.publish()


def test_every_flipped_bit_is_found(tmp_path):
    drawn = caches.draw(5000, 3)
    path = caches.make(tmp_path / "a.h5", drawn, split=np.zeros(5000, np.int8))
    raw = path.read_bytes()
    with userblock.open_cache(path) as (_, block):
        regions = block.regions
    starts = [0, 24, 200, 508, 512, 520, 600, 2000, len(raw) - 1]
    starts += [offset for offset, _ in regions.values()]
    spots = [(8 * start + bit) for start in starts for bit in range(8)]
    spots += random.Random(0).sample(range(8 * len(raw)), 1500)
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
        patch.setattr(np, "isfinite", lambda array: np.ones(np.shape(array), bool))
        drawn["features"][[7, 9], 1] = np.nan, np.inf
        path = caches.make(tmp_path / "a.h5", drawn)
    table = store.read_table(path)
    for look in (store.load_features, store.check_features, check_table):
        with pytest.raises(CacheError, match="features of 2 of rows 0 to 49, first in row 7"):
            look(table)
    with pytest.raises(CacheError, match="first in row 7"):
        store.verify(path)


def test_names_are_found_or_the_nearest_is_named(tmp_path):
    table = store.read_table(caches.make(tmp_path / "a.h5", caches.draw()))
    assert (domain_index(table, "sketch"), class_index(table, "class 2")) == (1, 2)
    with pytest.raises(
        CacheError, match=r"no domain 'Scetch'; it has photo, sketch. Did you mean sketch"
    ):
        domain_index(table, "Scetch")
    with pytest.raises(CacheError, match="no class 'zebra'"):
        class_index(table, "zebra")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.arange(50) % 3 + 1}, "count from 1"),
        ({"labels": np.full(50, -1)}, "row 0 has -1"),
        ({"domains": np.full(50, 2)}, "domains must be 0 to 1"),
        ({"labels": np.zeros(49, int)}, "must be"),
        ({"class_names": []}, "no class names"),
        ({"class_names": ["a", "b", "a"]}, "'a' stands there more than once"),
        ({"class_names": ["a", "", "b"]}, "printable"),
        ({"class_names": ["a", "b\x1b[2J", "c"]}, "printable"),
        ({"class_names": ["a", "b"]}, "text_features must be"),
        ({"text_features": np.full((3, 6), np.inf)}, "class 0"),
        ({"logit_scale": float("nan")}, "logit_scale"),
        ({"width": 0}, "above 0"),
        ({"paths": ["a"]}, "1 paths for 50 rows"),
        ({"split": np.full(50, 3)}, "split must be 0 to 2"),
    ],
)
def test_a_wrong_table_is_never_begun(tmp_path, changes, message):
    with pytest.raises(CacheError, match=message) as caught:
        caches.begin(tmp_path / "a.h5", caches.draw(), **changes)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_undecodable_file_names_keep_their_bytes(tmp_path):
    drawn = caches.draw(2)
    drawn["paths"] = ["photo/caf\udce9.jpg", "photo/日本\n.png"]
    path = caches.make(tmp_path / "a.h5", drawn)
    assert store.read_paths(path) == drawn["paths"]
    with h5py.File(path) as file:
        assert (
            file["paths"][:].tobytes()
            == b"photo/caf\xe9.jpg\0photo/\xe6\x97\xa5\xe6\x9c\xac\n.png\0"
        )


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
from tests import caches
from cache.table import CacheError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    caches.make(Path(sys.argv[2]), caches.draw(20000, 64))
except CacheError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX's")
@pytest.mark.parametrize("limit", [100, 3000, 50_000, 2_000_000])
def test_no_space_is_one_line_and_leaves_nothing(tmp_path, limit):
    words = [
        sys.executable,
        "-c",
        FULL_DISK,
        str(PROGRAM.parent.parent),
        str(tmp_path / "a.h5"),
        str(limit),
    ]
    said = subprocess.run(words, capture_output=True, text=True, check=True)
    assert re.match(r".*a\.h5\.partial: no space left: it needs [\d,]+ bytes, .*\n$", said.stdout)
    assert not said.stderr and not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting needs root")
def test_a_small_disk_is_full_at_the_beginning(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(CacheError, match=r"no space left: it needs 3,\d\d\d,\d\d\d bytes, 1,0"):
            caches.make(tmp_path / "a.h5", caches.draw(20000, 64))
        assert not list(tmp_path.iterdir())
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(CacheError, match="cannot be written: Read-only file system"):
            caches.make(tmp_path / "a.h5", caches.draw())
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.skipif(os.name != "posix", reason="folder permissions are POSIX's")
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
