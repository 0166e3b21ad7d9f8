"""Fixtures every test file may use."""

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of third-party data; FEDCLIP_SHARED names it, and then it must be there."""
    named = os.environ.get("FEDCLIP_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared"
    if not folder.is_absolute():
        folder = ROOT / folder
    if not (folder / "data").is_dir():
        if named:
            pytest.fail(f"FEDCLIP_SHARED={named}: there is no {folder / 'data'}")
        pytest.skip(f"no shared data at {folder}; set FEDCLIP_SHARED to the folder that has it")
    return folder
