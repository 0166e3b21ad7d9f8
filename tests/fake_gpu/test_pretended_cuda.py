"""The code of the GPU on a device that is none: what is refused there would fail on a real one.

Both files run in processes of their own, since the device is put in before torch is imported.
"""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.packages import need

FILES = {
    "fake_gpu/on_pretended_cuda.py": "on_pretended_cuda or test",  # all of it
    # What is done soon.
    "kernels/test_gpu.py": "(graph and not large) or 33-65 or (14.3 and (shape0 or shape1 or 33-))",
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a real one: tests/kernels/test_gpu.py")
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed: apt install g++")
def test_the_gpu_s_code_runs_on_a_pretended_device():
    need("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.fake_gpu.pretended_cuda",
               "-p", "no:cacheprovider"]  # fmt: skip
    running = [
        subprocess.Popen(
            [*command, "-k", chosen, str(ROOT / "tests" / file)], cwd=ROOT, text=True,
            env={**os.environ, "TRITON_INTERPRET": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for file, chosen in FILES.items()
    ]  # fmt: skip
    said = [process.communicate()[0] for process in running]
    for process, output in zip(running, said, strict=True):
        assert not process.returncode and " passed" in output, output[-6000:]
        assert "skipped" not in output.splitlines()[-1], output[-6000:]
