"""A download that can be killed and resumed, checked as a whole before anything is published."""

import hashlib
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import DataError
from pipeline.transfer.connection import (
    PATIENCE,
    Dropped,
    Patience,
    beside,
    by_hand,
    fetch_once,
    web_page,
)
from pipeline.transfer.unpack import check_archive

# pooch, which does as much in its caller's lines, was weighed: it leaves to requests what
# tests/datasets/test_transfer_hostile.py asks (endless bodies and trickles, redirects out of https,
# lengths that contradict each other) and does not resume; with these hooked in, nothing is shorter.
_PROGRESS = 1 << 20  # bytes after which a dropped connection counts as a new one


def download(
    url: str,
    target: Path,
    say: Callable[[str], None],
    patience: Patience = PATIENCE,
    *,
    most: int | None = None,
    sha256: str | None = None,
) -> Path:
    """Fetch `url` to `target`, by way of `<target>.part`, and return `target`.

    most    bytes that the file may have; None: as many as leave 200 MiB of the disk free
    sha256  what the file must be, as hex digits; None: not known

    A target that is there is taken as it is, or replaced where its SHA-256 is another. A part is
    resumed where it ends, if the server can and its file is still the same one (a strong ETag or a
    settled Last-Modified, kept in `<target>.part.json`); otherwise it starts afresh. A part that
    has all bytes is not fetched again. Before anything is moved to `target` the whole is checked:
    by sha256, else a zip by the CRC of every member. What was resumed and is wrong is fetched
    afresh.

    Raises DataError with the address and the way out: not reachable, refused, redirected from
    https, dropped more often than `patience.retries`, a web page instead of the file, an empty,
    encoded, damaged or endless one, a full disk, another download at it.
    """
    target = Path(target)
    if target.exists():
        if sha256 in (None, sha256_of(target)):
            say(f"{target} is there already; it is not downloaded again")
            return target
        say(f"{target} is damaged or another file, by its SHA-256; downloading it again")
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url}: only http:// and https:// can be downloaded; {by_hand(target)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.part.lock", timeout=0):
            _fetch_patiently(url, target, say, patience, most, sha256)
    except Timeout:
        raise DataError(f"{target}: another process is downloading it now; wait for it") from None
    except OSError as error:  # of the disk: those of the network never come this far
        raise DataError(f"{target} cannot be written: {error}; {by_hand(target)}") from error
    return target


def sha256_of(path: Path) -> str:
    """Of a file's content, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_patiently(
    url: str,
    target: Path,
    say: Callable[[str], None],
    patience: Patience,
    most: int | None,
    sha256: str | None,
) -> None:
    part, note = beside(target)
    failures, mark, attempts = 0, 0, 0
    while True:
        try:
            attempts += 1
            resumed = fetch_once(url, target, say, patience, most)
            _check_whole(url, target, sha256, resumed)
            break
        except Dropped as dropped:
            if attempts == 1 and isinstance(dropped.__cause__, urllib.error.URLError):
                raise DataError(
                    f"{url} cannot be reached: {dropped}; run again when the network is there, "
                    f"or {by_hand(target)}"
                ) from dropped
            size = part.stat().st_size if part.exists() else 0
            if size >= mark + _PROGRESS:
                failures, mark = 0, size
            failures += 1
            if failures > patience.retries:
                raise DataError(
                    f"{url}: {dropped}, in the last of {attempts} attempts; run again to resume "
                    f"at {size:,} bytes, or {by_hand(target)}"
                ) from dropped
            say(f"{url}: {dropped}; trying again ({failures} of {patience.retries})")
            time.sleep(patience.pause * 2 ** (failures - 1))
    part.replace(target)
    note.unlink(missing_ok=True)


def _check_whole(url: str, target: Path, sha256: str | None, resumed: bool) -> None:
    """Raises DataError, or Dropped for what was resumed, of a part that is not the file."""
    part, _ = beside(target)
    with part.open("rb") as file:
        head = file.read(512)
    digest = sha256_of(part) if sha256 else None
    wrong = None
    if not head:
        wrong = f"{url} is empty; check the address, or {by_hand(target)}"
    elif head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html")):
        wrong = web_page(url, target)
    elif digest != sha256:
        wrong = f"{url} has SHA-256 {digest}, {sha256} is published; {by_hand(target)}"
    elif sha256 is None and head.startswith(b"PK\x03\x04"):
        try:
            check_archive(part)
        except DataError as error:
            wrong = f"{url}: {error}"
    if wrong is None:
        return
    part.unlink()
    if resumed:  # the server may have changed the file and not its ETag
        raise Dropped("its parts do not match; starting again")
    raise DataError(wrong)
