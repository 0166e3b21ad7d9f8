"""./run.sh docs-check: each command of the documentation, run in a scratch copy on small data."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import ROOT
from tests.docs_commands import PAGES, Plan, Shown, parse, plan, shown_commands
from tests.docs_standins import FIRST, make_standins

MADE = {"data", "runs", "cache/files"}  # by commands, not in git; nor is what begins with a dot
LIMIT = 300  # seconds a command may take


def main() -> int:
    """Prints a line a command as it ends; the exit code."""
    with tempfile.TemporaryDirectory(prefix="docs-check-") as scratch:
        copy = Path(scratch) / "project"
        shutil.copytree(ROOT, copy, ignore=left_out)
        (Path(scratch) / "home").mkdir()
        make_standins(copy)
        for words in FIRST:
            code, _, said = run(["./run.sh", *shlex.split(words)], copy)
            if code:
                print(f"stand-ins: ./run.sh {words} ended with {code}\n{said}", file=sys.stderr)
                return 1
        return check_all([one for page in PAGES if page.exists() for one in shown_commands(page)],
                         copy)  # fmt: skip


def check_all(commands: list[Shown], copy: Path) -> int:
    """Each command once, wherever it stands first; 1 when one failed."""
    seen: set[str] = set()
    counts = {"ran": 0, "parsed": 0, "FAILED": 0}
    print(f"{'where':<24} {'how':<7} {'code':>4} {'seconds':>8}  command")
    for shown in commands:
        if shown.text in seen:
            continue
        seen.add(shown.text)
        how, code, seconds, said = check(shown.text, plan(shown.text), copy)
        counts[how] += 1
        spent = f"{seconds:.1f}" if seconds else "-"
        where = f"{shown.page}:{shown.line}"
        print(f"{where:<24} {how:<7} {code:>4} {spent:>8}  {shown.text}", flush=True)
        for line in _beside(shown.text, plan(shown.text), said if how == "FAILED" else ""):
            print(f"{'':<46} {line}", flush=True)
    print(", ".join(f"{number} {how}" for how, number in counts.items()))
    return 1 if counts["FAILED"] else 0


def check(command: str, how: Plan, copy: Path) -> tuple[str, str, float, str]:
    """Parsed, and run where the plan says so: ran, parsed or FAILED; exit code; seconds; output."""
    if how.words is None:
        return "FAILED", "-", 0.0, "not a command that docs-check knows (tests/docs_commands.py)"
    try:
        parse(command)
    except Exception as error:  # whatever it is, this command does not parse
        return "FAILED", "-", 0.0, f"{type(error).__name__}: {error}"
    if not how.run:
        return "parsed", "-", 0.0, ""
    code, seconds, said = run(how.words, copy)
    return "FAILED" if code else "ran", str(code), seconds, said


def left_out(folder: str, names: list[str]) -> list[str]:
    """What shutil.copytree leaves out of a copy of the project: what is not in git."""
    here = Path(folder).relative_to(ROOT)
    return [
        name for name in names
        if name.startswith(".") or name == "__pycache__" or (here / name).as_posix() in MADE
    ]  # fmt: skip


def run(words: list[str], copy: Path) -> tuple[int, float, str]:
    """Exit code, seconds and the end of the output of one command in the copy."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "TMPDIR")}
    given = kept | {"HOME": str(copy.parent / "home"), "FEDCLIP_PYTHON": sys.executable}
    start = time.perf_counter()
    try:
        done = subprocess.run(words, cwd=copy, env=given, capture_output=True, text=True,
                              timeout=LIMIT)  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, time.perf_counter() - start, f"not done after {LIMIT} s"
    return done.returncode, time.perf_counter() - start, (done.stdout + done.stderr)[-1500:]


def _beside(text: str, how: Plan, said: str) -> list[str]:
    lines = [how.why] if how.why and not how.run else []
    if how.run and how.words and how.words != shlex.split(text):
        lines.append(f"as {shlex.join(how.words)}" + (f" ({how.why})" if how.why else ""))
    return lines + said.strip().splitlines()


if __name__ == "__main__":
    sys.exit(main())
