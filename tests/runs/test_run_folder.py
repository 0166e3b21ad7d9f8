"""A run's folder: one writer at a time, and a disk that is full or read-only is one line."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from pipeline import files as locked_folder
from pipeline.errors import ConfigError
from pipeline.runs import federate as runner
from pipeline.runs import folder as run_folder
from pipeline.runs.folder import open_run
from pipeline.sweeps.trials import open_sweep
from tests.cli.commands import call
from tests.conftest import ROOT, on_posix
from tests.runs.small_runs import FILES, config, run

SMALL_DISK = """
import resource, signal, sys
from pathlib import Path
from cache.store import read_table
from pipeline.errors import ConfigError
from tests.runs.small_runs import config, run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
table = read_table(Path(sys.argv[1]))
for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        run(table, Path(sys.argv[2], f"run {limit}"), config(rounds=60))
    except ConfigError as error:
        print(error)
"""


def test_two_runs_in_one_folder_are_refused(table, tmp_path):
    with open_run(tmp_path / "run"):
        with pytest.raises(ConfigError, match="another process is training in this folder"):
            run(table, tmp_path / "run")
    assert run(table, tmp_path / "run")["results"]


@on_posix("limits the size of files")
def test_a_disk_that_fills_up_loses_nothing_and_the_run_goes_on(table, tmp_path):
    run(table, tmp_path / "calm", config(rounds=60))
    log = (tmp_path / "calm" / "rounds.jsonl").stat().st_size
    adapter = (tmp_path / "calm" / "adapter.safetensors").stat().st_size
    assert log > adapter + 3000  # so that the first limit stops the log in the middle of a line
    limits = (log - 1234, adapter - 1, 10)
    command = [sys.executable, "-c", SMALL_DISK, table.source, str(tmp_path), *map(str, limits)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for limit, line in zip(limits, done.stdout.splitlines(), strict=True):
        out = tmp_path / f"run {limit}"
        assert line.startswith(f"{out}: cannot write here (File too large)")
        assert not (out / "done").exists()
        run(table, out, config(rounds=60))
        for name in FILES:
            assert (out / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()


def test_a_read_only_disk_is_told(table, tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # a root user's tests cannot take write rights away
    with pytest.raises(ConfigError, match="run: cannot write here.*Read-only.*--out"):
        run(table, tmp_path / "run")


def test_a_file_is_replaced_whole_or_not_at_all(table, tmp_path, monkeypatch):
    run(table, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "before")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(locked_folder.os, "replace", full)
    states, facts = run_folder.read_adapters(tmp_path / "run" / "adapter.safetensors")
    other = {name: 2 * tensor for name, tensor in states.items()}
    with pytest.raises(OSError, match="No space"):
        run_folder.write_adapters(tmp_path / "run" / "adapter.safetensors", other, facts)
    for name in FILES:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_checkpoints_take_a_twentieth_of_the_time_the_first_one_too(tmp_path, monkeypatch):
    now = 100.0

    def save(*_) -> None:
        nonlocal now
        now += 0.5

    monkeypatch.setattr(run_folder.time, "perf_counter", lambda: now)
    monkeypatch.setattr(run_folder, "write_adapters", save)
    with open_run(tmp_path / "run") as folder:
        folder.add_round("{}")
        assert not folder.due()  # a run of a second is not stopped for 0.1 s after its first round
        now += run_folder.FIRST_COST / run_folder.SHARE + 1e-6
        assert folder.due()
        folder.checkpoint({}, {})
        now += 9.99
        assert not folder.due()
        now += 0.02
        assert folder.due()


def test_a_round_without_a_checkpoint_gathers_nothing_for_one(table, tmp_path, monkeypatch):
    gathered = []
    real = runner.to_tensors
    monkeypatch.setattr(runner, "to_tensors", lambda *a: gathered.append(1) or real(*a))
    monkeypatch.setattr(run_folder.RunFolder, "due", lambda _: False)
    run(table, tmp_path / "run", config(rounds=3))
    assert len(gathered) == 1  # at the end


OPENED = {
    "run": open_run,
    "sweep": lambda folder: open_sweep(folder, {"base": {}}),
}


@pytest.mark.parametrize("kind", OPENED)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("inside", ["rounds.jsonl", "deep/x.bin", "."])
def test_a_file_of_the_folder_that_is_refused_is_named(tmp_path, kind, number, inside):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"out: cannot write here") as caught, OPENED[kind](out):
        raise OSError(number, os.strerror(number), str(out / inside))
    assert os.strerror(number) in str(caught.value) and "--out" in str(caught.value)
    assert inside == "." or f": {inside};" in str(caught.value)


@pytest.mark.parametrize("kind", OPENED)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.ECONNRESET])
@pytest.mark.parametrize("named", ["/elsewhere/kernel.nbi", None, "out-of-it/x", 7])
def test_what_is_refused_elsewhere_is_not_blamed_on_the_folder(tmp_path, kind, number, named):
    """A compiled kernel that cannot be kept, a broken connection: another --out helps neither."""
    named = str(tmp_path / named) if named == "out-of-it/x" else named
    more = () if named is None else (named,)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
        with OPENED[kind](tmp_path / "out"):
            raise OSError(number, os.strerror(number), *more)
    assert caught.value.filename == named


@pytest.mark.parametrize("named", ["/elsewhere/kernel.nbi", None])
def test_a_command_says_what_was_refused(table, tmp_path, monkeypatch, named):
    """The file, or where none is named the function that met it."""

    def refuse_to_train(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", *([named] if named else []))

    monkeypatch.setattr("pipeline.runs.federate.capture_rounds", refuse_to_train)
    done = call("federate", table.source, "--out", tmp_path / "out", code=1)
    assert done.output.splitlines()[-1].startswith("Error: ")
    assert (named or "refuse_to_train") in done.output and "cannot write here" not in done.output


@pytest.mark.parametrize("fails", ["write", "flush", "fsync"])
def test_an_error_without_a_name_gets_the_files(tmp_path, monkeypatch, fails):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_run(tmp_path / "run") as opened:
        opened.add_round("{}")
        if fails == "fsync":
            monkeypatch.setattr(os, "fsync", full)
        else:
            opened._rounds.close()
            monkeypatch.setattr(opened, "_rounds", mock.Mock(**{f"{fails}.side_effect": full}))
        with pytest.raises(OSError) as caught:
            opened.checkpoint({}, {}) if fails == "fsync" else opened.add_round("{}")
    assert caught.value.filename == str(tmp_path / "run" / "rounds.jsonl")
