"""Eight processes at one folder or file at the same moment: one works, the others are told.

    python -m tests.reliability.races --count 10

All are forked and let loose together, with the same settings or with two seeds. Each must end
done or with one line that says that another is at work, or that something else is there already;
what is left must be what one process alone leaves. Exit code 1 where it is not.
"""

import argparse
import functools
import hashlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from cache.store import verify, write_table
from cache.table import CacheError
from pipeline.errors import ConfigError
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options
from tests.runs.small_runs import FILES, config, run, small

PROCESSES = 8
DONE, BUSY, OTHER, WRONG = 0, 1, 2, 3
WORDS = {BUSY: ("another process", "another extraction"), OTHER: ("holds a", "exists")}
"""What those that may not work are told: somebody is at it, or it is there already."""


def federated(folder: Path, seed: int, backend: str) -> None:
    """A run."""
    run(small(), folder, config(seed=seed), backend=backend)


def swept(folder: Path, seed: int, backend: str) -> None:
    """A sweep of two trials."""
    spec = from_options(["lr=1e-3,1e-2"])
    base = config(seed=seed, held_out=(("a",),))
    sweep(small(), spec, base, runs=folder, out=folder, device="cpu", backend=backend)


def cached(folder: Path, seed: int, backend: str) -> None:
    """A cache file."""
    folder.mkdir(exist_ok=True)
    write_table(folder / "x.h5", small(seed=seed))
    verify(folder / "x.h5")


Job = Callable[[Path, int], None]
JOBS: dict[str, tuple[Callable[[Path, int, str], None], tuple[str, ...]]] = {
    "federate": (federated, FILES),
    "sweep": (swept, ("spec.json",)),
    "cache": (cached, ("x.h5",)),
}


def race(job: Job, folder: Path, seeds: list[int], apart: float) -> list[int]:
    """Lets one process a seed loose on the folder, some seconds apart; returns how each ended."""
    ready, go = os.pipe(), os.pipe()
    children = []
    for place, seed in enumerate(seeds):
        child = os.fork()
        if child == 0:
            os.close(go[1])
            os.write(ready[1], b".")
            os.read(go[0], 1)  # until the parent closes its end
            time.sleep(place * apart)
            os._exit(_ended(job, folder, seed))
        children.append(child)
    for _ in children:
        os.read(ready[0], 1)
    for end in (*go, *ready):
        os.close(end)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _ended(job: Job, folder: Path, seed: int) -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # eight progress bars
    try:
        job(folder, seed)
    except (ConfigError, CacheError) as error:
        told = str(error)
        return next((code for code in WORDS if any(word in told for word in WORDS[code])), WRONG)
    except BaseException:
        return WRONG
    return DONE


def contents(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Digests of what is compared."""
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]


def races(count: int, base: Path, backend: str = "auto") -> Counter[str]:
    """Races of every job, with equal and with unlike seeds, and what came out."""
    found: Counter[str] = Counter()
    torch.set_num_threads(1)  # no thread may live when it forks
    for name, (work, names) in JOBS.items():
        job, wanted = functools.partial(work, backend=backend), []
        for seed in (0, 1):
            (base / f"{name} {seed}").mkdir()
            if os.fork() == 0:
                os._exit(_ended(job, base / f"{name} {seed}", seed))
            assert os.waitstatus_to_exitcode(os.wait()[1]) == DONE
            wanted.append(contents(base / f"{name} {seed}", names))
        for number in range(count):
            alike = number % 2 == 0
            folder = base / f"{name} race {number}"
            seeds = [0] * PROCESSES if alike else [place % 2 for place in range(PROCESSES)]
            ended = race(job, folder, seeds, apart=0.0 if number % 4 < 2 else 0.05)
            left = contents(folder, names)
            sound = left == wanted[0] if alike else left in wanted
            found["races"] += 1
            found["processes"] += len(ended)
            for code in ended:
                found[("done", "told: busy", "told: there already", "WRONG")[code]] += 1
            found["WRONG"] += (DONE not in ended) + (not sound)
    return found


def main() -> int:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10, help="Races of each of the three jobs.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = races(asked.count, Path(folder))
    print("  ".join(f"{name} {number}" for name, number in found.items()))
    return 1 if found["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
