"""What compiling the numba kernels costs: a first use, without and with code kept on disk."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Times
from benchmarks.rows import Row

ROOT = Path(__file__).resolve().parent.parent

FIRST_USE = """
import time
import torch
from benchmarks.kernels import RELEASED, problem
from kernels.adapter import AdamSettings
from kernels.adapter_step import adapter_steps
from kernels.adapter_top1 import adapter_top1
adapters, features, labels, text = problem(1, 64, 3, 40, torch.device("cpu"))
settings = AdamSettings(*(torch.tensor([RELEASED[n]]).double() for n in AdamSettings._fields))
rows = torch.arange(8, dtype=torch.int32).view(1, 1, 8)
started, cpu = time.perf_counter(), time.process_time()
adapter_steps(adapters, features, labels, text, rows, settings, logit_scale=1, backend="numba")
adapter_top1(adapters, features, text, [torch.arange(40)], backend="numba")
print(time.perf_counter() - started, time.process_time() - cpu)
"""

IMPORT = """
import sys, time
started, cpu = time.perf_counter(), time.process_time()
import pipeline.cli
print(time.perf_counter() - started, time.process_time() - cpu)
assert not {"numba", "llvmlite", "torch"} & set(sys.modules), "importing the commands loads them"
"""


def run(quick: bool) -> list[Row]:
    """First use of a training step and of an evaluation, and importing the commands."""
    cold, kept, imports = Times(), Times(), Times()
    for _ in range(1 if quick else 3):
        with tempfile.TemporaryDirectory() as folder:
            _time(FIRST_USE, cold, folder)
            _time(FIRST_USE, kept, folder)
            _time(IMPORT, imports, folder)
    return [
        Row("compile", name, "training step and top-1, numba", "process", **times.quantiles())
        for name, times in (
            ("first use, nothing kept", cold),
            ("first use, compiled code kept", kept),
            ("importing the commands", imports),
        )
    ]


def _time(code: str, into: Times, folder: str) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(Path(folder))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"a first use ended with {done.returncode}:\n{done.stderr}")
    seconds, cpu = map(float, done.stdout.split())
    into.seconds.append(seconds)
    into.cpu.append(cpu)
