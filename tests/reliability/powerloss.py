"""Cuts the power at every step of a command's writing, on a modelled disk, and runs it again.

    python -m tests.reliability.powerloss --count 2000
    python -m tests.reliability.powerloss --command sweep --count 500 --seed 3

While a command runs, every call that a file system orders by (fsync, rename, unlink, mkdir) is
recorded with the content that files have by then. A power cut at any of them leaves what was
synced, and of the rest any subset of names and any part of the contents, also zeros in their place,
as in the ALICE study (Pillai et al., OSDI 2014: "All file systems are not created equal"). A sample
of such folders is made, and the command is run again in each: it must end with the bytes of an
undisturbed one. What a power cut leaves after the command's end must be finished, without any
training. Exit code 1 when anything is wrong.
"""

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.digests import unsealed
from pipeline.errors import ConfigError
from pipeline.runs import folder as run_folder
from pipeline.runs.folder import RunFolder
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options
from tests.runs.small_runs import FILES, config, figures, run, small

CALLS = ("fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir")
IGNORED = (".lock",)
"""Locks, and who is alive: nobody is after a power cut."""
TABLE = small(rows=(12, 9), width=4, classes=3)

Left = dict[str, bytes | None]
"""What a power cut leaves: by path the content of a file, None for a folder."""


@dataclass
class Node:
    """A file's content: as processes see it, and as far as it was synced (None: never)."""

    now: bytes
    safe: bytes | None = None

    def contents(self) -> list[bytes]:
        """What may be on the disk: nothing new, a part of it, zeros in its place, all of it."""
        if self.now == self.safe:
            return [self.now] * 4
        base = self.safe or b""
        if not self.now.startswith(base):
            return [base, b"", bytes(len(self.now)), self.now]
        new = self.now[len(base) :]
        return [base, base + new[: len(new) // 2], base + bytes(len(new)), self.now]


class Change(NamedTuple):
    """A change of names that no sync of a folder has made last yet; node None: a folder."""

    removed: str | None
    added: str | None
    node: Node | None

    def folders(self) -> set[str]:
        return {os.path.dirname(path) for path in (self.removed, self.added) if path is not None}

    def apply(self, names: dict[str, Node | None]) -> None:
        if self.removed is not None:
            names.pop(self.removed, None)
        if self.added is not None:
            names[self.added] = self.node


class Disk:
    """What is below a folder, what of it would survive, and a sample of all that might."""

    def __init__(self, root: Path, draw: random.Random, *, syncs: bool = True) -> None:
        self.root, self.draw, self.syncs = root, draw, syncs
        self.calls = 0
        self.live: dict[str, Node | None] = {}
        self.safe: dict[str, Node | None] = {}
        self.pending: list[Change] = []
        self.left: dict[tuple, Left] = {}
        self._scan()
        for path, node in self.live.items():  # what was there before is on the disk
            self.safe[path] = node
            if node:
                node.safe = node.now
        self.pending.clear()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Notes what this process does below the root; every call is a moment of a power cut."""
        real = {name: getattr(os, name) for name in CALLS}

        def noted(name: str) -> Callable:
            def call(*args: Any, **options: Any) -> Any:
                self._scan()
                self._cut()
                target = self._target(args[0]) if name == "fsync" else None
                answer = real[name](*args, **options)
                self.calls += 1
                if name == "fsync":
                    self._synced(target)
                else:
                    self._renamed(name, *args)
                return answer

            return call

        for name in CALLS:
            setattr(os, name, noted(name))
        try:
            yield
        finally:
            for name in CALLS:
                setattr(os, name, real[name])
        self._scan()
        self._cut()

    def at_the_end(self) -> list[Left]:
        """What a power cut after the last call may leave."""
        self.left.clear()
        self._cut()
        return list(self.left.values())

    def _scan(self) -> None:
        """Takes up new files, and what was written to those that are known."""
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if name not in IGNORED]
            for name in [*folders, *(name for name in files if name not in IGNORED)]:
                path = os.path.relpath(os.path.join(folder, name), self.root)
                if name in folders:
                    if path not in self.live:
                        self._change(Change(None, path, None))
                    continue
                content = Path(folder, name).read_bytes()
                if path not in self.live:
                    self._change(Change(None, path, Node(content)))
                self.live[path].now = content

    def _change(self, change: Change) -> None:
        change.apply(self.live)
        self.pending.append(change)

    def _target(self, handle: int) -> str | None:
        found = os.fstat(handle)
        for path in (".", *self.live):
            with contextlib.suppress(OSError):
                if os.path.samestat(found, os.stat(self.root / path)):
                    return path
        return None

    def _synced(self, path: str | None) -> None:
        if path is None or not self.syncs:
            return
        if node := self.live.get(path):
            node.safe = node.now
            return
        folder = "" if path == "." else path
        for change in [each for each in self.pending if folder in each.folders()]:
            change.apply(self.safe)
            self.pending.remove(change)

    def _renamed(self, name: str, *args: Any) -> None:
        paths = [os.path.relpath(path, self.root) for path in args if not isinstance(path, int)]
        if paths[0].startswith("..") or os.path.basename(paths[0]) in IGNORED:
            return
        if name in ("replace", "rename"):
            self._change(Change(paths[0], paths[1], self.live.get(paths[0])))
        elif name != "mkdir":  # the next scan finds a new folder
            self._change(Change(paths[0], None, None))

    def _cut(self) -> None:
        """Adds states that a power cut at this moment may leave."""
        for which in range(4):
            self._keep([], which)
            self._keep(self.pending, which)
        for each in self.pending:
            for which in (0, 2, 3):
                self._keep([each], which)
                self._keep([other for other in self.pending if other is not each], which)
        for _ in range(4):
            self._keep([each for each in self.pending if self.draw.random() < 0.5], None)

    def _keep(self, changes: list[Change], which: int | None) -> None:
        names = dict(self.safe)
        for each in changes:
            each.apply(names)
        found: Left = {}
        for path, node in sorted(names.items()):  # a folder before what is in it
            above = os.path.dirname(path)
            if above and above not in found:
                continue
            at = self.draw.randrange(4) if which is None else which
            found[path] = node.contents()[at] if node else None
        self.left.setdefault(tuple(found.items()), found)


class Command(NamedTuple):
    """before(folder) makes what is there; go(folder, force) is the command; see both runs below."""

    before: Callable[[Path], Any]
    go: Callable[[Path, bool], dict]
    result: Callable[[Path, dict], Any]
    finished: Callable[[Path, dict], bool]
    force: bool = False


def run_result(out: Path, document: dict) -> Any:
    files = {name: (out / name).read_bytes() for name in FILES}
    assert (out / "done").read_bytes().count(b"\n") == 4
    return files, figures(document)


def run_finished(out: Path, document: dict) -> bool:
    return RunFolder(out).summary is not None


def sweep_result(out: Path, document: dict) -> Any:
    lines = (out / "trials.jsonl").read_text().splitlines()
    found = [{**unsealed(json.loads(line)), "seconds": 0} for line in lines]
    json.loads((out / "shared.json").read_text())
    json.loads((out / "selection.json").read_text())
    best = {k: v for k, v in document["best"].items() if "seconds" not in k}
    return sorted(found, key=lambda each: each["number"]), repr(best)


def sweep_finished(out: Path, document: dict) -> bool:
    return document["lane_steps"] == 0


def federate_(method: str = "fedavg", **settings: Any) -> Callable[[Path, bool], dict]:
    asked = config(rounds=3, held_out=(("a",),), method=method, **settings)
    return lambda out, force: run(TABLE, out, asked, force=force)


def sweep_(*grid: str, **options: Any) -> Callable[[Path, bool], dict]:
    def go(out: Path, force: bool) -> dict:
        spec, base = from_options(grid, **options), config(rounds=3, held_out=(("a",),))
        return sweep(TABLE, spec, base, runs=out, out=out, device="cpu", memory=0, force=force)

    return go


LRS = "lr=1e-4,1e-3,1e-2"
COMMANDS = {
    "federate": Command(lambda out: None, federate_(), run_result, run_finished),
    "federate, with memory": Command(
        lambda out: None, federate_("fedadam", moments="kept"), run_result, run_finished
    ),
    "federate --force": Command(
        lambda out: federate_(seed=1)(out, False), federate_(), run_result, run_finished, True
    ),
    "sweep": Command(lambda out: None, sweep_(LRS), sweep_result, sweep_finished),
    "sweep --halving": Command(
        lambda out: None, sweep_(LRS, halving=2), sweep_result, sweep_finished
    ),
    "sweep --force": Command(
        lambda out: sweep_("lr=1e-3")(out, False), sweep_(LRS), sweep_result, sweep_finished, True
    ),
}


def cut_power(
    name: str, count: int, seed: int, place: Path, *, syncs: bool = True
) -> tuple[int, int, list[str]]:
    """Runs a command, makes `count` of the folders that power cuts may leave, runs it in each.

    syncs  False: as if the disk took no notice of any sync; then findings are expected
    Returns how many moments and folders there were, and what is wrong.
    """
    command, draw = COMMANDS[name], random.Random(seed)
    calm = place / "calm" / "o"
    calm.parent.mkdir(parents=True)
    wanted = command.result(calm, command.go(calm, False))
    root = place / "recorded"
    root.mkdir()
    command.before(root / "o")
    disk, share = Disk(root, draw, syncs=syncs), run_folder.SHARE
    run_folder.SHARE = 1e9  # a checkpoint after every round, however long the disk takes
    try:
        with disk.recording():
            command.go(root / "o", command.force)
    finally:
        run_folder.SHARE = share
    found = list(disk.left.values())
    ends = disk.at_the_end()
    some = draw.sample(found, min(count, len(found)))
    wrong = []
    for number, left in enumerate([*ends, *some]):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            why = _again(command, Path(folder), left, wanted, ended=number < len(ends))
        if why:
            shown = {path: None if raw is None else len(raw) for path, raw in left.items()}
            wrong.append(f"{name}, seed {seed}: {why}; left: {shown}")
    return disk.calls, len(ends) + len(some), wrong


def _again(command: Command, root: Path, left: Left, wanted: Any, *, ended: bool) -> str | None:
    """What is wrong with running the command in what a power cut left; None for nothing."""
    for path, content in left.items():
        (root / path).mkdir() if content is None else (root / path).write_bytes(content)
    out = root / "o"
    try:
        if ended and command.result is run_result and not run_finished(out, {}):
            return "ended, and is not finished after a power cut"
        if command.force and not ended:
            with contextlib.suppress(ConfigError):  # holds the run or sweep of before
                if command.result(out, command.go(out, False)) != wanted:
                    return "other results without --force"
        document = command.go(out, command.force and not ended)
        if ended and not command.finished(out, document):
            return "ended, and trains again after a power cut"
        if command.result(out, document) != wanted:
            return "other results"
        rest = [file.name for file in out.rglob("*.tmp")]
        return f"leaves {rest}" if rest else None
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} at {where.filename}:{where.lineno}"


def main() -> int:
    """All commands, or some; a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", action="append", choices=[*COMMANDS], help="All unless named.")
    parser.add_argument("--count", type=int, default=200, help="Folders for each command.")
    parser.add_argument("--seed", type=int, default=0)
    asked, bad = parser.parse_args(), 0
    for name in asked.command or COMMANDS:
        with tempfile.TemporaryDirectory() as place:
            calls, folders, wrong = cut_power(name, asked.count, asked.seed, Path(place))
        print(f"{name:24} {calls:4} calls  {folders:5} folders  {len(wrong)} wrong", flush=True)
        for why in wrong:
            print(f"    {why}")
        bad += len(wrong)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
