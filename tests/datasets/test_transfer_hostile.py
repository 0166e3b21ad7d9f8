"""Servers that lie about a download: nothing of theirs is published, no disk filled, no wait."""

import gzip
import hashlib
import io
import random
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
import zipfile

import pytest

from pipeline.errors import DataError
from pipeline.transfer.connection import Patience
from pipeline.transfer.download import download
from tests.datasets.loopback import DATA, HASTY, ROOT, chunk, head, left, replying
from tests.extraction.extraction import Said
from tests.flower import certificates

QUICK = Patience(seconds=0.4, bytes_per_second=1000.0, retries=1, pause=0.01)
ROOM = 3_000_000  # bytes that are free on the disk, over those that are to stay free


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def full(monkeypatch):
    """A disk with ROOM bytes left but for what a download keeps free."""
    from pipeline.transfer.connection import _RESERVE

    usage = shutil.disk_usage("/")._replace(free=ROOM + _RESERVE)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)


def a_zip(seed, members=40):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for n in range(members):
            archive.writestr(f"photo/dog/{n}.jpg", random.Random(f"{seed} {n}").randbytes(5_000))
    return buffer.getvalue()


def refused(url, target, words, patience=HASTY, **more):
    with pytest.raises(DataError) as caught:
        download(url, target, Said(), patience, **more)
    message = str(caught.value)
    assert re.search(words, message) and url in message and message.isprintable(), message
    assert not target.exists()


def forever(part):
    while True:
        yield part


def endless_chunks(number, request):
    yield head(Transfer_Encoding="chunked")
    yield from forever(chunk(b"x" * 100_000))


def endless_to_the_end(number, request):
    yield head()
    yield from forever(b"x" * 100_000)


def endless_by_length(number, request):
    yield head(Content_Length=10**15)
    yield from forever(b"x" * 100_000)


@pytest.mark.parametrize("reply", [endless_chunks, endless_to_the_end, endless_by_length])
def test_an_endless_body_ends(tmp_path, full, reply):
    with replying(reply) as server:
        refused(server.url, tmp_path / "f", "free|too|over")
        assert server.sent < 20 * ROOM  # sockets buffer some of it
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 10_000


@pytest.mark.parametrize("reply", [endless_chunks, endless_to_the_end, endless_by_length])
def test_a_file_is_no_longer_than_it_may_be(tmp_path, reply):
    with replying(reply) as server:
        refused(server.url, tmp_path / "f", "over the 500,000", most=500_000)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 10_000


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 T", "308 P"])
@pytest.mark.parametrize(
    "place", ["ftp://127.0.0.1/x", "file:///etc/hostname", "data:,x", "gopher://a/b", "\x1b[2J:"]
)
def test_redirects_to_other_than_the_web_are_refused(tmp_path, status, place):
    with replying(lambda *_: [head(status, Location=place, Content_Length=0)]) as server:
        refused(server.url, tmp_path / "f", "redirects|40|30")
        assert len(server.asked) < 10


def test_http_may_lead_to_http(tmp_path):
    with replying(lambda *_: [head(Content_Length=len(DATA)), DATA]) as there:
        with replying(lambda *_: [head("302 Found", Location=there.url)]) as here:
            download(here.url, tmp_path / "f", Said(), HASTY)
    assert (tmp_path / "f").read_bytes() == DATA


def test_https_never_leads_to_http(tmp_path, monkeypatch):
    folder = certificates.make(tmp_path / "keys", sites=0)
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "ca.crt"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    sound = [head(Content_Length=len(DATA)), DATA]
    with replying(lambda *_: sound) as plain, replying(lambda *_: sound, context) as safe:
        for place, allowed in ((safe.url, True), (plain.url, False)):
            redirect = [head("302 Found", Location=place)]
            with replying(lambda *_, r=redirect: r, context) as first:
                target = tmp_path / f"from-{allowed}"
                if allowed:
                    download(first.url, target, Said(), HASTY)
                    assert target.read_bytes() == DATA
                else:
                    refused(first.url, target, "redirects to")
        up_and_down = [head("302 Found", Location=plain.url)]
        with replying(lambda *_: up_and_down, context) as middle:
            with replying(lambda *_: [head("302 Found", Location=middle.url)]) as first:
                with pytest.raises(DataError, match="redirects to"):
                    download(first.url, tmp_path / "down", Said(), HASTY)
        assert plain.asked == []


@pytest.mark.parametrize("status", [404, 503, 204, 200])
def test_what_a_server_says_cannot_steer_a_terminal(tmp_path, status):
    line = f"HTTP/1.1 {status} no\x1b[2J\x9b2J way{'x' * 5_000}\r\n\r\n".encode("latin-1")
    with replying(lambda *_: [line]) as server:
        refused(server.url, tmp_path / "f", "no|empty", QUICK)
    with replying(lambda *_: [b"\x1b]0;title\x07 HTTP/1.1\r\n\r\n"]) as server:
        refused(server.url, tmp_path / "f", "no answer", QUICK)


EMPTY = {
    "length 0": [head(Content_Length=0)],
    "no length": [head()],
    "chunked": [head(Transfer_Encoding="chunked"), b"0\r\n\r\n"],
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_body_is_no_file(tmp_path, name):
    with replying(lambda *_: EMPTY[name]) as server:
        refused(server.url, tmp_path / "f", "empty")
    assert "f.part" not in left(tmp_path)


FRAMED = {
    "two lengths": {"Content_Length": [len(DATA), 10]},
    "two lengths, the short first": {"Content_Length": [10, len(DATA)]},
    "a list of lengths": {"Content_Length": f"{len(DATA)}, 10"},
    "length and chunks": {"Content_Length": len(DATA), "Transfer_Encoding": "chunked"},
    "a negative length": {"Content_Length": -5},
    "a signed length": {"Content_Length": f"+{len(DATA)}"},
    "no number": {"Content_Length": "much"},
    "another coding of chunks": {"Transfer_Encoding": "gzip, chunked"},
    "gzip": {"Content_Encoding": "gzip", "Content_Length": len(DATA)},
    "x-gzip": {"Content_Encoding": "X-GZIP"},
    "deflate": {"Content_Encoding": "deflate"},
    "br": {"Content_Encoding": "br"},
}


@pytest.mark.parametrize("name", FRAMED)
def test_a_body_whose_bytes_are_in_doubt_is_refused(tmp_path, name):
    body = gzip.compress(DATA) if "gzip" in name.lower() else DATA
    with replying(lambda *_: [head(**FRAMED[name]), body]) as server:
        refused(server.url, tmp_path / "f", "length|identity")
    assert "f.part" not in left(tmp_path)


def test_identity_is_asked_for_and_taken(tmp_path):
    headers = {"Content_Encoding": "identity", "Content_Length": len(DATA)}
    with replying(lambda *_: [head(**headers), DATA]) as server:
        download(server.url, tmp_path / "f", Said(), HASTY)
        assert "accept-encoding: identity" in server.asked[0].lower()
    assert (tmp_path / "f").read_bytes() == DATA


def changing(old, new, at, **validators):
    """A server whose file changes after the first connection, and which vouches that it did not."""

    def reply(number, request):
        content = new if number else old
        span = re.search(r"Range: bytes=(\d+)-", request)
        start = int(span[1]) if span else 0
        length = {"Content_Length": len(content) - start}
        if span:
            where = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return [head("206 Part", Content_Range=where, **length, **validators), content[start:]]
        cut = at if number == 0 else len(content)
        return [head(**length, **validators), content[:cut]]

    return reply


@pytest.mark.parametrize("at", [1, 70, 5_000, 100_001])
@pytest.mark.parametrize(
    "validators", [{"ETag": '"one"'}, {"Last_Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}]
)
def test_a_file_that_changed_under_its_validator_is_never_a_mixture(tmp_path, at, validators):
    old, new = a_zip("old"), a_zip("new")
    assert len(old) == len(new)
    with replying(changing(old, new, at, **validators)) as server:
        download(server.url, tmp_path / "f", Said(), HASTY)
    assert (tmp_path / "f").read_bytes() == new
    if at > 100:  # and of any file whose digest is known
        rest = random.Random(1).randbytes(len(DATA))
        known = hashlib.sha256(rest).hexdigest()
        with replying(changing(DATA, rest, at, **validators)) as server:
            download(server.url, tmp_path / "g", Said(), HASTY, sha256=known)
        assert (tmp_path / "g").read_bytes() == rest


def test_a_file_of_another_digest_is_refused_at_once(tmp_path):
    with replying(lambda *_: [head(Content_Length=len(DATA)), DATA]) as server:
        refused(server.url, tmp_path / "f", "SHA-256", sha256="0" * 64)
        assert len(server.asked) == 1


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_archive_is_never_published(tmp_path, damage):
    content = bytearray(a_zip("x"))
    if damage == "flip":
        content[100_000] ^= 1
    else:
        del content[150_000:]
    with replying(lambda *_: [head(), bytes(content)]) as server:
        refused(server.url, tmp_path / "f", "not a valid zip")
        assert len(server.asked) == 1


WEAK = {
    "a weak ETag": {"ETag": 'W/"one"'},
    "nothing": {},
    "young": {"Last_Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
              "Date": "Wed, 21 Oct 2015 07:28:30 GMT"},
    "without a date": {"Last_Modified": "yesterday"},
}  # fmt: skip


@pytest.mark.parametrize("name", WEAK)
def test_without_a_strong_validator_nothing_is_resumed(tmp_path, name):
    with replying(changing(DATA, DATA, 1000, **WEAK[name])) as server:
        download(server.url, tmp_path / "f", Said(), HASTY)
        assert len(server.asked) == 2 and not any("Range" in one for one in server.asked)
    assert (tmp_path / "f").read_bytes() == DATA


def trickle(start, part, pause=0.1):
    def reply(number, request):
        yield start
        while True:
            time.sleep(pause)
            yield part

    return reply


def silent(number, request):
    time.sleep(30)
    yield b""


SLOW = {
    "no answer": silent,
    "a status line": trickle(b"HTTP/1.1 2", b"0"),
    "a header": trickle(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "headers": trickle(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "a body": trickle(head(Content_Length=10**6), b"x"),
    "a body without a length": trickle(head(), b"x"),
    "the size of a chunk": trickle(head(Transfer_Encoding="chunked"), b"0"),
    "an extension of a chunk": trickle(head(Transfer_Encoding="chunked") + b"5;x=", b"y"),
    "small chunks": trickle(head(Transfer_Encoding="chunked"), chunk(b"x")),
    "trailers": trickle(head(Transfer_Encoding="chunked") + chunk(DATA) + b"0\r\n", b"X: y\r\n"),
    "continue": trickle(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_trickle_is_given_up(tmp_path, name):
    with replying(SLOW[name]) as server:
        begun = time.monotonic()
        refused(server.url, tmp_path / "f", "stalled|timed out|no answer", QUICK)
        assert time.monotonic() - begun < 25  # two connections of half a second, on a busy machine


FLOOD = {
    "continue": lambda *_: forever(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "trailers": lambda *_: (
        part
        for parts in ([head(Transfer_Encoding="chunked") + chunk(DATA) + b"0\r\n"],
                      forever(b"X: y\r\n" * 1000))
        for part in parts
    ),
    "an extension": lambda *_: (
        part for parts in ([head(Transfer_Encoding="chunked")], forever(b"1;" + b"x" * 9**5))
        for part in parts
    ),
    "headers": lambda *_: (
        part for parts in ([b"HTTP/1.1 200 OK\r\n"], forever(b"X: y\r\n" * 1000)) for part in parts
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOOD)
def test_endless_framing_ends(tmp_path, name):
    with replying(FLOOD[name]) as server:
        refused(server.url, tmp_path / "f", "no answer|dropped", QUICK)


def test_a_stalled_download_can_be_interrupted(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pipeline.transfer.download import download\n"
        "download(sys.argv[1], Path(sys.argv[2]), print)"
    )
    with replying(trickle(head(Content_Length=10**6) + b"x", b"x")) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code, server.url, str(tmp_path / "f")],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            end = time.monotonic() + 60
            while not server.asked and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) != 0
        finally:
            process.kill()
            process.wait()
    assert not (tmp_path / "f").exists()
