"""Where compiled kernels are kept: no disk or damage stops them; torch does without numba."""

import os
import pickle
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels import backends, kept_folder
from kernels.backends import BackendUnavailable, pick_backend
from tests.conftest import ROOT

CPU = torch.device("cpu")
ADD = """
import sys
from kernels.cpu import numba_cache
from numba import njit
def add(a, b):
    return a + b
add.__module__ = "kernels.probe"
sys.modules["kernels.probe"] = sys.modules[__name__]
probe = njit(cache=True)(add)
assert probe(1, 2) == 3 and probe(1.5, 2.0) == 3.5
print(numba_cache.FOLDER, sum(probe.stats.cache_hits.values()))
"""


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    (folder / "probe.py").write_text(code)  # numba's cache needs a file
    environment = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "always", **environment}
    return subprocess.run(
        [sys.executable, folder / "probe.py"], cwd=folder, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def probed(folder: Path, kept: Path | str, **environment: str) -> tuple[str, int, list[str]]:
    """The folder that was chosen, how many signatures came from it, and lines of warnings."""
    done = python(ADD, folder, NUMBA_CACHE_DIR=str(kept), **environment)
    assert done.returncode == 0, done.stderr
    chosen, hits = done.stdout.split()
    return chosen, int(hits), [line for line in done.stderr.splitlines() if "Warning" in line]


def test_kernels_come_from_the_folder_and_from_no_damaged_file(tmp_path):
    kept = tmp_path / "kept"
    assert probed(tmp_path, kept)[1] == 0
    chosen, hits, said = probed(tmp_path, kept)
    assert hits == 2 and not said and Path(chosen).parent == kept
    rng = np.random.default_rng(0)
    files = sorted(kept.rglob("*.nb?"))
    assert len(files) == 3  # an index, two signatures
    for damage in ("cut", "emptied", "flipped", "swapped", "not a pickle"):
        for file in files:
            whole = file.read_bytes()
            if damage == "cut":
                file.write_bytes(whole[: len(whole) // 2])
            elif damage == "emptied":
                file.write_bytes(b"")
            elif damage == "flipped":
                at = int(rng.integers(len(whole)))
                file.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
            elif damage == "swapped":  # as two processes at a time can leave it
                file.write_bytes(files[-1].read_bytes() if file != files[-1] else whole)
            else:
                file.write_bytes(pickle.dumps("0.0"))
        assert probed(tmp_path, kept)[1] < 2, damage
        assert probed(tmp_path, kept)[1] == 2, f"{damage}: not written again"


@pytest.mark.parametrize("kept", ["a file", "a file/below", "/proc/none", "/dev/null", "x" * 300])
def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path, kept):
    (tmp_path / "a file").touch()
    home = tmp_path / "home"
    home.mkdir()
    chosen, _, said = probed(tmp_path, kept, HOME=str(home))
    assert Path(chosen).is_relative_to(home / ".cache" / "fedclip")
    assert len(said) == 1 and "NUMBA_CACHE_DIR" in said[0]


def test_without_any_folder_kernels_are_compiled_in_memory(tmp_path):
    nowhere = "import tempfile; tempfile.tempdir = '/proc/none'\n" + ADD
    done = python(nowhere, tmp_path, NUMBA_CACHE_DIR="/proc/none", HOME="/proc/none")
    assert done.returncode == 0 and done.stdout.split() == ["None", "0"], done.stderr
    assert len([line for line in done.stderr.splitlines() if "Warning" in line]) == 1


@pytest.mark.parametrize("number", ["ENOSPC", "EROFS", "EACCES", "EDQUOT", "EIO"])
@pytest.mark.parametrize("where", ["_open_for_write", "ensure_cache_path"])
def test_a_disk_that_refuses_ends_no_compilation(tmp_path, number, where):
    refuse = (
        "import errno, os\nfrom numba.core import caching\n"
        "def refuse(*_):\n"
        f"    raise OSError(errno.{number}, os.strerror(errno.{number}))\n"
        "from kernels.cpu import numba_cache\n"
        + ("caching.IndexDataCacheFile._open_for_write = refuse\n" if where[1] == "o" else "")
    )
    late = ADD.replace("assert", "probe._cache._impl.locator.ensure_cache_path = refuse\nassert")
    code = refuse + (ADD if where[1] == "o" else late)
    done = python(code, tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert len(said) == 1 and str(tmp_path / "kept") in said[0], done.stderr


def test_another_persons_functions_keep_numbas_own_cache(tmp_path):
    theirs = ADD.replace('add.__module__ = "kernels.probe"\n', "").replace(
        "numba_cache.FOLDER", "type(probe._cache).__module__"
    )
    kept = tmp_path / "kept"
    done = python(theirs, tmp_path, NUMBA_CACHE_DIR=str(kept))
    assert done.stdout.split() == ["numba.core.caching", "0"], done.stderr
    assert [f for f in kept.rglob("*.nbi") if not f.parts[-2].startswith("numba-")]


def test_a_temporary_folder_of_another_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = kept_folder.of_temporary("x")
    assert stat.S_IMODE(mine.parent.stat().st_mode) == 0o700
    mine.parent.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write"):
        kept_folder.of_temporary("x")
    mine.parent.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    mine.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        kept_folder.of_temporary("x")


def test_numba_that_cannot_run_is_refused_by_name_and_passed_over_by_auto(monkeypatch):
    config = backends.importlib.import_module("numba.core.config")
    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    with pytest.raises(BackendUnavailable, match="NUMBA_DISABLE_JIT set; unset it, or .*'torch'"):
        pick_backend("numba", CPU)
    with pytest.warns(RuntimeWarning, match="NUMBA_DISABLE_JIT set; using 'torch'"):
        assert pick_backend("auto", CPU) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pick_backend("torch", CPU) == "torch"


def test_numba_that_cannot_be_imported_is_said(monkeypatch):
    def broken(name: str):
        raise ImportError("Numba needs NumPy 2.3 or less")

    monkeypatch.setattr(backends.importlib, "import_module", broken)
    with pytest.raises(BackendUnavailable, match="cannot be imported .*NumPy 2.3.*requirements"):
        pick_backend("numba", CPU)
    with pytest.warns(RuntimeWarning, match="NumPy 2.3"):
        assert pick_backend("auto", CPU) == "torch"


def test_a_run_on_torch_imports_no_numba(tmp_path):
    done = python(
        "import sys\nfrom pathlib import Path\n"
        "from cache.store import write_table\nfrom pipeline.reports.page import write_report\n"
        "from tests.runs.small_runs import config, run, small\n"
        "write_table('small.h5', small())\n"
        "for name, more in (('a', {}), ('b', {'mode': 'FedAtBoth', 'loss': 'class'})):\n"
        "    run(small(), Path(name), config(rounds=1, **more), backend='torch', file='small.h5')\n"
        "    write_report(name)\n"
        "print('numba' in sys.modules)",
        tmp_path, NUMBA_DISABLE_JIT="1", HOME="/proc/none", PYTHONWARNINGS="default",
    )  # fmt: skip
    assert done.stdout.split() == ["False"], done.stderr


@pytest.mark.parametrize("named", [False, True], ids=["no home", "a named folder that is a file"])
def test_triton_keeps_its_kernels_where_it_can_write(named, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    if named:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file"))
    backends._keep_triton_kernels()
    kept = os.environ["TRITON_CACHE_DIR"]
    assert kept == str(tmp_path / f"fedclip-{os.getuid()}" / "triton")
    backends._keep_triton_kernels()
    assert os.environ["TRITON_CACHE_DIR"] == kept


def test_a_folder_that_triton_was_given_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "mine"))
    backends._keep_triton_kernels()
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "mine")
