"""Cost of compiling the numba kernels: a first use with and without compiled code on disk."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Times
from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parent.parent

BEFORE = """
import time
import torch
from benchmarks.kernels import RELEASED, problem
from kernels.adapter import AdamSettings
from kernels.step import adapter_steps
from kernels.answers.top1 import adapter_top1
from kernels.heads.plain import Kind, first_row
from kernels.local import Settings, Work, local_steps
adapters, features, labels, text = problem(1, 64, 3, 40, torch.device("cpu"))
rows = torch.arange(8, dtype=torch.int32).view(1, 1, 8)
settings = AdamSettings(*(torch.tensor([RELEASED[n]]).double() for n in AdamSettings._fields))
kind = Kind("FedAtImg", "linear", 64, 3)
adapter = first_row(kind, "default", 0, text)[None]
others = Settings(*settings, momentum=torch.zeros(1).double(), mu=torch.zeros(1).double())
started, cpu = time.perf_counter(), time.process_time()
"""
RELEASED_STEP = """
adapter_steps(adapters, features, labels, text, rows, settings, logit_scale=1, backend="numba")
adapter_top1(adapters, features, text, [torch.arange(40)], backend="numba")
"""
OTHER_STEP = """
local_steps(Work(kind, "class"), adapter, features, labels, text, text, rows, others,
            logit_scale=1, backend="numba")
"""
AFTER = """
print(time.perf_counter() - started, time.process_time() - cpu)
"""

IMPORT = """
import sys, time
started, cpu = time.perf_counter(), time.process_time()
import pipeline.cli.app
print(time.perf_counter() - started, time.process_time() - cpu)
assert not {"numba", "llvmlite", "torch"} & set(sys.modules), "importing the commands loads them"
"""


def run(quick: bool) -> list[Row]:
    """First use of a training step and of an evaluation, and importing the commands.

    All other training steps are one kernel; it is timed separately, and not in a quick run.
    """
    works = {"training step and top-1, numba": BEFORE + RELEASED_STEP + AFTER}
    if not quick:
        works["any other training step, numba"] = BEFORE + OTHER_STEP + AFTER
    found = {}
    for _ in range(1 if quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            for work, code in works.items():
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    for name in ("first use, nothing kept", "first use, compiled code kept"):
                        _time(code, found.setdefault((work, name), Times()), own)
            name = "importing the commands"
            _time(IMPORT, found.setdefault((next(iter(works)), name), Times()), folder)
    return [
        Row("compile", name, work, "process", **times.quantiles())
        for (work, name), times in found.items()
    ]


def _time(code: str, into: Times, folder: str) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(Path(folder))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"a first use exited with {done.returncode}:\n{done.stderr}")
    seconds, cpu = map(float, done.stdout.split())
    into.seconds.append(seconds)
    into.cpu.append(cpu)
