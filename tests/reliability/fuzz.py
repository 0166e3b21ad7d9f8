"""Damages files by the thousand and looks at what reads them (tests/reliability/readers.py).

    python -m tests.reliability.fuzz --count 300             300 files of each kind
    python -m tests.reliability.fuzz --kind npz --count 5000
    python -m tests.reliability.fuzz --engine random         without atheris: no coverage guidance

Every kind runs in a process of its own, which may crash without ending the others. A file is fine
when each reader refuses it with one of the product's own errors, in one line, or makes of it what
the undamaged file gives (kinds that a person may write, or a forger: whatever it says). All else is
a finding, kept under --out: a crash of the interpreter, more than 10 s, any other exception, other
content taken for the sound one. Exit code 1 when there are any.

With atheris (requirements-fuzz.txt) libFuzzer watches which lines and branches of cache/ and
pipeline/ a file reaches and damages those further that reach new ones: a third of all damage. A
third is ours on top of such files, a third ours of the sound ones.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.reliability.mutate import mutate

SECONDS = 10
MEGABYTES = 4096


class Judge:
    """Counts files of one kind and keeps what is wrong."""

    def __init__(self, name: str, place: Path, out: Path) -> None:
        from tests.reliability.readers import KINDS

        place.mkdir(exist_ok=True)
        self.kind, self.name, self.place, self.out = KINDS[name], name, place, out
        self.sound = self.kind.prepare(place)
        self.wanted = [self.kind.read(place, data) for data in self.sound]
        assert any(self.wanted), f"{name}: no reader takes the undamaged file"
        self.counts: Counter[str] = Counter()
        self.seen: set[bytes] = set(self.sound)
        self.found: dict[str, str] = {}

    def look(self, data: bytes) -> None:
        """Reads one damaged file; one that was seen before does not count."""
        if data in self.sound:
            self.kind.read(self.place, data)  # for libFuzzer, which asks what a sound one reaches
        if data in self.seen:
            return
        self.seen.add(data)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "current").write_bytes(data)  # what a crash or a kill leaves behind
        started = time.monotonic()
        try:
            made = self.kind.read(self.place, data)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            self._keep(data, f"{type(error).__name__}: {error}"[:300] + f" at {where}")
            return
        if time.monotonic() - started > SECONDS:
            self._keep(data, f"took over {SECONDS} s")
        others = [n for n, v in made.items() if all(w.get(n) != v for w in self.wanted)]
        if others and self.kind.strict:
            self._keep(data, f"{', '.join(others)} took other content without a word")
        elif others:
            self.counts["other content"] += 1
        else:
            self.counts["same content" if made else "refused"] += 1

    def _keep(self, data: bytes, why: str) -> None:
        self.counts["FINDINGS"] += 1
        where = why.rpartition(" at ")[2][:200]
        if where not in self.found and len(self.found) < 20:
            self.found[where] = why
            (self.out / f"finding {len(self.found)}").write_bytes(data)

    def report(self) -> None:
        """Leaves counts and findings for the parent."""
        counts = {"files": sum(self.counts.values()), **self.counts}
        self.out.mkdir(parents=True, exist_ok=True)
        found = {"counts": counts, "findings": list(self.found.values())}
        (self.out / "counts.json").write_text(json.dumps(found))


def run_random(judge: Judge, count: int, seed: int) -> None:
    """Damage of the sound files only, drawn by the seed."""
    draw = random.Random(seed)
    while sum(judge.counts.values()) < count:
        judge.look(mutate(draw.choice(judge.sound), draw, judge.sound))


def run_atheris(judge: Judge, count: int, seed: int, corpus: Path) -> None:
    """Damage of whatever reached something new, half of it libFuzzer's and half ours."""
    import atheris

    draw = random.Random(seed)

    def damage(data: bytes, largest: int, number: int) -> bytes:
        # libFuzzer's corpus shrinks to the shortest file for each line: whole ones, too.
        base = draw.choice((draw.choice(judge.sound), data, None))
        if base is None:
            return atheris.Mutate(data, largest)
        return mutate(base, draw, judge.sound)[:largest]

    def one(data: bytes) -> None:
        judge.look(data)
        if sum(judge.counts.values()) >= count:
            judge.report()
            import os

            os._exit(0)  # libFuzzer has no other way to end after a number of new files

    corpus.mkdir()
    for number, data in enumerate(judge.sound):
        (corpus / str(number)).write_bytes(data)
    longest = 2 * max(map(len, judge.sound))
    words = [sys.argv[0], f"-seed={seed + 1}", f"-timeout={SECONDS}", f"-max_len={longest}"]
    words += [
        f"-rss_limit_mb={MEGABYTES}",
        "-print_final_stats=0",
        f"-artifact_prefix={judge.out}/",
    ]
    atheris.Setup([*words, str(corpus)], one, custom_mutator=damage)
    atheris.Fuzz()


def work(name: str, engine: str, count: int, seed: int, out: Path) -> None:
    """One kind, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        if engine == "atheris":
            import atheris

            with atheris.instrument_imports(include=["cache", "pipeline"]):
                import tests.reliability.readers  # noqa: F401
        judge = Judge(name, Path(folder), out)
        if engine == "atheris":
            run_atheris(judge, count, seed, Path(folder) / "corpus")
        else:
            run_random(judge, count, seed)
        judge.report()


def main() -> int:
    """All kinds one after the other, each in a process of its own; a table of counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", action="append", metavar="KIND", help="All unless named.")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--engine", default="atheris", choices=["atheris", "random"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(asked.kind[0], asked.engine, asked.count, asked.seed, asked.out)
        return 0
    from tests.reliability.readers import KINDS  # not above: atheris instruments what it imports

    total: Counter[str] = Counter()
    for name in asked.kind or KINDS:
        total += one_kind(name, asked)
    print(f"{'all':34} " + "  ".join(f"{n} {total[n]:,}" for n in total))
    return 1 if total["FINDINGS"] else 0


def one_kind(name: str, asked: argparse.Namespace) -> Counter[str]:
    """Runs a worker and says what it found."""
    out = (asked.out / name.replace(" ", "_").replace(",", "")).resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    words = ["--worker", "--kind", name, "--count", str(asked.count), "--engine", asked.engine]
    words += ["--seed", str(asked.seed), "--out", str(out)]
    with (out / "output").open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", "tests.reliability.fuzz", *words],
            stdout=output, stderr=subprocess.STDOUT, timeout=60 + SECONDS * asked.count,
        )  # fmt: skip
    counts, findings = Counter(), []
    if (out / "counts.json").exists():
        found = json.loads((out / "counts.json").read_text())
        counts, findings = Counter(found["counts"]), found["findings"]
    if done.returncode:
        counts["FINDINGS"] += 1
        findings.append(f"the process ended with {done.returncode}; see {out}/output and current")
    print(f"{name:34} " + "  ".join(f"{n} {counts[n]:,}" for n in counts), flush=True)
    for why in findings:
        print(f"    {why}", flush=True)
    return counts


if __name__ == "__main__":
    sys.exit(main())
