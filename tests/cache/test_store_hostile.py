"""Files that are not caches, incomplete, or of another version: one line that says which."""

import os
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from cache import store
from cache.container import checksums, userblock
from cache.container.contents import decode_paths
from cache.container.disk import partial_of
from cache.table import CacheError
from tests.cache import caches
from tests.cache.forging import refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"<!DOCTYPE html><html>sorry</html>", "is HTML or XML, not a cache; was a web page saved"),
        (b"\xef\xbb\xbf\r\n  <HTML>" + b" " * 600, "is HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS pointer"),
        (b"PK\x03\x04" + bytes(600), "cache import"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5, but not a cache of this project"),
        (bytes(5000), "starts with zeros"),
        (b"\x93NUMPY\x01\x00" * 100, r"not a cache: it begins with b'\\x93NUMPY"),
        (userblock.MAGIC, "truncated to 16 bytes"),
        (userblock.MAGIC[:3], "truncated to 3 bytes"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, message):
    path = tmp_path / "a.h5"
    path.write_bytes(content)
    refused(path, message)


def test_missing_folder_partial_unreadable(tmp_path):
    path = tmp_path / "a.h5"
    refused(path, "no such file; create it with `./run.sh extract`")
    refused(tmp_path, "is a folder")
    with caches.begin(path, caches.draw()):
        pass
    refused(path, r"a\.h5\.partial is unfinished, the same command resumes it")
    readers = (store.read_table, store.read_paths, store.verify)
    refused(partial_of(path), "is incomplete.*`./run.sh extract`", readers)
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", "not a regular file")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "denied")))
        refused(partial_of(path), "cannot be read: denied")


def test_truncated_anywhere_or_longer(tmp_path, sound):
    raw, path = sound.read_bytes(), tmp_path / "a.h5"
    for length in (1, 15, 16, 100, 511, 512, 513, 520, 2048, 4096, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:length])
        refused(path, "was truncated")
    path.write_bytes(raw + b"\0")
    refused(path, "has grown")


def test_other_schema_versions(tmp_path, sound):
    for version, words in ((2, "newer than the 1 .* update the code"), (0, "older")):
        raw = bytearray(sound.read_bytes())
        raw[16:20] = version.to_bytes(4, "little")
        raw[508:512] = zlib.crc32(raw[:508]).to_bytes(4, "little")
        (tmp_path / "a.h5").write_bytes(raw)
        refused(tmp_path / "a.h5", f"schema version {version}, {words}")


def test_a_user_block_that_contradicts_itself(tmp_path, sound):
    forged = tmp_path / "a.h5"
    with userblock.open_cache(sound) as (_, block):
        regions = block.regions
    at = regions["features"]
    for spoiled in (
        {"features": (at.offset, at.nbytes + (1 << 40))},
        {"features": (0, at.nbytes)},
        {"features": (1 << 63, at.nbytes)},
        {"features": (at.offset, 0)},
        {"features": (at.offset, at.nbytes - 1)},
        {"paths": regions["row_status"]},
        {"row_status": (0, 0)},
        {"block_crc32": (regions["block_crc32"].offset, 4)},
    ):
        raw = userblock.pack(replace(block, regions=regions | spoiled))
        forged.write_bytes(raw + sound.read_bytes()[512:])
        refused(forged, "are inconsistent")
    there = regions["block_crc32"]
    moved = regions | {"block_crc32": userblock.Region(there.offset + 8, there.nbytes)}
    with sound.open("rb") as file:
        static = checksums.static_crc32(file, moved.values(), block.file_bytes)
        rows = checksums.rows_crc32(file, moved)
    raw = userblock.pack(replace(block, regions=moved, static_crc32=static, rows_crc32=rows))
    forged.write_bytes(raw + sound.read_bytes()[512:])
    refused(forged, "disagree on block_crc32", (store.read_table, store.info))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a\0/etc/passwd\0", "absolute"),
        (b"../a\0b\0", "absolute"),
        (b"a/../../b\0c\0", "absolute"),
        (b"a/..\0c\0", "absolute"),
        (b"a\0..\0", "absolute"),
        (b"a\0", "do not match its"),
        (b"a\0b\0c\0", "do not match its"),
        (b"a\0b\0c", "do not match its"),
    ],
)
def test_paths_that_leave_their_folder(raw, message):
    with pytest.raises(CacheError, match=message):
        decode_paths(raw, 2, "x.h5")
    assert decode_paths(b"..a/b..\0c/...d\0", 2, "x.h5") == ["..a/b..", "c/...d"]


def test_a_deep_identity_cannot_be_compared_but_is_refused():
    deep: dict = {}
    for _ in range(2000):
        deep = {"a": deep}
    with pytest.raises(CacheError, match="nested"):
        store.compare_identity({"b": 1}, deep, "x.h5")
