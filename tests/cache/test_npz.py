"""Existing features are imported and exported without changing a number."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cache import store
from cache.npz import read_npz, write_npz
from cache.table import CacheError, check_table
from tests.cache.npz_files import arrays, save


def npz_files(shared: Path) -> list[Path]:
    files = [*(shared / "data" / "features").glob("*.npz"), *(shared / "oracle").glob("*.npz")]
    assert files
    return sorted(files)


def test_every_shared_file_comes_in_and_goes_out(shared, tmp_path):
    for number, source in enumerate(npz_files(shared)):
        path = tmp_path / f"{number}.h5"
        table = read_npz(source)
        check_table(table)
        store.write_table(path, table)
        store.verify(path)
        cached = store.read_table(path)
        write_npz(cached, path.with_suffix(".npz"))
        again = read_npz(path.with_suffix(".npz"))
        with np.load(source) as given:
            for other in (table, cached, again):
                for name in ("features", "labels", "domains", "text_features"):
                    np.testing.assert_array_equal(getattr(other, name), given[name])
                assert other.features.dtype == given["features"].dtype
                assert other.class_names == tuple(given["class_names"].tolist())
                assert other.domain_names == tuple(given["domain_names"].tolist())
                assert other.logit_scale == given["logit_scale"]
                assert (other.split is None) == ("split" not in given)
                if "split" in given:
                    np.testing.assert_array_equal(other.split, given["split"])
                assert other.content_sha256 == table.content_sha256
                assert other.fingerprint == table.fingerprint == store.fingerprint(other.identity)
            if "model" in given:
                assert store.info(path)["model"] == "ViT-B/32"


def test_what_is_not_said_gets_a_default(tmp_path):
    table = read_npz(save(tmp_path))
    assert table.logit_scale == 100 and table.split is None and table.identity["model"] is None
    assert (table.class_names, table.domain_names) == (
        ("class_0", "class_1", "class_2"),
        ("domain_0",),
    )
    assert not table.domains.any() and table.identity["normalised"] is False
    unit = arrays()["features"].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert read_npz(save(tmp_path, features=unit)).identity["normalised"] is True
    assert read_npz(save(tmp_path, features=unit)).features.dtype == np.float32
    assert read_npz(save(tmp_path, domains=np.arange(40) % 3)).domain_names[2] == "domain_2"


def test_what_training_would_notice_changes_the_fingerprint(tmp_path):
    base = read_npz(save(tmp_path))
    for changes in (
        {"features": arrays()["features"] + np.float16(1)},
        {"class_names": np.array(["a", "b", "c"])},
        {"logit_scale": np.float32(50)},
        {"split": np.zeros(40, int)},
        {"model": np.array("ViT-B/16")},
        {"normalised": np.bool_(True)},
    ):
        assert read_npz(save(tmp_path, **changes)).fingerprint != base.fingerprint
    same = {"unknown": np.ones(3), "labels": arrays()["labels"].astype(np.uint8)}
    other = read_npz(save(tmp_path, **same, features=arrays()["features"].astype(">f2")))
    assert other.fingerprint == base.fingerprint and other.content_sha256 == base.content_sha256


WRONG = {
    "missing": (
        {"labels": None, "text_features": None},
        "has no labels, text_features; it has 'feat",
    ),
    "pickle": ({"class_names": np.array(["a", None], object)}, "Python objects"),
    "pickled features": ({"features": np.array([[1.0]], object)}, "Python objects"),
    "no rows": ({"features": np.zeros((0, 5), "f2"), "labels": np.zeros(0, int)}, "above 0"),
    "no classes": ({"text_features": np.zeros((0, 5), "f4")}, "no class names"),
    "one axis": ({"features": np.zeros(5, "f2")}, r"got \(5,\)"),
    "integer features": ({"features": np.zeros((40, 5), int)}, "float16, float32 or float64"),
    "long doubles": ({"features": np.zeros((40, 5), np.longdouble)}, "float16, float32 or float64"),
    "NaN": ({"features": np.full((40, 5), np.nan, "f4")}, "40 of rows 0 to 39, first in row 0"),
    "overflow": ({"features": np.full((40, 5), 1e300)}, "NaN or Inf"),
    "text NaN": ({"text_features": np.full((3, 5), np.inf, "f4")}, "class 'class_0'"),
    "width": ({"text_features": np.zeros((3, 6), "f4")}, "text_features must be"),
    "float labels": ({"labels": np.full(40, 0.5)}, "labels must be integers"),
    "few labels": ({"labels": np.zeros(39, int)}, r"labels must be \(40,\)"),
    "labels from 1": ({"labels": np.arange(40) % 3 + 1}, "count from 1"),
    "label -1": ({"labels": np.arange(40) % 3 - 1}, "row 0 has -1"),
    "domain": ({"domains": np.ones(40, int), "domain_names": np.array(["a"])}, "--domains-from 1"),
    "no domains": ({"domains": np.zeros(0, int)}, r"domains must be \(40,\)"),
    "names": ({"class_names": np.array(["a", "b"])}, "text_features must be"),
    "zeros": ({"features": np.zeros((40, 5), "f2")}, "zeros only.* 40 of rows 0 to 39"),
    "overflowing squares": ({"features": np.full((40, 5), 1e30)}, "squares overflow float32"),
    "zero text": ({"text_features": np.zeros((3, 5), "f4")}, "'class_0' has zeros only"),
    "names bytes": ({"class_names": np.array([b"a", b"b", b"c"])}, "list of text"),
    "split": ({"split": np.full(40, 7)}, "split must be 0 train"),
    "split wraps": ({"split": np.full(40, 256)}, "split must be 0 train"),
    "scale": ({"logit_scale": np.array([1.0, 2.0])}, "logit_scale must be one value"),
    "scale 0": ({"logit_scale": np.float32(0)}, "logit_scale must be above 0"),
    "model": ({"model": np.array(3)}, "model must be one value"),
    "normalised": ({"normalised": np.array("yes")}, "normalised must be one value"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line(tmp_path, name):
    changes, message = WRONG[name]
    path = save(tmp_path, **changes)
    with pytest.raises(CacheError, match=message) as caught:
        read_npz(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def member(shape: tuple, data: bytes) -> bytes:
    file = io.BytesIO()
    header = {"shape": shape, "fortran_order": False, "descr": "<f2"}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (member((1 << 40, 5), b""), "declares"),
        (member((40, 5), bytes(399)), "declares"),
        (member((40, 5), bytes(400)).replace(b"\1\0", b"\3\0", 1), "version"),
        (member((5000, 5000), bytes(5000 * 5000 * 2)), "unpack to"),
        (b"not an array at all", "damaged .npz"),
        (member((-1, 5), b""), "declares"),
        (b"", "damaged .npz"),
    ],
)
def test_a_forged_member_is_refused_before_it_is_unpacked(tmp_path, features, message, monkeypatch):
    path = save(tmp_path, features=None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", features)
    monkeypatch.setattr("cache.npz_members._SLACK", 1 << 20)
    monkeypatch.setattr(
        np.lib.format, "read_array", lambda *_, **__: pytest.fail("it was unpacked")
    )
    with pytest.raises(CacheError, match=message) as caught:
        read_npz(path)
    assert "\n" not in str(caught.value)


def test_other_and_damaged_files_are_one_line(tmp_path):
    raw = save(tmp_path, model=np.array("demo")).read_bytes()
    path = tmp_path / "b.npz"
    cases = [(b"", "not an .npz"), (b"<html>", "not an .npz"), (raw[:-30], "not an .npz")]
    for content, message in cases:
        path.write_bytes(content)
        with pytest.raises(CacheError, match=message):
            read_npz(path)
    with pytest.raises(CacheError, match="no such file"):
        read_npz(tmp_path / "none.npz")
    with pytest.raises(CacheError, match="cannot be read"):
        read_npz(tmp_path)
    random = np.random.default_rng(0)
    expected = read_npz(tmp_path / "a.npz")
    path.write_bytes(raw)
    with path.open("r+b", buffering=0) as file:
        for where in random.integers(0, len(raw), 300).tolist():
            file.seek(where)
            file.write(bytes([raw[where] ^ (1 << int(random.integers(8)))]))
            try:  # zip has its own CRC-32 of each member
                assert read_npz(path).content_sha256 == expected.content_sha256
            except CacheError as error:
                assert "\n" not in str(error)
            file.seek(where)
            file.write(raw[where : where + 1])
    assert read_npz(path, dataset="a").fingerprint == expected.fingerprint


def test_export_refuses_damage_and_what_is_there(tmp_path):
    path = tmp_path / "a.h5"
    store.write_table(path, read_npz(save(tmp_path)))
    table = store.read_table(path)
    with pytest.raises(CacheError, match="exists; pass --force"):
        write_npz(table, tmp_path / "a.npz")
    write_npz(table, tmp_path / "a.npz", force=True)
    with pytest.raises(CacheError, match="cannot be written: No such file"):
        write_npz(table, tmp_path / "none" / "b.npz")
    raw = bytearray(path.read_bytes())
    raw[raw.index(table.features.tobytes())] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CacheError, match="damaged in its features, rows 0 to 39"):
        write_npz(store.read_table(path), tmp_path / "b.npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "a.npz"]
