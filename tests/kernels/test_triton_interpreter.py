"""The Triton kernels, run step by step in Python: the same tests as every other backend.

The switch must be set before triton is imported, hence a process of their own.
"""

import os
import subprocess
import sys

from tests.conftest import ROOT
from tests.packages import need

TESTS = ROOT / "tests" / "kernels"

OPTIONS = (
    "-q", "-p", "no:cacheprovider", "-k", "triton",
    # The interpreter's tl.max is numpy's nanmax; a test trains a lane of NaN beside others.
    "-W", "ignore:All-NaN slice encountered:RuntimeWarning",
    # Triton 3.6's makes an int of an array of one where a loop's end is an argument.
    "-W", "ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning",
)  # fmt: skip
GROUPS = (("test_adapter_step.py", "test_contrastive.py"), ("triton_interpreted.py",))


def test_triton_kernels_pass_the_tests_of_all_backends():
    need("triton")
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "pytest", *OPTIONS, *(str(TESTS / name) for name in group)],
            cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for group in GROUPS  # side by side: on two cores in half the time
    ]  # fmt: skip
    said = [process.communicate()[0] for process in running]
    for process, output in zip(running, said, strict=True):
        assert not process.returncode and " passed" in output, output[-6000:]
