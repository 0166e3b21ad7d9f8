"""Downloads against a server on this machine that drops, lies and changes; zips that attack."""

import contextlib
import dataclasses
import http.server
import io
import random
import re
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from pipeline import download as download_module
from pipeline import unpack as unpack_module
from pipeline.domains import KNOWN, DataError
from pipeline.download import download, download_dataset
from pipeline.transfer import Patience
from pipeline.unpack import unpack

ROOT = Path(__file__).resolve().parent.parent
HASTY = Patience(seconds=10.0, bytes_per_second=1000.0, retries=4, pause=0.01)
DATA = random.Random(0).randbytes(300_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` at any path, in the ways the tests set here."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag, self.modified = DATA, '"one"', None
        self.ranges, self.heeds_if_range = True, True
        self.drops = []  # bytes of body after which the next connections end
        self.declared = None  # a Content-Length other than the true one; "none" for no such header
        self.shifts = []  # how far off the next answers to a Range begin
        self.status, self.kind = 200, "application/zip"
        self.block, self.pause = 1 << 16, 0.0
        self.asked = []  # (Range, If-Range) of each request

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/PACS.zip"

    def handle_error(self, request, client_address):
        pass  # clients that hang up are what these tests are about


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        s = self.server
        span, condition = self.headers["Range"], self.headers["If-Range"]
        s.asked.append((span, condition))
        start, body = 0, s.content
        if span and s.ranges and (not s.heeds_if_range or condition in (s.etag, s.modified)):
            start = int(re.fullmatch(r"bytes=(\d+)-", span)[1])
            start += s.shifts.pop(0) if s.shifts else 0
            body = body[start:]
            self.send_response(206 if body else 416)
            self.send_header(
                "Content-Range", f"bytes {start}-{len(s.content) - 1}/{len(s.content)}"
            )
        else:
            self.send_response(s.status)
        if s.declared != "none":
            self.send_header("Content-Length", str(s.declared or len(body)))
        self.send_header("Content-Type", s.kind)
        for name, value in (("ETag", s.etag), ("Last-Modified", s.modified)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        end = s.drops.pop(0) if s.drops else len(body)
        for at in range(0, min(end, len(body)), s.block):
            self.wfile.write(body[at : min(at + s.block, end)])
            self.wfile.flush()
            time.sleep(s.pause)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Said(list):
    def __call__(self, line):
        assert "\n" not in line
        self.append(line)


def left(folder):
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def refused(url, target, *words):
    with pytest.raises(DataError) as caught:
        download(url, target, Said(), HASTY)
    message = str(caught.value)
    assert url in message and "\n" not in message, message
    assert all(word in message for word in words), message
    assert not target.exists()


def test_a_file_arrives_and_is_not_fetched_again(server, tmp_path):
    target = tmp_path / "deep" / "PACS.zip"
    assert download(server.url, target, Said(), HASTY) == target
    assert target.read_bytes() == DATA and left(target.parent) == ["PACS.zip"]
    said = Said()
    download(server.url, target, said, HASTY)
    assert len(server.asked) == 1 and "already" in said[0]


@pytest.mark.parametrize("size", [1, 262_143, 262_144, 262_145])
def test_any_size_arrives(server, tmp_path, size):
    server.content = DATA[:size]
    download(server.url, tmp_path / "f", Said(), HASTY)
    assert (tmp_path / "f").read_bytes() == DATA[:size]


@pytest.mark.parametrize("validator", ["etag", "modified"])
def test_dropped_connections_go_on_where_they_ended(server, tmp_path, validator):
    if validator == "modified":
        server.etag, server.modified = 'W/"weak"', "Wed, 21 Oct 2015 07:28:00 GMT"
    server.drops = [100_000, 1, 99_999]
    said = Said()
    download(server.url, tmp_path / "f", said, HASTY)
    assert (tmp_path / "f").read_bytes() == DATA
    condition = server.etag if validator == "etag" else server.modified
    starts = (100_000, 100_001, 200_000)
    assert server.asked == [(None, None)] + [(f"bytes={n}-", condition) for n in starts]
    assert len(said) == 3


@pytest.mark.parametrize("without", ["ranges", "validators"])
def test_a_server_that_cannot_go_on_starts_afresh(server, tmp_path, without):
    if without == "ranges":
        server.ranges = False
    else:
        server.etag = None
    server.drops = [100_000, 200_000]
    download(server.url, tmp_path / "f", Said(), HASTY)
    assert (tmp_path / "f").read_bytes() == DATA and len(server.asked) == 3


def test_a_later_call_goes_on(server, tmp_path):
    server.drops = [50_000] * 5
    refused(server.url, tmp_path / "f", "ended after 250,000 of 300,000 bytes", "5 attempts", "by")
    assert left(tmp_path) == ["f.part", "f.part.json"]
    download(server.url, tmp_path / "f", Said(), HASTY)
    assert (tmp_path / "f").read_bytes() == DATA and server.asked[-1][0] == "bytes=250000-"
    assert left(tmp_path) == ["f"]


def test_progress_renews_patience(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "_PROGRESS", 10_000)
    server.drops = [20_000] * 14
    download(server.url, tmp_path / "f", Said(), HASTY)
    assert (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize(
    ("change", "heeds"),
    [("etag", True), ("etag", False), ("modified", True), ("modified", False), ("length", False)],
)
def test_a_changed_file_starts_afresh(server, tmp_path, change, heeds):
    if change == "modified":
        server.etag, server.modified = None, "Wed, 21 Oct 2015 07:28:00 GMT"
    server.drops = [100_000] + [0] * 4
    refused(server.url, tmp_path / "f", "ended after 100,000")
    new = random.Random(1).randbytes(len(DATA) + (change == "length"))
    server.content, server.heeds_if_range = new, heeds
    if change == "etag":
        server.etag = '"two"'
    elif change == "modified":
        server.modified = "Thu, 22 Oct 2015 07:28:00 GMT"
    download(server.url, tmp_path / "f", Said(), HASTY)
    assert (tmp_path / "f").read_bytes() == new


def test_an_answer_to_another_range_is_not_used(server, tmp_path):
    server.drops, server.shifts = [100_000], [-1]
    download(server.url, tmp_path / "f", Said(), HASTY)
    assert (tmp_path / "f").read_bytes() == DATA and server.asked[-1] == (None, None)


def test_a_part_from_another_address_or_without_a_note_is_not_used(server, tmp_path):
    (tmp_path / "f.part").write_bytes(b"x" * 1000)
    download(server.url, tmp_path / "f", Said(), HASTY)
    assert (tmp_path / "f").read_bytes() == DATA
    server.drops = [100_000] + [0] * 4
    refused(server.url, tmp_path / "g", "ended after")
    server.content = random.Random(1).randbytes(len(DATA))
    download(server.url + "?other", tmp_path / "g", Said(), HASTY)
    assert (tmp_path / "g").read_bytes() == server.content
    for torn in ("", "{", "[]", '{"url": 1}'):
        (tmp_path / "h").unlink(missing_ok=True)
        (tmp_path / "h.part").write_bytes(b"x" * 1000)
        (tmp_path / "h.part.json").write_text(torn)
        download(server.url, tmp_path / "h", Said(), HASTY)
        assert (tmp_path / "h").read_bytes() == server.content


def test_a_whole_part_is_not_fetched_again(server, tmp_path):
    server.drops = [100_000] + [0] * 4
    refused(server.url, tmp_path / "f", "ended after")
    (tmp_path / "f.part").write_bytes(DATA)
    asked = len(server.asked)
    download(server.url, tmp_path / "f", Said(), HASTY)
    assert len(server.asked) == asked and (tmp_path / "f").read_bytes() == DATA


def test_a_part_longer_than_the_file_starts_afresh(server, tmp_path):
    server.drops = [100_000] + [0] * 4
    refused(server.url, tmp_path / "f", "ended after")
    (tmp_path / "f.part").write_bytes(DATA + b"more")
    download(server.url, tmp_path / "f", Said(), HASTY)
    assert (tmp_path / "f").read_bytes() == DATA


def test_without_a_length_the_end_is_the_end(server, tmp_path):
    server.declared = "none"
    download(server.url, tmp_path / "f", Said(), HASTY)
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_length_that_never_comes_is_told(server, tmp_path):
    server.declared, server.ranges = 300_001, False
    refused(server.url, tmp_path / "f", "ended after 300,000 of 300,001 bytes", "5 attempts")


def test_refusals_come_at_once(server, tmp_path):
    for status, words in ((404, "404 Not Found"), (403, "403 Forbidden"), (409, "409 Conflict")):
        server.status = status
        refused(server.url, tmp_path / "f", words, "--url", str(tmp_path / "f"))
    assert len(server.asked) == 3


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.status = 503
    refused(server.url, tmp_path / "f", "503 Service Unavailable", "5 attempts")
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("text/html; charset=utf-8", b"<p>Sign in"),
        ("application/zip", b"\xef\xbb\xbf\n <!DOCTYPE html><html>Sign in</html>"),
    ],
)
def test_a_web_page_is_no_archive(server, tmp_path, kind, content):
    server.kind, server.content = kind, content
    refused(server.url, tmp_path / "f", "is a web page", "put it at")
    assert "f.part" not in left(tmp_path)


@pytest.mark.parametrize(("block", "pause"), [(1, 0.02), (300_000, 0.0)])
def test_a_stalling_server_is_given_up_in_time(server, tmp_path, block, pause):
    server.block, server.pause = block, pause
    if not pause:  # says nothing more, does not hang up
        server.declared, server.pause, server.ranges = 300_001, 0.6, False
    start = time.monotonic()
    with pytest.raises(DataError, match="stalled|timed out"):
        download(server.url, tmp_path / "f", Said(), Patience(0.2, 1000.0, 1, 0.01))
    assert time.monotonic() - start < 10.0  # all of it would take 6,000 s


def test_no_network_is_told_at_once(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/PACS.zip"
    refused(url, tmp_path / "f", "cannot be reached", f"put it at {tmp_path / 'f'}")
    patient = Patience(pause=60.0)
    with pytest.raises(DataError, match="cannot be reached"):
        download(url, tmp_path / "f", Said(), patient)  # no pause: nothing to wait for


@pytest.mark.parametrize(
    "url",
    ["file:///etc/hostname", "ftp://a/b", "PACS.zip", "http://", "http://a b/c", "http://a:b/c"],
)
def test_what_is_no_address(tmp_path, url):
    refused(url, tmp_path / "f")


def test_a_second_download_of_one_file_is_refused(server, tmp_path):
    server.block, server.pause = 30_000, 0.05
    thread = threading.Thread(target=download, args=(server.url, tmp_path / "f", Said(), HASTY))
    thread.start()
    while not (tmp_path / "f.part").exists():
        time.sleep(0.005)
    with pytest.raises(DataError, match="another process"):
        download(server.url, tmp_path / "f", Said(), HASTY)
    thread.join()
    assert (tmp_path / "f").read_bytes() == DATA


def test_a_full_disk_is_told(server, tmp_path, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    refused(server.url, tmp_path / "f", "300,000 bytes", "1,000 are free")


def test_a_place_that_cannot_be_written_is_told(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        download(server.url, tmp_path / "file" / "f", Said(), HASTY)


def start_killable(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


def kill(process):
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()


def test_killed_downloads_go_on_to_the_same_bytes(server, tmp_path):
    server.content = random.Random(2).randbytes(3_000_000)
    server.block, server.pause = 20_000, 0.002
    code = (
        "import sys; from pathlib import Path; from pipeline.download import download\n"
        "download(sys.argv[1], Path(sys.argv[2]), print)"
    )
    part = tmp_path / "f.part"
    draw = random.Random(3)
    reached = 0
    for _ in range(6):
        process = start_killable(code, server.url, tmp_path / "f")
        goal = reached + draw.randrange(1, 450_000)
        while process.poll() is None and not (part.exists() and part.stat().st_size >= goal):
            time.sleep(0.001)
        kill(process)
        size = part.stat().st_size
        assert size >= reached and part.read_bytes() == server.content[:size]
        reached = size
    server.pause = 0.0
    download(server.url, tmp_path / "f", Said(), HASTY)
    assert (tmp_path / "f").read_bytes() == server.content
    starts = [int(re.search(r"\d+", span)[0]) if span else 0 for span, _ in server.asked]
    assert starts == sorted(starts) and starts[-1] == reached > 0


# Archives.


def zipped(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            info = zipfile.ZipInfo("x")
            # The constructor would mend some of the names.
            info.filename, info.compress_type = name, compression
            archive.writestr(info, content)
    return path


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
    assert_refused(tmp_path / "a.zip", tmp_path / "out", "no sound zip")


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
    words = "is encrypted" if damage == "encrypted" else "no sound zip"
    assert_refused(archive, tmp_path / "out", words)


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
        "import sys; from pathlib import Path; from pipeline.unpack import unpack\n"
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


# Data sets.


@pytest.fixture(autouse=True)
def small_pacs(monkeypatch):
    """PACS with a twentieth of its images; the real counts are tested with the counts."""
    known = KNOWN["pacs"]
    counts = {key: number // 20 for key, number in known.counts.items()}
    rows = {d: (sum(n for (e, _), n in counts.items() if e == d),) for d in known.domain_names}
    small = dataclasses.replace(known, counts=counts, rows=rows)
    monkeypatch.setitem(KNOWN, "pacs", small)
    return sum(counts.values())


def pacs_zip(top="PACS/kfold/", without=(), extra=()):
    known = KNOWN["pacs"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for (domain, name), number in known.counts.items():
            for i in range(number):
                path = f"{domain}/{name}/pic_{i:03d}.jpg"
                if path not in without:
                    archive.writestr(top + path, b"")
        for path in extra:
            archive.writestr(top + path, b"")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("top", "place"), [("", ""), ("PACS/kfold/", "kfold"), ("data/pacs/", "data/pacs")]
)
def test_pacs_is_fetched_once_and_counted(server, tmp_path, small_pacs, top, place):
    server.content = pacs_zip(top, extra=("Thumbs.db",))
    server.drops = [10_000] if not top else []
    said = Said()
    found = download_dataset("PACS", tmp_path / "data", server.url, said)
    assert found == tmp_path / "data" / "PACS" / place
    assert f"PACS: {small_pacs} images, 4 domains, 7 classes, as published" in said
    assert said[-1] == f"next: ./run.sh extract --dataset pacs --root {tmp_path / 'data'}"
    asked = len(server.asked)
    again = Said()
    assert download_dataset("pacs", tmp_path / "data", server.url, again) == found
    assert len(server.asked) == asked and "nothing is downloaded" in again[0]
    assert again[-1] == said[-1]


def test_the_default_root_needs_no_word(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server.content = pacs_zip()
    said = Said()
    download_dataset("pacs", Path("data"), server.url, said)
    assert said[-1] == "next: ./run.sh extract --dataset pacs"


def test_wrong_counts_are_said_and_the_files_kept(server, tmp_path):
    server.content = pacs_zip(
        without=("photo/dog/pic_007.jpg",), extra=("sketch/house/more.png", "photo/cat/1.jpg")
    )
    said = Said()
    for _ in range(2):
        with pytest.raises(DataError, match="in 3 counts.*the files are kept"):
            download_dataset("pacs", tmp_path, server.url, said)
        assert "photo/dog: 8 images, 1 short of the 9 published" in said
        assert "sketch/house: 5 images, 1 more than the 4 published" in said
        assert "cat: this is no class of PACS (1 images)" in said
    assert (tmp_path / "PACS/kfold/photo/cat/1.jpg").exists() and len(server.asked) == 1


def test_an_archive_of_something_else_is_told(server, tmp_path):
    server.content = zipped(tmp_path / "other.zip", [("mnist/0/1.png", b"")]).read_bytes()
    with pytest.raises(DataError, match="holds no PACS.*the files are kept"):
        download_dataset("pacs", tmp_path / "data", server.url, Said())


def test_a_folder_in_the_way_is_told_before_anything_is_fetched(server, tmp_path):
    (tmp_path / "PACS").mkdir()
    (tmp_path / "PACS" / "notes.txt").touch()
    with pytest.raises(DataError, match="is there already and not empty"):
        download_dataset("pacs", tmp_path, server.url, Said())
    assert server.asked == []


def test_an_archive_put_there_by_hand_needs_no_address(tmp_path):
    with pytest.raises(DataError, match=r"no address is known for domain_net\.zip.*--url"):
        download_dataset("DomainNet", tmp_path, None, Said())
    (tmp_path / "PACS.zip").write_bytes(pacs_zip())
    download_dataset("pacs", tmp_path, "http://127.0.0.1:9/none", Said())
    assert (tmp_path / "PACS" / "kfold" / "sketch").is_dir()
