"""Forged caches with valid checksums are refused before anything in them is used."""

import json
import os
import re
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from cache import store
from cache.container import layout, userblock
from cache.table import CacheError
from tests.cache.forging import refused, seal


@pytest.fixture
def forged(tmp_path, sound) -> Path:
    path = tmp_path / "forged.h5"
    path.write_bytes(sound.read_bytes())
    seal(path)
    assert path.read_bytes() == sound.read_bytes()  # sealing changes nothing by itself
    return path


def external(file: h5py.File) -> None:
    secret = Path(file.filename).with_name("secret")
    secret.write_bytes(bytes(5000 * 4 * 2))
    del file["features"]
    file.create_dataset("features", (5000, 4), "<f2", external=[(str(secret), 0, 40000)])


def virtual(file: h5py.File) -> None:
    plan = h5py.VirtualLayout((5000,), "|u1")
    plan[:] = h5py.VirtualSource(file.filename, "domains", (5000,))
    del file["labels"]
    file.create_virtual_dataset("labels", plan)


def soft(file: h5py.File) -> None:
    file.move("labels", "other")
    del file["split"]
    file["labels"] = h5py.SoftLink("/other")
    file.move("other", "split")


def outside(file: h5py.File) -> None:
    del file["labels"]
    file["labels"] = h5py.ExternalLink("/etc/hostname", "labels")


def group(file: h5py.File) -> None:
    del file["split"]
    file.create_group("split")


def many(file: h5py.File) -> None:
    for number in range(2000):
        file[f"other {number}"] = h5py.SoftLink("/labels")


def big_attribute(file: h5py.File) -> None:
    file.attrs["x"] = np.zeros(8000)


def text_attribute(file: h5py.File) -> None:
    file["labels"].attrs["x"] = "text"


def instead(name: str, *args, **kwargs):
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, *args, **kwargs)

    return change


FORGERIES = {
    "external storage": (external, "external storage"),
    "virtual": (virtual, "virtual dataset"),
    "soft link": (soft, "link to elsewhere"),
    "external link": (outside, "link to elsewhere"),
    "group": (group, "split is not a dataset"),
    "more members": (lambda file: file.create_dataset("zzz", data=1), "or should not have, .zzz."),
    "2000 members": (many, "datasets, more than"),
    "missing member": (lambda file: file.pop("labels"), "labels"),
    "root attribute": (big_attribute, "attributes"),
    "attribute": (text_attribute, "labels has attributes"),
    "chunked": (instead("labels", (5000,), "|u1", chunks=(100,)), "chunked, compressed"),
    "filtered": (instead("labels", (5000,), "|u1", compression="gzip"), "chunked, compressed"),
    "huge chunked": (instead("labels", (1 << 40,), "|u1", chunks=(1 << 20,)), "chunked"),
    "huge": (instead("labels", (1 << 40,), "|u1"), "labels is declared but has no bytes"),
    "never stored": (instead("labels", (5000,), "|u1"), "labels is declared but has no bytes"),
    "float labels": (instead("labels", data=np.zeros(5000)), "labels must have 1 axes"),
    "text labels": (instead("labels", data=["a"] * 5000), "labels must have 1 axes"),
    "big-endian": (instead("labels", data=np.zeros(5000, ">u2")), "labels must have 1 axes"),
    "signed": (instead("labels", data=np.zeros(5000, "i1")), "labels must have 1 axes"),
    "scalar": (instead("labels", data=np.uint8(0)), "labels must have 1 axes"),
    "null": (instead("labels", data=h5py.Empty("|u1")), "labels must have 1 axes"),
    "two axes": (instead("labels", data=np.zeros((5000, 1), "u1")), "labels must have 1 axes"),
    "fewer labels": (instead("labels", data=np.zeros(4999, "u1")), "labels has shape"),
    "wider text": (instead("text_features", data=np.zeros((3, 5), "<f4")), "text_features has"),
    "label 200": (instead("labels", data=np.full(5000, 200, "u1")), "labels must be 0 to 2"),
    "domain 2": (instead("domains", data=np.full(5000, 2, "u1")), "domains must be 0 to 1"),
    "split 3": (instead("split", data=np.full(5000, 3, "i1")), "split must be 0 to 2"),
    "zero text": (instead("text_features", data=np.zeros((3, 4), "<f4")), "class 0' has zeros"),
    "huge text": (instead("text_features", data=np.full((3, 4), 1e30, "<f4")), "overflow"),
    "NaN text": (instead("text_features", data=np.full((3, 4), np.nan, "<f4")), "NaN or Inf"),
    "status 3": (instead("row_status", data=np.full(5000, 3, "u1")), "row_status"),
    "status 0": (instead("row_status", data=np.zeros(5000, "u1")), "row_status"),
    "huge metadata": (
        instead("metadata", data=np.zeros(layout.METADATA_BYTES + 1, "u1")),
        "metadata has 4,194,305 bytes",
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_structure_is_refused_before_it_is_followed(forged, sound, name):
    change, message = FORGERIES[name]
    with h5py.File(forged, "r+") as file:
        change(file)
    if forged.stat().st_size < sound.stat().st_size:  # what HDF5 gave back at the end
        os.truncate(forged, sound.stat().st_size)
    seal(forged)
    refused(forged, message, (store.read_table, store.info, store.verify))


METADATA = {
    "no JSON": (b"{", "not the JSON"),
    "no UTF-8": (b'"\xff"', "not the JSON"),
    "a list": (b"[]", "not the JSON"),
    "deep": (b"[" * 100_000, "not the JSON"),
    "deep identity": ({"identity": {"a": json.loads("[" * 80 + "]" * 80)}}, "nested more than 32"),
    "million keys": (
        b'{"identity": {' + b",".join(b'"%x":0' % n for n in range(300_000)) + b"}}",
        "300,001 keys as JSON, more than the 10,000",
    ),
    "million values": (b"[" + b"0," * 300_000 + b"0]", "300,000 values as JSON"),
    "long text": ({"identity": {"a": 'x"\\' * 30_000}}, "bytes in one text as JSON, more than"),
    "open text": (b'"' * 2_000_001, "not the JSON|identity"),
    "open escapes": (b'"' + b'\\"' * 1_000_000, "in one text"),
    "open escape": (b'"' + b'\\"' * 20_000 + b"\\", "not the JSON"),
    "scale 1e308": ({"logit_scale": 1e308}, "logit_scale"),
    "NaN": (b'{"identity": {"a": NaN}}', "not the JSON"),
    "no names": ({"class_names": None}, "class_names"),
    "names no text": ({"class_names": [1, 2, 3]}, "printable"),
    "nested names": ({"class_names": [["a"], [], {}]}, "printable"),
    "escape codes": ({"class_names": ["a", "b", "\x1b]0;owned\x07"]}, "printable"),
    "twice": ({"class_names": ["a", "b", "a"]}, "is listed twice"),
    "too few": ({"class_names": ["a", "b"]}, "text_features"),
    "scale": ({"logit_scale": -1.0}, "logit_scale"),
    "scale text": ({"logit_scale": "100"}, "logit_scale"),
    "identity": ({"identity": []}, "identity"),
    "schema": ({"schema": 2}, "schema"),
}


@pytest.mark.parametrize("name", METADATA)
def test_forged_metadata(forged, name):
    change, message = METADATA[name]
    with h5py.File(forged, "r+") as file:
        if isinstance(change, dict):
            change = json.dumps(json.loads(file["metadata"][:].tobytes()) | change).encode()
        instead("metadata", data=np.frombuffer(change, "u1"))(file)
    seal(forged)
    refused(forged, message, (store.read_table, store.info, store.verify))


def test_a_place_outside_the_file(forged, sound):
    with userblock.open_cache(sound) as (_, block):
        at, size = block.regions["features"]
    there, elsewhere = ((at - 512 + away).to_bytes(8, "little") for away in (0, 1 << 30))
    raw, length = sound.read_bytes(), size.to_bytes(8, "little")
    assert raw.count(there + length) == 1  # HDF5's layout message
    forged.write_bytes(raw.replace(there + length, elsewhere + length))
    with pytest.raises(CacheError, match="features claims 40,000 bytes|invalid dataset size"):
        layout.read_places(forged, len(raw))


def test_a_false_content_hash_is_found_by_verify(forged, sound):
    with userblock.open_cache(sound) as (_, block):
        raw = userblock.pack(replace(block, content_sha256="ab" * 32))
    forged.write_bytes(raw + sound.read_bytes()[512:])
    refused(forged, "SHA-256", (store.verify,))


def test_verify_needs_more_than_right_crcs(forged, sound):
    raw = sound.read_bytes().replace(b"photo/class/007", b"photo/class/008", 1)
    with userblock.open_cache(sound) as (_, block):
        begin, nbytes = block.regions["paths"]
    crc = zlib.crc32(raw[begin : begin + nbytes])
    forged.write_bytes(userblock.pack(replace(block, paths_crc32=crc)) + raw[512:])
    refused(forged, "although every CRC-32 matches", (store.verify,))


def test_random_damage_to_hdf5_with_checksums_made_right(forged, sound):
    random = np.random.default_rng(0)
    raw = sound.read_bytes()
    for _ in range(300):
        spots = random.integers(512, 2700, 2).tolist()
        patch(forged, {where: int(random.integers(256)) for where in spots})
        try:
            places = layout.read_places(forged, len(raw))
        except CacheError as error:
            assert re.fullmatch(r"[^\n]+", str(error))
        else:
            regions = [place.region for place in places.values()]
            assert all(at >= 512 and at + size <= len(raw) for at, size in regions)
        patch(forged, {where: raw[where] for where in spots})
    assert forged.read_bytes() == raw


def patch(path: Path, changes: dict[int, int]) -> None:
    """Overwrite single bytes in place: recreating the file each time takes 30 ms."""
    with path.open("r+b") as file:
        for where, value in changes.items():
            file.seek(where)
            file.write(bytes([value]))
