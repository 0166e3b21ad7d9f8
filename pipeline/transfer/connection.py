"""One HTTP connection, which resumes the part of a file where it ends."""

import functools
import http.client
import io
import json
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import DataError
from pipeline.progress import progress_bar

_BLOCK = 1 << 18
_FRAMING = 1 << 20  # bytes of headers, chunk sizes and trailers between two blocks of a body
_RESERVE = 200 << 20  # bytes that a download leaves free on its disk
_SETTLED = 60  # seconds after which a Last-Modified is one version's only, RFC 9110 8.8.2.2


@dataclass(frozen=True)
class Patience:
    """When a connection is given up, and how often another is tried."""

    seconds: float = 30.0  # without an answer, or with less than `bytes_per_second`
    bytes_per_second: float = 1000.0
    retries: int = 5
    pause: float = 1.0  # before the first retry; doubled for each further one


@dataclass(frozen=True)
class _Remote:
    """What tells one version of the file on the server from another."""

    url: str
    etag: str | None
    modified: str | None  # None: too young to tell two versions apart
    length: int | None

    def condition(self) -> str | None:
        """For If-Range; None when the server gave nothing that holds byte for byte."""
        strong = self.etag if self.etag and not self.etag.startswith("W/") else None
        return strong or self.modified


PATIENCE = Patience()


class Dropped(Exception):
    """A connection that ended early, stalled, or a server that is busy: worth another try."""


def fetch_once(
    url: str, target: Path, say: Callable[[str], None], patience: Patience, most: int | None = None
) -> bool:
    """Bring `<target>.part` to its full length over one connection.

    most     bytes that the file may have; None: as many as leave 200 MiB of the disk free
    returns  whether bytes of an earlier connection are in it

    The part is resumed when the server still has the version that the note beside it describes,
    otherwise it starts again; a whole one needs no connection. Raises Dropped for what another
    try may mend, DataError for what it will not: among that a redirect from https to http or to
    anything else, an encoded body, lengths that contradict each other, too many bytes.
    """
    part, note = beside(target)
    most = _allowed(part, most)
    remote = _read_note(note)
    size = part.stat().st_size if part.exists() else 0
    ours = size > 0 and remote is not None and remote.url == url
    if ours and size == remote.length:
        return True
    start = size if ours and remote.condition() and size < (remote.length or size + 1) else 0
    with _open(url, target, remote if start else None, start, patience) as response:
        if response.status == 206:
            if not (start and _continues(response, remote, start)):
                part.unlink(missing_ok=True)
                raise Dropped("the server sent another part than was requested; starting again")
            with part.open("ab") as file:
                _copy(url, response, file, start, remote.length, target.name, patience, most)
            return True
        remote = _described(url, target, response)
        if size:
            say(f"{target.name}: starting again, the server cannot resume at {size:,} bytes")
        if (remote.length or 0) > most:
            raise DataError(f"{url}: " + _too_long(f"{remote.length:,} bytes", most, part))
        with part.open("wb") as file:
            # After the old part is cut to nothing and before the first new byte, so that a kill
            # at any moment leaves no note that vouches for bytes of another version.
            note.write_text(json.dumps(asdict(remote)))
            _copy(url, response, file, 0, remote.length, target.name, patience, most)
        return False


def _allowed(part: Path, most: int | None) -> int:
    own = part.stat().st_size if part.exists() else 0
    room = shutil.disk_usage(part.parent).free + own - _RESERVE
    return room if most is None else min(most, room)


def _too_long(what: str, most: int, part: Path) -> str:
    free = shutil.disk_usage(part.parent).free
    return (
        f"the server sends {what}, over the {max(most, 0):,} that this file may have; {free:,} "
        f"are free in {part.parent}, of which {_RESERVE:,} stay free"
    )


def _described(url: str, target: Path, response: http.client.HTTPResponse) -> _Remote:
    if response.status != 200:
        raise Dropped(f"the server answers {response.status} {_words(response.reason)}")
    headers = response.headers
    if headers.get_content_type() == "text/html":
        raise DataError(web_page(url, target))
    modified = headers["Last-Modified"] if _settled(headers) else None
    return _Remote(url, headers["ETag"], modified, response.length)


def _settled(headers: http.client.HTTPMessage) -> bool:
    """Whether Last-Modified is a strong validator: a minute older than the answer."""
    try:
        sent, changed = (parsedate_to_datetime(headers[n]) for n in ("Date", "Last-Modified"))
        return (sent - changed).total_seconds() >= _SETTLED
    except (TypeError, ValueError):  # one is missing, no date, or without a zone
        return False


def _refuse_framing(url: str, target: Path, headers: http.client.HTTPMessage) -> None:
    """Raises DataError for a body whose bytes are not the file's, or whose length is in doubt."""
    coding = (headers["Content-Encoding"] or "identity").strip().lower()
    if coding != "identity":
        raise DataError(
            f"{url}: the server sends {ascii(coding)} where identity was asked for; "
            f"{by_hand(target)}"
        )
    lengths = headers.get_all("Content-Length") or []
    chunked = headers.get_all("Transfer-Encoding") or []
    sound = all(re.fullmatch(r"[0-9]{1,18}", one.strip()) for one in lengths)
    if len(lengths) + len(chunked) > 1 or not sound or [c.lower() for c in chunked] not in (
        [], ["chunked"],
    ):  # fmt: skip
        found = ", ".join(ascii(one) for one in (*lengths, *chunked))
        raise DataError(
            f"{url}: the server's answer does not have one clear length ({found[:100]}); "
            f"{by_hand(target)}"
        )


def _open(
    url: str, target: Path, remote: _Remote | None, start: int, patience: Patience
) -> "_Response":
    headers = {"User-Agent": "fedclip", "Accept-Encoding": "identity"}
    if remote is not None:
        headers |= {"Range": f"bytes={start}-", "If-Range": remote.condition()}
    try:
        request = urllib.request.Request(url, headers=headers)
        opener = urllib.request.build_opener(_Redirects(target), _Paced(patience))
        response = opener.open(request, timeout=patience.seconds)
        try:
            _refuse_framing(url, target, response.headers)
        except DataError:
            response.close()
            raise
        return response
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is longer than the server's file
            beside(target)[0].unlink(missing_ok=True)
        elif error.code not in (408, 429) and error.code < 500:
            raise DataError(
                f"{url}: the server answers {error.code} {_words(error.reason)}; "
                f"check the address, or {by_hand(target)}"
            ) from error
        # No URLError as the cause: the server was reached.
        raise Dropped(f"the server answers {error.code} {_words(error.reason)}") from None
    except (http.client.InvalidURL, ValueError) as error:
        raise DataError(f"{url} is not a valid address: {_words(error)}") from error
    except urllib.error.URLError as error:
        raise Dropped(_words(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise Dropped(f"no answer ({_words(error) or type(error).__name__})") from error


def _copy(
    url: str,
    response: "_Response",
    file: BinaryIO,
    start: int,
    length: int | None,
    label: str,
    patience: Patience,
    most: int,
) -> None:
    done, since, before = start, time.monotonic(), start
    with progress_bar(
        total=length, initial=start, desc=label, unit="B", unit_scale=True, leave=True, disable=None
    ) as bar:
        while length is None or done < length:
            response.grant(_FRAMING + _BLOCK)
            try:
                block = response.read1(min(_BLOCK, (length or done + _BLOCK) - done))
            except (OSError, http.client.HTTPException) as error:
                raise Dropped(f"dropped at byte {done:,} ({_words(error)})") from error
            if not block:
                break
            if done + len(block) > most:
                file.truncate(0)
                raise DataError(f"{url}: " + _too_long("more bytes", most, Path(file.name)))
            file.write(block)
            bar.update(len(block))
            done += len(block)
            seconds = time.monotonic() - since
            if seconds >= patience.seconds:
                if done - before < patience.bytes_per_second * seconds:
                    raise Dropped(f"stalled: {done - before:,} bytes in {seconds:.1f} s")
                since, before = time.monotonic(), done
    if length is not None and done < length:
        raise Dropped(f"ended after {done:,} of {length:,} bytes")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to https, and from http to http; nowhere else."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        """The next request. Raises DataError for an address that is less safe than this one's."""
        if not newurl.startswith(("https://", "http://")[: 1 + (req.type == "http")]):
            fp.close()
            raise DataError(
                f"{req.full_url}: the server redirects to {ascii(newurl)[:300]}; only https:// is "
                f"followed, and http:// from http://; {by_hand(self.target)}"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Stream(io.RawIOBase):
    """A socket's bytes, counted as they come: a trickle and endless framing end as OSError.

    The socket's own timeout is for one read; a byte a minute never exceeds it.
    """

    def __init__(self, sock: socket.socket, patience: Patience) -> None:
        self._raw, self._patience = sock.makefile("rb", buffering=0), patience
        self._since, self._count = time.monotonic(), 0
        self.left = _FRAMING

    def readable(self) -> bool:
        """It is for nothing else."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """As of a socket. Raises TimeoutError when it stalled, OSError for too much framing."""
        if self.left <= 0:
            raise OSError(f"over {_FRAMING:,} bytes of headers or chunk sizes")
        count = self._raw.readinto(buffer)
        self.left -= count or 0
        self._count += count or 0
        seconds = time.monotonic() - self._since
        if seconds >= self._patience.seconds:
            if count and self._count < self._patience.bytes_per_second * seconds:
                raise TimeoutError(f"stalled: {self._count:,} bytes in {seconds:.1f} s")
            self._since, self._count = time.monotonic(), 0
        return count

    def close(self) -> None:
        """Closes the socket's file, so that the socket can close."""
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer that is read through a _Stream."""

    def __init__(self, sock: socket.socket, *args: Any, patience: Patience, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self._stream = _Stream(sock, patience)
        self.fp = io.BufferedReader(self._stream)

    def grant(self, count: int) -> None:
        """Allows that many bytes to be read from the socket until the next call."""
        self._stream.left = count


class _Paced(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """http and https, their answers read as _Response."""

    def __init__(self, patience: Patience) -> None:
        super().__init__()
        self.patience = patience

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """As of HTTPHandler."""
        return self._open(http.client.HTTPConnection, req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """As of HTTPSHandler."""
        return self._open(http.client.HTTPSConnection, req)

    def _open(
        self, kind: type[http.client.HTTPConnection], req: urllib.request.Request
    ) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_connection, kind, self.patience), req)


def _connection(
    kind: type[http.client.HTTPConnection], patience: Patience, host: str, **settings: Any
) -> http.client.HTTPConnection:
    made = kind(host, **settings)
    made.response_class = functools.partial(_Response, patience=patience)  # type: ignore[assignment]
    return made


def _continues(response: http.client.HTTPResponse, remote: _Remote, start: int) -> bool:
    """Whether a 206 is the rest of the file that the note describes."""
    headers = response.headers
    span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers["Content-Range"] or "")
    if span is None or int(span[1]) != start:
        return False
    if response.length not in (None, int(span[2]) + 1 - start):
        return False
    return (
        headers["ETag"] in (None, remote.etag)
        and headers["Last-Modified"] in (None, remote.modified)
        and (span[3] == "*" or remote.length is None or int(span[3]) == remote.length)
    )


def _read_note(note: Path) -> _Remote | None:
    try:
        found = _Remote(**json.loads(note.read_text("utf-8")))
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return None
    words = (found.url, found.etag or "", found.modified or "")
    sound = all(isinstance(one, str) for one in words) and isinstance(found.length, int | None)
    return found if sound else None


def _words(said: object) -> str:
    """What a server said, in one line and without what could steer a terminal."""
    line = " ".join(str(said).split())
    return "".join(c for c in line if c.isprintable())[:300]


def beside(target: Path) -> tuple[Path, Path]:
    """`<target>.part`, and `<target>.part.json`: the note on which version the part is of."""
    part = target.with_name(f"{target.name}.part")
    return part, part.with_name(f"{part.name}.json")


def by_hand(target: Path) -> str:
    """The end of a message: what to do without a download."""
    return f"fetch it another way and put it at {target}"


def web_page(url: str, target: Path) -> str:
    """The message for a page of HTML in the place of the file."""
    return (
        f"{url} is a web page, not a file to download; open it in a browser, or {by_hand(target)}"
    )
