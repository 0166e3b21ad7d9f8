"""Memory over many rounds: samples what the process holds, and says how much it grew.

    python -m tests.reliability.memory --rounds 10000

A run on a tiny table, in this process; resident memory after every hundredth round. What is kept a
round (a line of rounds.jsonl) goes to disk. The first tenth is warm-up: allocators and caches fill.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from pipeline.federation import training as module
from pipeline.runs.federate import federate
from pipeline.settings import RunConfig
from tests.runs.small_runs import small


def resident_bytes() -> int:
    """What the process holds in memory now; Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def sample(rounds: int, every: int, folder: Path, **settings) -> tuple[list[int], list[int]]:
    """Resident bytes and the log's bytes after every so many rounds of one run."""
    held, logged = [], []
    advance = module.advance

    def watched(engine, progress):
        if progress.rounds_done and progress.rounds_done % every == 0:
            held.append(resident_bytes())
            logged.append((folder / "run" / "rounds.jsonl").stat().st_size)
        return advance(engine, progress)

    module.advance = watched
    try:
        config = RunConfig(
            **({"held_out": (("a",), ("b",)), "rounds": rounds, "batch": 8} | settings)
        )
        federate(small(), config, runs=folder, out=folder / "run", device="cpu")
    finally:
        module.advance = advance
    return held, logged


def main() -> None:
    """Prints what was held after the warm-up and at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--method", default="fedavg")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        held, logged = sample(asked.rounds, 100, Path(folder), method=asked.method)
    warm = held[len(held) // 10 :]
    print(
        f"{asked.method}, {asked.rounds:,} rounds: {warm[0] / 1e6:.1f} MB after the first tenth, "
        f"{warm[-1] / 1e6:.1f} MB at the end, {max(warm) / 1e6:.1f} MB at most; "
        f"rounds.jsonl {logged[-1] / 1e6:.2f} MB, {logged[-1] / asked.rounds:.0f} bytes a round"
    )
    sys.exit(warm[-1] - warm[0] > 8e6)


if __name__ == "__main__":
    main()
