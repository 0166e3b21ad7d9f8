"""Archives that attack, lie or are broken leave nothing; sound ones appear whole."""

import contextlib
import random
import stat
import struct
import time
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.transfer import unpack as unpack_module
from pipeline.transfer.unpack import check_archive, unpack
from tests.datasets.loopback import DATA, kill, left, start_killable, zipped


def assert_refused(archive, folder, words):
    before = sorted(p for p in folder.parent.rglob("*") if not p.name.endswith(".lock"))
    with pytest.raises(DataError) as caught:
        unpack(archive, folder)
    after = sorted(p for p in folder.parent.rglob("*") if not p.name.endswith(".lock"))
    message = str(caught.value)
    assert before == after, "something was left"
    assert words in message and str(archive) in message and "\n" not in message, message


def test_an_archive_is_unpacked_as_it_is(tmp_path):
    members = {"photo/dog/1.jpg": b"1" * 70_000, "photo/dog/2.jpg": b"", "read me.txt": b"x"}
    zipped(tmp_path / "a.zip", [("photo/", b""), ("empty/", b""), *members.items()], 8)
    unpack(tmp_path / "a.zip", tmp_path / "deep" / "out")
    out = tmp_path / "deep" / "out"
    files = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
    assert {name: p.read_bytes() for name, p in files.items()} == members
    assert (out / "empty").is_dir() and left(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize(
    "name",
    [
        "/etc/x", "../x", "a/../../x", "a/..", "C:/x", "c:x", "a/b:stream", "..\\x", "a\\..\\..\\x",
        "\\\\host\\x", "//host/x", "a//b", "./a", "a/./b", "a/.. /x", "a/.../x", "a\0.jpg",
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    fine = "n" * len(name)
    archive = zipped(tmp_path / "a.zip", [("ok.jpg", b"1"), (fine, b"2")])
    archive.write_bytes(archive.read_bytes().replace(fine.encode(), name.encode()))
    assert_refused(archive, tmp_path / "out", "its member")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(tmp_path, kind):
    info = zipfile.ZipInfo("photo")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/tmp")
        archive.writestr("photo/x.jpg", "through the link")
    assert_refused(tmp_path / "a.zip", tmp_path / "out", "is a link or a device")


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    for first, second in (("a/1.jpg", "a/1.jpg"), ("a", "a/")):
        with (
            pytest.warns(UserWarning, match="Duplicate")
            if first == second
            else contextlib.nullcontext()
        ):
            zipped(tmp_path / "a.zip", [(first, b"1"), (second, b"")])
        assert_refused(tmp_path / "a.zip", tmp_path / "out", "is there twice")


def test_a_file_that_is_a_folder_too_is_refused(tmp_path):
    zipped(tmp_path / "a.zip", [("a", b"1"), ("a/b", b"2")])
    assert_refused(tmp_path / "a.zip", tmp_path / "out", "cannot be unpacked")


def test_a_bomb_by_its_declared_sizes_is_refused(tmp_path):
    zipped(tmp_path / "a.zip", [("0.bin", bytes(20_000_000))], zipfile.ZIP_DEFLATED)
    assert (tmp_path / "a.zip").stat().st_size < 50_000
    assert_refused(tmp_path / "a.zip", tmp_path / "out", "over 100 times")


def patched(archive, name, declared):
    """The archive with another uncompressed size of member `name` in both of its headers."""
    data = bytearray(archive.read_bytes())
    at = data.index(b"PK\x03\x04")
    struct.pack_into("<I", data, at + 22, declared)
    at = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, at + 24, declared)
    archive.write_bytes(data)


@pytest.mark.parametrize("declared", [10, 20_000_001])
def test_sizes_that_lie_are_refused(tmp_path, declared):
    """A bomb that declares little, and a member that is shorter than it declares."""
    content = bytes(20_000_000) if declared == 10 else random.Random(0).randbytes(1_000_000)
    zipped(tmp_path / "a.zip", [("0.bin", content)], zipfile.ZIP_DEFLATED)
    patched(tmp_path / "a.zip", "0.bin", declared)
    assert_refused(tmp_path / "a.zip", tmp_path / "out", "not a valid zip")


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "html", "empty", "encrypted", "method", "stream"]
)
def test_damaged_archives_are_refused(tmp_path, damage):
    archive = zipped(tmp_path / "a.zip", [("a/1.jpg", DATA), ("a/2.jpg", DATA)])
    data = bytearray(archive.read_bytes())
    if damage == "flip":
        data[150_000] ^= 1
    elif damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "html":
        data = b"<html>not found</html>"
    elif damage == "empty":
        data = b""
    elif damage == "stream":
        zipped(archive, [("1.txt", bytes(1000))], zipfile.ZIP_DEFLATED)
        data = bytearray(archive.read_bytes())
        data[30 + len("1.txt")] = 0b111  # a kind of block that deflate does not have
    elif damage == "encrypted":
        data[data.index(b"PK\x01\x02") + 8] |= 1
    elif damage == "method":
        data[data.index(b"PK\x01\x02") + 10] = 97
    archive.write_bytes(data)
    words = "is encrypted" if damage == "encrypted" else "not a valid zip"
    assert_refused(archive, tmp_path / "out", words)


@settings(max_examples=200)
@given(data=st.data())
def test_any_damage_is_refused_or_harmless(tmp_path_factory, data):
    """Bytes changed, cut and repeated anywhere: DataError and nothing left, or the members."""
    folder = tmp_path_factory.mktemp("zip")
    kind = data.draw(st.sampled_from([0, 8, 12, 14]))
    members = [("a/1.txt", b"1" * 300), ("a/2.txt", DATA[:200])]
    content = bytearray(zipped(folder / "a.zip", members, kind).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(st.binary(min_size=1, max_size=4))
        content[at : at + data.draw(st.sampled_from([0, len(new), 50]))] = new
    (folder / "a.zip").write_bytes(content)
    found = []
    for read in (check_archive, lambda archive: unpack(archive, folder / "out")):
        try:
            read(folder / "a.zip")
            found.append(None)
        except DataError as error:
            assert str(error).isprintable()
            found.append(str(error))
            assert left(folder) == ["a.zip"]
    assert found[0] == found[1] or None not in found
    if found[1] is None:
        written = [p.read_bytes() for p in (folder / "out").rglob("*") if p.is_file()]
        assert all(one in (members[0][1], members[1][1], b"") for one in written)


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack_module, "MAX_MEMBERS", 3)
    zipped(tmp_path / "a.zip", [(f"{i}.jpg", b"") for i in range(4)])
    assert_refused(tmp_path / "a.zip", tmp_path / "out", "4 members")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    zipped(tmp_path / "a.zip", [("1.jpg", b"new")])
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "a.zip", tmp_path / "out")
    (tmp_path / "out" / "1.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="is there already"):
        unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out" / "1.jpg").read_bytes() == b"mine"


def test_a_killed_unpacking_leaves_no_half_folder(tmp_path):
    zipped(tmp_path / "a.zip", [(f"photo/dog/{i}.jpg", b"x" * 100) for i in range(10_000)])
    code = (
        "import sys; from pathlib import Path; from pipeline.transfer.unpack import unpack\n"
        "unpack(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    process = start_killable(code, tmp_path / "a.zip", tmp_path / "out")
    half = tmp_path / "out.unpacking" / "photo" / "dog" / "200.jpg"
    while process.poll() is None and not half.exists():
        time.sleep(0.001)
    kill(process)
    assert half.exists() and not (tmp_path / "out").exists()
    zipped(tmp_path / "b.zip", [("photo/dog/1.jpg", b"x")])
    unpack(tmp_path / "b.zip", tmp_path / "out")
    assert left(tmp_path) == ["a.zip", "b.zip", "out"]
    assert [p.name for p in (tmp_path / "out").rglob("*.jpg")] == ["1.jpg"]
