"""The cache on disk: what is written is read back, and invalid tables are refused."""

import hashlib
import json
import re
import uuid
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache import store
from cache.container import disk
from cache.table import CacheError, StaleCache, domain_index
from tests.cache import caches

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


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    document = (PROGRAM.parents[2] / "docs" / "cache-format.md").read_text(encoding="utf-8")
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


def test_put_refuses_what_does_not_fit(tmp_path):
    drawn = caches.draw()
    features = drawn["features"].astype(np.float32)
    with caches.begin(tmp_path / "a.h5", drawn) as writer:
        features[5, 2], features[6, 1] = np.nan, 1e6
        with pytest.raises(CacheError, match=r"row 5 \(photo/class/005.jpg\) has NaN or Inf"):
            writer.put(np.arange(6), features[:6], np.ones(6))
        for spoiled, message in ((0.0, "has zeros only"), (np.nan, "has NaN or Inf")):
            with pytest.raises(CacheError, match=f"row 4 .*{message}"):
                writer.put(np.array([4]), np.full((1, features.shape[1]), spoiled), np.ones(1))
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


def test_names_are_found_or_the_nearest_is_named(tmp_path):
    table = store.read_table(caches.make(tmp_path / "a.h5", caches.draw()))
    assert domain_index(table, "sketch") == 1
    with pytest.raises(
        CacheError, match=r"no domain 'Scetch'; it has photo, sketch. Did you mean sketch"
    ):
        domain_index(table, "Scetch")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.arange(50) % 3 + 1}, "count from 1"),
        ({"labels": np.full(50, -1)}, "row 0 has -1"),
        ({"domains": np.full(50, 2)}, "domains must be 0 to 1"),
        ({"labels": np.zeros(49, int)}, "must be"),
        ({"class_names": []}, "no class names"),
        ({"class_names": ["a", "b", "a"]}, "'a' is listed twice"),
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
