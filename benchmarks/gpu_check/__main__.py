"""Run the stages of the GPU check one after another, each in a process with a time limit.

A stage prints JSON lines; each is printed and appended to the result file at once, so that nothing
is lost if a stage, the driver or the machine fails. A stage that fails or hangs is recorded with
the end of its stderr, and the next one runs.
"""

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from benchmarks.rows import RESULTS, markdown

ROOT = Path(__file__).resolve().parents[2]
NO_GPU = 5  # kernels/backends.py: BackendUnavailable
TAIL = 30  # lines kept of a stage's stderr
PATIENCE = 20  # factor on a stage's limit with --pretend, where speed means nothing
GRACE = 5.0  # seconds to wait for a killed stage to exit; one stuck in the driver never does


class Stage(NamedTuple):
    """A stage of benchmarks/gpu_check/stages.py and its time limits in seconds."""

    name: str
    full: float
    quick: float
    what: str


STAGES = (
    Stage("versions", 30, 20, "versions, and peak rates of memory and products"),
    Stage("tests", 90, 45, "tests marked gpu, in parallel processes"),
    Stage("pacs", 30, 20, "a PACS-shaped run compared with the CPU's"),
    Stage("round", 30, 20, "a captured round: replay and host time, time per kernel"),
    Stage("lanes", 40, 15, "1,200 lanes, 5 rounds"),
    Stage("contrastive", 60, 20, "contrastive at 8k and 32k pairs, fast and exact, against eager"),
    Stage("variants", 60, 0, "other tile sizes, overlapping launches"),
    Stage("extraction", 60, 20, "images/s for a ViT-B/32 with random weights"),
    Stage("sanitizer", 60, 0, "compute-sanitizer on small steps"),
)
"""A quick limit of 0: skipped with --quick. Limits add up to 460 and 160 seconds (tested)."""
PRETEND = """
import runpy, sys
import tests.fake_gpu.pretended_cuda
sys.argv = ["stages", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu_check.stages", run_name="__main__", alter_sys=True)
"""


class Record(NamedTuple):
    """How a stage ended."""

    stage: str
    status: str  # ok, failed, timed out
    seconds: float
    limit: float
    lines: list[dict[str, Any]]
    stderr: list[str]


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 if every stage was ok, 1 if one was not, 5 without a GPU."""
    asked = _parser().parse_args(arguments)
    if not asked.pretend and not torch.cuda.is_available():
        print(
            f"Error: torch {torch.__version__} sees no CUDA device; install a CUDA build of "
            "torch and the driver. Without a GPU, --pretend tests this command",
            file=sys.stderr,
        )
        return NO_GPU
    size = "pretend" if asked.pretend else "quick" if asked.quick else "full"
    chosen = [s for s in STAGES if (s.name in asked.stage or not asked.stage)]
    if asked.quick:
        chosen = [s for s in chosen if s.quick]
    file = asked.out or _result_file(size)
    file.parent.mkdir(parents=True, exist_ok=True)
    records = []
    with file.open("a", encoding="utf-8") as kept:

        def keep(line: dict[str, Any]) -> None:
            for out in (kept, sys.stdout):
                print(json.dumps(line), file=out, flush=True)

        for stage in chosen:
            limit = stage.quick if asked.quick else stage.full
            limit *= PATIENCE if asked.pretend else 1
            print(f"{stage.name}: {stage.what}; limit {limit:g} s", file=sys.stderr, flush=True)
            record = run_stage(stage.name, command(stage.name, size), limit, keep)
            records.append(record)
            keep({k: v for k, v in record._asdict().items() if k != "lines"})
    print(f"\n{summary(records)}\n\nsaved to {file}")
    return 0 if all(record.status == "ok" for record in records) else 1


def command(stage: str, size: str) -> list[str]:
    """The command that runs a stage in its own process."""
    if size == "pretend":
        return [sys.executable, "-c", PRETEND, stage, size]
    return [sys.executable, "-m", "benchmarks.gpu_check.stages", stage, size]


def run_stage(
    name: str, words: list[str], limit: float, keep: Callable[[dict[str, Any]], None]
) -> Record:
    """Run one stage to its end or its limit; `keep` gets each line as it arrives."""
    started = time.perf_counter()
    lines: list[dict[str, Any]] = []
    said: list[str] = []

    def hear(stream: IO[str]) -> None:
        for line in _lines(stream):
            try:
                found = {"stage": name, **json.loads(line)}
            except (ValueError, TypeError):  # printed by a library
                said.append(line)
                continue
            lines.append(found)
            keep(found)

    environment = dict(os.environ)
    if words[1:3] == ["-c", PRETEND]:
        environment["TRITON_INTERPRET"] = "1"
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="replace", start_new_session=True, env=environment,
    )  # fmt: skip
    readers = [
        threading.Thread(target=hear, args=(process.stdout,), daemon=True),
        threading.Thread(target=lambda: said.extend(_lines(process.stderr)), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        code = process.wait(limit)
        status = "ok" if code == 0 else "failed"
    except subprocess.TimeoutExpired:
        status = "timed out"
    finally:  # also on an interrupt; includes the stage's own child processes
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    for reader in readers:
        reader.join(GRACE)
    seconds = round(time.perf_counter() - started, 2)
    return Record(name, status, seconds, limit, list(lines), said[-TAIL:] if status != "ok" else [])


def summary(records: list[Record]) -> str:
    """A Markdown table: one line per stage, followed by one per figure."""
    head = ["stage", "status", "seconds", "limit", "result"]
    body = []
    for record in records:
        seconds = f"{record.seconds:.1f}", f"{record.limit:g}"
        last = record.stderr[-1] if record.stderr else ""
        body.append([record.stage, record.status, *seconds, last[:100]])
        body += [["", "", "", "", line["summary"]] for line in record.lines if "summary" in line]
    return markdown(head, body)


def _lines(stream: IO[str]) -> Iterator[str]:
    with stream:
        for line in stream:
            yield line.rstrip()


def _result_file(size: str) -> Path:
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    return RESULTS / "gpu-check" / f"{size}-{now}.jsonl"


def _parser() -> argparse.ArgumentParser:
    names = ", ".join(stage.name for stage in STAGES)
    parser = argparse.ArgumentParser(
        prog="./run.sh gpu-check", usage="./run.sh gpu-check [OPTIONS]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="smaller sizes; under 3 minutes")
    parser.add_argument("--pretend", action="store_true",
                        help="tiny sizes on a pretended device, to test this command")  # fmt: skip
    parser.add_argument("--stage", action="append", default=[],
                        choices=[s.name for s in STAGES],
                        metavar="NAME", help=f"one of {names}; can be repeated")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="result file; default benchmarks/results/gpu-check/")  # fmt: skip
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # also ends its stage
    sys.exit(main())
