"""The Triton kernels, run step by step in Python: the same tests as every other backend.

The switch must be set before triton is imported, hence a process of their own.
"""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# The interpreter's tl.max is numpy's nanmax; a test trains a lane of NaN beside others.
OPTIONS = ("-q", "-p", "no:cacheprovider", "-k", "triton",
           "-W", "ignore:All-NaN slice encountered:RuntimeWarning")  # fmt: skip
FILES = ("test_adapter_step.py", "test_contrastive.py", "triton_interpreted.py")


def test_triton_kernels_pass_the_tests_of_all_backends():
    pytest.importorskip(
        "triton", reason="triton is not installed (it has no wheel for this system)"
    )
    files = [str(ROOT / "tests" / name) for name in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, *files],
        cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode and " passed" in done.stdout, done.stdout[-6000:] + done.stderr
