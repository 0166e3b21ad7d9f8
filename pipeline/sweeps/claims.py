"""Who trains what where several processes, on one machine or many, share the trials of one folder.

Nothing here needs locks or clocks that agree, which network disks and machines do not always have:
a file that is made exclusively (O_EXCL) has one maker, and a heartbeat is seen to change or not.
"""

import contextlib
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.files import cannot_write, errors_of, naming
from pipeline.plain_files import OBJECT, read_plain

BEAT = 5.0
"""Seconds between two heartbeats."""
PATIENCE = 60.0
"""Seconds without a heartbeat after which a member is taken for dead: twelve beats, for network
disks show a change to other machines up to a minute late at worst, mostly after 3 s (NFS)."""
_CLAIM = re.compile(r"([0-9a-f]+)\.([0-9]+)")


class Claims:
    """This process as a member: what it has claimed, and who else is alive.

    members/<name> holds a number that changes every BEAT seconds, for as long as the member lives;
    claims/<trial>.<k> holds the name of who trains a trial, of several the largest k: whoever
    finds its member dead makes the next one.
    """

    def __init__(self, folder: Path) -> None:
        """Of a sweep's folder; `joined` makes it a member."""
        host = re.sub(r"[^\w-]+", "-", socket.gethostname())[:40]
        self.name = f"{host}-{os.getpid()}-{secrets.token_hex(2)}"
        self._members, self._claims = folder / "members", folder / "claims"
        self._beat = self._members / self.name
        self._holders: dict[str, str] = {}  # claim's file: member
        self._seen: dict[str, tuple[bytes, float]] = {}  # member: heartbeat, when it was new

    def take(self, ids: Sequence[str]) -> list[str]:
        """Claims these trials; returns those that are this member's now."""
        claims = self._latest()
        return [id for id in ids if self._take(id, claims.get(id, 0))]

    def free(self, ids: Sequence[str]) -> list[str]:
        """Those that no other living member has claimed."""
        self._look()
        claims = self._latest()
        return [id for id in ids if id not in claims or self._is_free(id, claims[id])]

    def living(self) -> int:
        """How many members are alive, this one too."""
        self._look()
        return max(1, sum(self._is_alive(name) for name in self._names()))

    def clear(self) -> None:
        """Leaves a sweep that has ended; the last to leave removes all claims."""
        self.end()
        if self._names():
            return
        for claim in self._files(self._claims):
            _remove(self._claims / claim)
        with contextlib.suppress(OSError):
            self._claims.rmdir()

    def begin(self) -> None:
        """Makes the first heartbeat; ConfigError where the folder cannot be written."""
        with errors_of(self._members.parent), naming(self._beat):
            self._members.mkdir(exist_ok=True)
            self._claims.mkdir(exist_ok=True)
            self._beat.write_bytes(b"0\n")
        for name in self._names():
            if self._is_gone(name):
                _remove(self._members / name)

    def beat(self, number: int) -> None:
        """The next heartbeat; one that a full disk refuses is left out."""
        # r+b: none is made anew after this member has left. Closing brings it to other machines.
        with contextlib.suppress(OSError), self._beat.open("r+b") as file:
            file.write(b"%d\n" % number)

    def end(self) -> None:
        """Leaves: what was claimed and has not ended is anybody's."""
        _remove(self._beat)
        with contextlib.suppress(OSError):
            self._members.rmdir()

    def _take(self, id: str, latest: int) -> bool:
        if latest and not self._is_free(id, latest):
            return False
        if latest and self._holder(id, latest) == self.name:
            return True
        claim = self._claims / f"{id}.{latest + 1}"
        try:
            with naming(claim), claim.open("xb") as file:
                file.write(self.name.encode())
        except (FileExistsError, FileNotFoundError):  # another was first; all has ended
            return False
        except OSError as error:
            raise ConfigError(cannot_write(self._claims.parent, error)) from error
        return True

    def _is_free(self, id: str, latest: int) -> bool:
        holder = self._holder(id, latest)
        return holder == self.name or not self._is_alive(holder)

    def _holder(self, id: str, latest: int) -> str:
        """The member of a claim; the claim itself while its maker has not written a name yet."""
        claim = f"{id}.{latest}"
        if claim not in self._holders:
            with contextlib.suppress(ConfigError):
                named = read_plain(self._claims / claim, OBJECT).decode("utf-8", "replace")
                if named:
                    self._holders[claim] = named
        return self._holders.get(claim, claim)

    def _is_alive(self, name: str) -> bool:
        if name == self.name:
            return True
        if _CLAIM.fullmatch(name):  # no name yet: as a heartbeat that does not change
            _, since = self._seen.setdefault(name, (b"", time.monotonic()))
            return time.monotonic() - since < PATIENCE
        return name in self._seen and (
            time.monotonic() - self._seen[name][1] < PATIENCE and not self._is_gone(name)
        )

    def _is_gone(self, name: str) -> bool:
        """Whether it ran on this machine and runs no more: no need to wait for its heartbeat."""
        host, pid, _ = name.rsplit("-", 2) if name.count("-") >= 2 else ("", "", "")
        if host != self.name.rsplit("-", 2)[0] or not pid.isdigit() or os.name != "posix":
            return False
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
        return False

    def _look(self) -> None:
        """Notes every member's heartbeat and since when it has been the same."""
        now, there = time.monotonic(), self._names()
        for name in there:
            with contextlib.suppress(ConfigError):
                found = read_plain(self._members / name, OBJECT)
                if self._seen.get(name, (None, 0))[0] != found:
                    self._seen[name] = found, now
        for name in self._seen.keys() - set(there):
            if not _CLAIM.fullmatch(name):
                del self._seen[name]

    def _latest(self) -> dict[str, int]:
        """By trial: the number of its last claim."""
        found: dict[str, int] = {}
        for file in self._files(self._claims):
            if parts := _CLAIM.fullmatch(file):
                found[parts[1]] = max(found.get(parts[1], 0), int(parts[2]))
        return found

    def _names(self) -> list[str]:
        return self._files(self._members)

    @staticmethod
    def _files(folder: Path) -> list[str]:
        try:
            return os.listdir(folder)
        except OSError:
            return []


def _remove(file: Path) -> None:
    """Removes a file; one that stays on a failing disk does no harm and hides no other error."""
    with contextlib.suppress(OSError):
        file.unlink()


@contextlib.contextmanager
def joined(folder: Path) -> Iterator[Claims]:
    """This process as a member of the sweep in the folder, with a heartbeat while it is one."""
    claims = Claims(folder)
    claims.begin()
    over = threading.Event()

    def beat() -> None:
        number = 0
        while not over.wait(BEAT):
            number += 1
            claims.beat(number)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield claims
    finally:
        over.set()
        thread.join()
        claims.end()
