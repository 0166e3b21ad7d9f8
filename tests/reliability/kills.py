"""Kills commands at random moments, runs them again, and compares what they end with.

    python -m tests.reliability.kills --count 200
    python -m tests.reliability.kills --command federate --count 20

Every command runs on tiny data in a process forked from one that has imported everything, since
importing takes longer than the work. SIGKILL, SIGTERM or SIGINT hits it at a moment drawn over the
time that it takes undisturbed; the same command is started again, and perhaps hit again; in the end
it is left alone. What it leaves must be what the undisturbed one left: bytes, or content where
times are in it, and no file more. Only signals that hit a living process count. A failure is told
with its seed; exit code 1 when there are any.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.datasets.loopback import serving
from tests.reliability.killed_commands import COMMANDS, Command, prepare

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STOPPED = (0, 130, 143, -signal.SIGKILL, -signal.SIGTERM)
"""Exit codes of a command that was hit: done all the same, or stopped as docs/design.md says."""

NURSERY = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)  # no thread may live when it forks
import pipeline.extraction.extract, pipeline.runs.federate, pipeline.sweeps.run
import pipeline.reports.page, pipeline.sweeps.reproduce, pipeline.runs.predict
import pipeline.runs.adapters, pipeline.datasets.fetch, cache.npz
from pipeline.extraction import rows as encode_rows
from pipeline.cli.app import cli
from pipeline.encoder.model import import_clip
encode_rows.FLUSH_SECONDS = 0.02  # so that kills meet every state a file goes through
import_clip()
print("ready", flush=True)
for line in sys.stdin:
    words, log = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        with open(log, "ab") as errors, open(log + ".out", "wb") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(errors.fileno(), 2)
        os.close(0)
        print("", end="", file=sys.stderr, flush=True)
        code = 70
        try:
            cli(words)
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Starts commands in processes that can be killed."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"

    def begin(self, words: list[str]) -> int:
        """Starts a command and returns its process id, which is its group's too."""
        self.process.stdin.write(json.dumps([words, str(self.log)]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
        """Its exit code, once it has ended."""
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    @property
    def stdout(self) -> str:
        """Of the latest command."""
        return Path(f"{self.log}.out").read_text("utf-8", "replace")


def ready(data: Path, nursery: Nursery) -> None:
    """What predict, report and the cache commands start from, made by the commands themselves."""
    for words in (
        "extract --dataset {data}/images --model {data}/clip.safetensors --out {data}/x.h5"
        " --device cpu --workers 0",
        "federate {data}/x.h5 --rounds 5 --batch 8 --device cpu --out {data}/run",
        "cache import {data}/big.npz --out {data}/big.h5",
        *(
            "extract --dataset {data}/images --model {data}/clip.safetensors --out {data}/s.h5"
            f" --device cpu --batch 8 --workers 0 --shard {shard}/3"
            for shard in (1, 2, 3)
        ),
    ):
        nursery.begin(shlex.split(words.format(data=data)))
        assert nursery.end() == 0, nursery.log.read_text()


class Killing:
    """One command: its undisturbed end, and kills that must not change it."""

    def __init__(self, command: Command, nursery: Nursery, data: Path, url: str) -> None:
        self.command, self.nursery, self.out = command, nursery, data / "out"
        self.words = shlex.split(command.words.format(data=data, out=self.out, url=url))
        self.hits: Counter[str] = Counter()
        self.failures: list[str] = []
        self._fresh()
        self._whole()  # once for what only the first run compiles or keeps
        self._fresh()
        started = time.perf_counter()
        self.wanted = self._whole()
        self.seconds = time.perf_counter() - started

    def trial(self, seed: int) -> None:
        """Hit one to three times, then left alone."""
        draw = random.Random(f"{self.command.words} {seed}")
        self._fresh()
        for _ in range(draw.choice((1, 1, 2, 3))):
            hit = self._hit(draw, seed)
            if not hit:
                break
        try:
            if (found := self._whole()) != self.wanted:
                wanted, name = self.wanted, "names" if found[1] != self.wanted[1] else "content"
                self.failures.append(
                    f"seed {seed}: other {name} than undisturbed"
                    + (f": {found[1]} for {wanted[1]}" if name == "names" else "")
                )
        except Exception as error:
            self.failures.append(f"seed {seed}: {type(error).__name__}: {str(error)[-400:]}")

    def _hit(self, draw: random.Random, seed: int) -> bool:
        """Whether a signal met the living command."""
        number = draw.choice(SIGNALS)
        process = self.nursery.begin(self.words)
        time.sleep(draw.uniform(0.01, 1.05) * self.seconds)
        try:
            os.kill(process, number)
        except ProcessLookupError:
            number = None
        code = self.nursery.end()
        # An earlier hit may have met the command after its last write: then it says what is there.
        done = code in (self.command.ends, self.command.there)
        if number is not None and not done:
            self.hits[signal.Signals(number).name] += 1
        if not done and code not in STOPPED:
            told = self.nursery.log.read_text("utf-8", "replace")[-500:]
            self.failures.append(f"seed {seed}: exit code {code} after {number}: {told}")
        return not done

    def _fresh(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        self.nursery.log.write_bytes(b"")

    def _whole(self) -> Any:
        self.nursery.begin(self.words)
        code = self.nursery.end()
        told = self.nursery.log.read_text("utf-8", "replace")
        assert code in (self.command.ends, self.command.there), f"exit code {code}: {told[-300:]}"
        # "Exception ignored": a signal met a __del__ at the very end, and nothing followed from it.
        assert told.count("Traceback") == told.count("Exception ignored in"), told[-600:]
        names = sorted(
            str(path.relative_to(self.out))
            for path in self.out.rglob("*")
            if not path.name.endswith(".lock")
        )
        return self.command.left(self.out, self.nursery.stdout), names


def main() -> int:
    """A table of kills by command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--command", action="append", choices=list(COMMANDS))
    parser.add_argument("--count", type=int, default=200, help="Kills, over all commands.")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    names = asked.command or list(COMMANDS)
    each, total, failed = -(-asked.count // len(names)), Counter(), 0
    with tempfile.TemporaryDirectory() as folder, serving() as server:
        data = Path(folder)
        prepare(data, server)
        nursery = Nursery(data / "log")
        ready(data, nursery)
        for name in names:
            killing, seed = Killing(COMMANDS[name], nursery, data, server.url), asked.seed
            while sum(killing.hits.values()) < each and seed < asked.seed + 20 * each:
                killing.trial(seed)
                seed += 1
            total += killing.hits
            failed += len(killing.failures)
            hits = ", ".join(f"{n} {killing.hits[n]}" for n in sorted(killing.hits))
            print(
                f"{name:24} {sum(killing.hits.values()):4} kills ({hits}), "
                f"{len(killing.failures)} wrong; {killing.seconds:.2f} s undisturbed",
                flush=True,
            )
            for why in killing.failures[:5]:
                print(f"    {why}", flush=True)
        nursery.close()
    print(f"{'all':24} {sum(total.values()):4} kills, {failed} wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
