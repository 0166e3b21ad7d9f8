"""One HTTP connection: it brings the part of a file nearer to the whole, from where that ends."""

import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import DataError
from pipeline.progress import progress_bar

_BLOCK = 1 << 18


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
    modified: str | None
    length: int | None

    def condition(self) -> str | None:
        """For If-Range; None when the server gave nothing that holds byte for byte."""
        strong = self.etag if self.etag and not self.etag.startswith("W/") else None
        return strong or self.modified


PATIENCE = Patience()


class Dropped(Exception):
    """A connection that ended early, stalled, or a server that is busy: worth another try."""


def fetch_once(url: str, target: Path, say: Callable[[str], None], patience: Patience) -> None:
    """Bring `<target>.part` to its full length over one connection.

    The part goes on where it ends when the server still has the version that the note beside it
    describes, otherwise it starts afresh; a whole one needs no connection. Raises Dropped for
    what another try may mend, DataError for what it will not.
    """
    part, note = beside(target)
    remote = _read_note(note)
    size = part.stat().st_size if part.exists() else 0
    ours = size > 0 and remote is not None and remote.url == url
    if ours and size == remote.length:
        return
    start = size if ours and remote.condition() and size < (remote.length or size + 1) else 0
    with _open(url, target, remote if start else None, start, patience) as response:
        if response.status == 206:
            if not (start and _continues(response, remote, start)):
                part.unlink(missing_ok=True)
                raise Dropped("the server sent another part than was asked for; starting afresh")
            with part.open("ab") as file:
                _copy(response, file, start, remote.length, target.name, patience)
            return
        remote = _described(url, target, response)
        if size:
            say(f"{target.name}: starting afresh, the server has no rest for {size:,} bytes")
        if (remote.length or 0) > (free := shutil.disk_usage(part.parent).free + size):
            raise DataError(
                f"{url} has {remote.length:,} bytes, and {free:,} are free in {part.parent}"
            )
        with part.open("wb") as file:
            # After the old part is cut to nothing and before the first new byte, so that a kill
            # at any moment leaves no note that vouches for bytes of another version.
            note.write_text(json.dumps(asdict(remote)))
            _copy(response, file, 0, remote.length, target.name, patience)


def _described(url: str, target: Path, response: http.client.HTTPResponse) -> _Remote:
    if response.status != 200:
        raise Dropped(f"the server answers {response.status} {response.reason}")
    if response.headers.get_content_type() == "text/html":
        raise DataError(web_page(url, target))
    headers = response.headers
    return _Remote(url, headers["ETag"], headers["Last-Modified"], response.length)


def _open(
    url: str, target: Path, remote: _Remote | None, start: int, patience: Patience
) -> http.client.HTTPResponse:
    headers = {"User-Agent": "fedclip", "Accept-Encoding": "identity"}
    if remote is not None:
        headers |= {"Range": f"bytes={start}-", "If-Range": remote.condition()}
    try:
        request = urllib.request.Request(url, headers=headers)
        return urllib.request.urlopen(request, timeout=patience.seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is longer than the server's file
            beside(target)[0].unlink(missing_ok=True)
        elif error.code not in (408, 429) and error.code < 500:
            raise DataError(
                f"{url}: the server answers {error.code} {error.reason}; "
                f"check the address (--url), or {by_hand(target)}"
            ) from error
        # No URLError as the cause: the server was reached.
        raise Dropped(f"the server answers {error.code} {error.reason}") from None
    except (http.client.InvalidURL, ValueError) as error:
        raise DataError(f"{url} is no address: {error}") from error
    except urllib.error.URLError as error:
        raise Dropped(str(error.reason)) from error
    except (OSError, http.client.HTTPException) as error:
        raise Dropped(f"no answer ({error or type(error).__name__})") from error


def _copy(
    response: http.client.HTTPResponse,
    file: BinaryIO,
    start: int,
    length: int | None,
    label: str,
    patience: Patience,
) -> None:
    done, since, before = start, time.monotonic(), start
    with progress_bar(
        total=length, initial=start, desc=label, unit="B", unit_scale=True, leave=True, disable=None
    ) as bar:
        while length is None or done < length:
            try:
                block = response.read1(min(_BLOCK, (length or done + _BLOCK) - done))
            except (OSError, http.client.HTTPException) as error:
                raise Dropped(f"dropped at byte {done:,} ({error})") from error
            if not block:
                break
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


def _continues(response: http.client.HTTPResponse, remote: _Remote, start: int) -> bool:
    """Whether a 206 is the rest of the file that the note describes."""
    headers = response.headers
    span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", headers["Content-Range"] or "")
    if span is None or int(span[1]) != start:
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
