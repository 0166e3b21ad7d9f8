"""Too little memory, threads, files or shared memory: a result or one line, and never a wait."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from cache.npz import read_npz
from cache.store import write_table
from pipeline import shortage
from pipeline.shortage import BASE_KB
from tests.conftest import ROOT, on_posix
from tests.extraction.extraction import run

PATIENCE = 300  # seconds, for a machine that does much else
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

pytestmark = on_posix("sets limits in a shell")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shortage")
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    text = rng.normal(size=(3, 16)).astype(np.float32)
    features = (text[labels] + rng.normal(size=(60, 16))).astype(np.float32)
    rows = {"features": features, "labels": labels, "domains": np.arange(60) // 3 % 3}
    np.savez(folder / "x.npz", text_features=text, **rows)
    write_table(folder / "x.h5", read_npz(folder / "x.npz"))
    return folder / "x.h5"


def limited(words: str, command: list, where: Path) -> subprocess.CompletedProcess:
    """The command after these words of a shell; killed after PATIENCE."""
    own = " ".join([sys.executable, "-m", "pipeline", *map(str, command)])
    return subprocess.run(
        ["sh", "-c", f"{words} exec {own}"], env=ENVIRONMENT, cwd=where, capture_output=True,
        text=True, timeout=PATIENCE,
    )  # fmt: skip


def last_line(done: subprocess.CompletedProcess) -> str:
    assert "Traceback" not in done.stderr, done.stderr
    return done.stderr.rstrip().splitlines()[-1]


@pytest.mark.parametrize("command", ["federate", "sweep", "extract", "predict", "report"])
def test_too_little_address_space_is_refused_before_anything_waits_for_it(cache, tmp_path, command):
    named = {
        "federate": [cache, "--rounds", 1],
        "sweep": [cache, "--rounds", 1, "--grid", "lr=1e-3,1e-2"],
        "extract": ["--dataset", tmp_path, "--model", "demo"],
        "predict": ["x.png", "--run", tmp_path],
        "report": [tmp_path],
    }[command]
    done = limited(f"ulimit -v {BASE_KB};", [command, *named], tmp_path)
    assert done.returncode == 1 and not done.stdout
    assert last_line(done).startswith(f"Error: ulimit -v is {BASE_KB} kB, and {command} needs")
    assert not list(tmp_path.iterdir())


def test_federate_runs_in_what_it_asks_for(cache, tmp_path):
    threads = 2
    limit = BASE_KB + shortage.THREAD_KB * threads
    words = f"export OMP_NUM_THREADS={threads}; ulimit -v {limit};"
    done = limited(words, ["federate", cache, "--rounds", 1, "--out", "run"], tmp_path)
    assert done.returncode == 0, done.stderr


def test_help_and_light_commands_need_little(cache, tmp_path):
    words = f"ulimit -v {BASE_KB // 2};"
    for command in (["federate", "--help"], ["cache", "info", cache]):
        done = limited(words, command, tmp_path)
        assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate 3 GiB"), "Unable to allocate 3 GiB"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8"), "out of memory"),
        (RuntimeError("std::bad_alloc"), "out of memory"),
        (ImportError("x.so: failed to map segment from shared object"), "out of memory"),
        (RuntimeError("can't start new thread"), "no more threads"),
        (OSError(errno.EMFILE, "Too many open files", "x"), "too many open files (ulimit -n is"),
        (RuntimeError("anything else"), None),
        (OSError(errno.ENOENT, "No such file"), None),
        (ValueError(), None),
    ],
)
def test_a_shortage_is_told_from_a_bug(error, said):
    found = shortage.shortage(error)
    assert found is None if said is None else said in found and "\n" not in found


@pytest.mark.parametrize("files", [8, 16])
def test_few_open_files_are_enough_or_one_line(tree, weights, tmp_path, files):
    command = ["extract", "--dataset", tree, "--model", weights, "--out", "x.h5",
               "--device", "cpu", "--workers", 4, "--on-bad-image", "skip"]  # fmt: skip
    done = limited(f"ulimit -n {files};", command, tmp_path)
    if done.returncode:
        assert done.returncode == 1 and "too many open files" in last_line(done)
        assert not (tmp_path / "x.h5").exists()  # and no image was skipped for that
    else:
        run(tree, weights, tmp_path / "whole.h5")
        assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_no_shared_memory_is_needed(tree, weights, tmp_path):
    mount = "mount -t tmpfs -o ro none /dev/shm"
    if not shutil.which("unshare") or subprocess.run(
        ["unshare", "-m", "sh", "-c", mount], capture_output=True
    ).returncode:  # fmt: skip
        pytest.skip("no /dev/shm can be mounted: run it as root, with CAP_SYS_ADMIN")
    own = [sys.executable, "-m", "pipeline", "extract", "--dataset", tree, "--model", weights,
           "--out", "x.h5", "--device", "cpu", "--workers", 2]  # fmt: skip
    inner = f"{mount} && ! touch /dev/shm/x 2>/dev/null && exec {' '.join(map(str, own))}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", inner], env=ENVIRONMENT, cwd=tmp_path, text=True,
        capture_output=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0 and "in this process" not in done.stderr, done.stderr
    run(tree, weights, tmp_path / "whole.h5")
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


AS_NOBODY = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups",
             "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    """A folder for what the first of all commands of that user compiles."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def nobody(cache, compiled, monkeypatch):
    """A folder, with the cache, for a user without processes: root `ulimit -u` does not bind."""
    monkeypatch.setitem(ENVIRONMENT, "NUMBA_CACHE_DIR", str(compiled))
    if os.geteuid() or not (shutil.which("setpriv") and shutil.which("bash")):
        pytest.skip("becomes another user: run it as root, with setpriv and bash")
    if subprocess.run([*AS_NOBODY, "true"], capture_output=True).returncode:
        pytest.skip("root cannot become another user here: run it with CAP_SETUID and CAP_SETGID")
    if subprocess.run([*AS_NOBODY, sys.executable, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"other users cannot run {sys.executable}: use a Python open to all")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(cache, folder / "x.h5")
        for path in (folder, folder / "x.h5"):
            path.chmod(0o777)
        yield folder


def as_nobody(words: str, command: list, where: Path) -> subprocess.CompletedProcess:
    own = " ".join(map(str, ["exec", sys.executable, "-m", "pipeline", *command]))
    return subprocess.run(
        [*AS_NOBODY, "bash", "-c", f"{words} {own}"], cwd=where, capture_output=True, text=True,
        env=ENVIRONMENT, timeout=PATIENCE,
    )  # fmt: skip


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("command", ["federate", "extract", "sweep"])
def test_too_few_processes_are_refused_at_once(nobody, command, processes):
    named = {
        "federate": ["x.h5", "--rounds", 1, "--out", "run"],
        "sweep": ["x.h5", "--rounds", 1, "--grid", "lr=1e-3,1e-2", "--out", "sweep"],
        "extract": ["--dataset", nobody, "--model", "demo", "--out", "new.h5"],
    }[command]
    words = f"export OMP_NUM_THREADS=2; ulimit -u {processes};"
    done = as_nobody(words, [command, *named], nobody)
    assert done.returncode == 1 and not done.stdout, done.stderr
    assert f"Error: {command} needs 7 threads, and only {processes - 1} can" in last_line(done)
    assert f"(ulimit -u is {processes})" in last_line(done)
    assert [file.name for file in nobody.iterdir()] == ["x.h5"]


@pytest.mark.parametrize("threads", [1, 2])
def test_federate_runs_with_the_threads_it_asks_for(nobody, threads):
    limit = 1 + 3 * threads + 1
    words = f"export OMP_NUM_THREADS={threads}; ulimit -u {limit};"
    done = as_nobody(words, ["federate", "x.h5", "--rounds", 1, "--out", "run"], nobody)
    assert done.returncode == 0 and (nobody / "run" / "done").exists(), done.stderr


@pytest.mark.parametrize("allowed", range(6))
def test_threads_that_can_be_started_are_counted(monkeypatch, allowed):
    left, start = [None] * allowed, shortage.threading.Thread.start

    def limited_start(thread):
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(thread)

    monkeypatch.setattr(shortage.threading.Thread, "start", limited_start)
    assert shortage._startable(4) == min(4, allowed)


ABORTS = {
    "here": "os.abort()",
    "in a thread": "threading.Thread(target=os.abort).start(); threading.Event().wait()",
    "in a thread of a library": (
        "ctypes.CDLL(None).abort.restype = None; ctypes.PyDLL(None).abort()"
    ),
}


@pytest.mark.parametrize("where", ABORTS)
def test_an_abort_is_explained_in_one_line(where):
    code = (
        "import ctypes, os, threading; from pipeline.shortage import prepare_for_limit\n"
        f"prepare_for_limit('federate'); {ABORTS[where]}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 134 and done.stderr == shortage.ABORTED, done.stderr
    assert done.stderr.count("\n") == 1
