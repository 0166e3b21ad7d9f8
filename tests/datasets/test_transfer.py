"""Downloads that drop, stall, change and are killed end with the right bytes or one clear line."""

import random
import re
import socket
import threading
import time

import pytest

from pipeline.errors import DataError
from pipeline.transfer import download as download_module
from pipeline.transfer.connection import Patience
from pipeline.transfer.download import download
from tests.datasets.loopback import DATA, HASTY, kill, left, start_killable
from tests.extraction.extraction import Said


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
        refused(server.url, tmp_path / "f", words, "check the address", str(tmp_path / "f"))
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


def test_killed_downloads_go_on_to_the_same_bytes(server, tmp_path):
    server.content = random.Random(2).randbytes(3_000_000)
    server.block, server.pause = 20_000, 0.002
    code = (
        "import sys; from pathlib import Path; from pipeline.transfer.download import download\n"
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
