"""Pipes, devices, folders and endless files in place of a run's or a sweep's files: one line each.

Whatever reads them, it neither waits nor fills the memory, and ends well or with one line.
"""

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cache.store import read_table, write_table
from pipeline import files as locked_folder
from pipeline.cli.app import cli
from pipeline.digests import FINISHED
from pipeline.errors import ConfigError
from pipeline.files import check_plain, open_plain, read_plain
from pipeline.json_files import replace_file
from pipeline.runs.folder import RunFolder, read_first_adapter
from tests.cli.commands import call
from tests.conftest import NEEDS_PROC, ROOT, on_posix
from tests.reports.report_folders import made_bench
from tests.runs.small_runs import FILES, KIND, config, run, small

pytestmark = on_posix("makes pipes and links")
TERABYTE = 10**12


def folder(file: Path) -> None:
    file.mkdir()
    (file / "inside").write_bytes(b"1")


def pipe(file: Path) -> None:
    os.mkfifo(file)


def endless(file: Path) -> None:
    file.symlink_to("/dev/zero")


def silent(file: Path) -> None:
    file.symlink_to("/dev/null")


def listening(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(file.parent):
        made.bind(file.name)


def sparse(file: Path) -> None:
    with file.open("wb") as made:
        made.truncate(TERABYTE)


def circle(file: Path) -> None:
    file.symlink_to(file.name)


def long_line(file: Path) -> None:
    file.write_bytes(b"[" * 100_000)


ODD = (folder, pipe, endless, silent, listening, sparse, circle, long_line)
SWEPT = ("trials.jsonl", "spec.json", "shared.json", "selection.json", "reproduced.json")
by_name = {"ids": lambda value: getattr(value, "__name__", str(value))}


@pytest.mark.parametrize("odd", ODD, **by_name)
def test_what_is_not_a_file_of_plausible_size_is_refused(tmp_path, odd):
    file = tmp_path / "file"
    odd(file)
    for read in (check_plain, open_plain, read_plain):
        if odd is long_line:
            with pytest.raises(ConfigError, match=r"has 100,000 bytes.*at most 99,999"):
                read(file, 99_999)
            continue
        with pytest.raises(ConfigError, match=r"file: (is a|has|cannot be read)"):
            read(file, locked_folder.ADAPTERS)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_plain(tmp_path / "missing", 9)


def test_a_link_to_a_file_is_that_file(tmp_path):
    (tmp_path / "real").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("real")
    assert read_plain(tmp_path / "link", 4) == b"1234"
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="No such file"):
        read_plain(tmp_path / "gone", 4)


def test_what_becomes_a_pipe_after_the_first_look_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    before = os.stat(tmp_path / "file")
    with monkeypatch.context() as patched:
        patched.setattr(locked_folder.os, "stat", lambda file: before)
        with pytest.raises(ConfigError, match="is a pipe"):
            read_plain(tmp_path / "pipe", 9)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, an unfinished one, and a sweep of two trials, of one cache."""
    place = tmp_path_factory.mktemp("made")
    write_table(place / "small.h5", small(rows=(24, 18), classes=3, width=4))
    table = read_table(place / "small.h5")
    for name in ("run", "unfinished"):
        run(table, place / name, config(rounds=2, held_out=(("a",),)))
    for name in ("done", "summary.json"):
        (place / "unfinished" / name).unlink()
    call(*swept(place), "--out", place / "sweep")
    return place


def swept(place: Path) -> list[str]:
    return ["sweep", str(place / "small.h5"), "--grid", "lr=1e-3,1e-2", "--rounds", "2",
            "--batch", "8", "--held-out", "a", "--device", "cpu"]  # fmt: skip


def trained(place: Path) -> list[str]:
    return ["federate", str(place / "small.h5"), "--rounds", "2", "--batch", "8", "--lr", "1e-3",
            "--held-out", "a", "--device", "cpu"]  # fmt: skip


def in_one_line(words: list[str]) -> int:
    """Runs a command; its exit code, after a look at what it says."""
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1), done.output
    if done.exit_code:
        assert done.stderr.rstrip().splitlines()[-1].startswith("Error: "), done.stderr
    return done.exit_code


@pytest.mark.parametrize("odd", ODD, **by_name)
@pytest.mark.parametrize("name", [*FINISHED, "done"])
def test_odd_files_of_a_run(made, tmp_path, name, odd):
    for which in ("run", "unfinished"):
        place = tmp_path / which
        shutil.copytree(made / which, place)
        if os.path.lexists(place / name):
            (place / name).unlink()
        odd(place / name)
        resume = [*trained(made), "--out", place]
        codes = [
            in_one_line(words)
            for words in (
                ["report", place, "--csv", "--out", tmp_path / "page.html"],
                ["predict", ROOT, "--run", place],
                [*trained(made), "--init-adapter", place / name, "--out", tmp_path / "other"],
                resume,
            )
        ]
        assert codes[1] and codes[2]  # features that nobody extracted; no adapter
        # What the run's own command could not mend, --force moves out of the way.
        assert in_one_line([*resume, "--force"]) == 0
        assert in_one_line(["report", place]) == 0
        for file in FILES:
            assert (place / file).read_bytes() == (made / "run" / file).read_bytes()
        if codes[3]:
            assert os.path.lexists(place / "old-1" / name)


@pytest.mark.parametrize("odd", ODD, **by_name)
@pytest.mark.parametrize("name", SWEPT)
def test_odd_files_of_a_sweep(made, tmp_path, name, odd):
    place = tmp_path / "sweep"
    shutil.copytree(made / "sweep", place)
    if os.path.lexists(place / name):
        (place / name).unlink()
    odd(place / name)
    resume = [*swept(made), "--out", place]
    in_one_line(["report", place, "--csv", "--out", tmp_path / "page.html"])
    in_one_line(["predict", ROOT, "--run", place])
    in_one_line(resume)
    assert in_one_line([*resume, "--force"]) == 0
    assert in_one_line(["report", place]) == 0
    for file in ("trials.jsonl", "spec.json"):  # set aside, never deleted
        if file != name:
            kept = (place / "old-1" / file).read_bytes()
            assert kept == (made / "sweep" / file).read_bytes()


@pytest.mark.parametrize("odd", ODD, **by_name)
def test_odd_files_that_are_named_on_a_command_line(made, tmp_path, odd):
    file = tmp_path / "odd.jsonl"
    odd(file)
    for words in (["report", file], [*trained(made), "--init-adapter", file],
                  ["sweep", made / "small.h5", "--spec", file], ["predict", ROOT, "--run", file],
                  [*trained(made), "--out", file], [*swept(made), "--out", file],
                  ["report", made / "run", "--out", file]):  # fmt: skip
        code = in_one_line(words)
        assert code == 1 or (words[1:-1] and odd in (folder, sparse, circle, long_line))
    assert Path("/dev/null").is_char_device() and Path("/dev/zero").is_char_device()
    with pytest.raises(ConfigError):
        read_first_adapter(file, KIND)


def test_a_benchmark_that_is_a_pipe(tmp_path):
    made_bench(tmp_path / "a.jsonl")
    assert in_one_line(["report", tmp_path / "a.jsonl"]) == 0
    assert in_one_line(["report", "x" * 5000]) == 1


FAULTS = ("write", "fsync", "replace")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("number", [0, 1, 3, 5])
def test_a_disk_that_fails_leaves_nothing_behind_and_the_run_resumes(
    made, tmp_path, monkeypatch, fault, number
):
    """The write, sync or rename of this number fails, and so do all that follow it."""
    table = read_table(made / "small.h5")
    asked = config(rounds=2, held_out=(("a",),))
    for code in ERRORS:
        out = tmp_path / str(code)
        with monkeypatch.context() as patched:
            patched.setattr(RunFolder, "due", lambda folder: True)  # a checkpoint every round
            _fail(patched, fault, number, code)
            with pytest.raises(ConfigError, match="cannot write here") as error:
                run(table, out, asked)
        assert "\n" not in str(error.value) and os.strerror(code) in str(error.value)
        assert not list(out.glob("*.tmp")) and not (out / "done").exists()
        run(table, out, asked)
        for name in FILES:
            assert (out / name).read_bytes() == (made / "run" / name).read_bytes()


def _fail(patched: pytest.MonkeyPatch, fault: str, number: int, code: int) -> None:
    seen = iter(range(10**6))

    def broken(real):
        def call(*args, **options):
            if next(seen) >= number:
                raise OSError(code, os.strerror(code))
            return real(*args, **options)

        return call

    if fault != "write":
        patched.setattr(os, fault, broken(getattr(os, fault)))
        return
    real = Path.open

    def opened(self, mode="r", *args, **options):
        file = real(self, mode, *args, **options)
        return file if "r" in mode else _Failing(file, broken(file.write))

    patched.setattr(Path, "open", opened)


class _Failing:
    """A file whose writes may fail."""

    def __init__(self, file, write):
        self.file, self.write = file, write

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, fault):
    (tmp_path / "page.html").write_bytes(b"old")
    with monkeypatch.context() as patched:
        _fail(patched, fault, 0, errno.ENOSPC)
        with pytest.raises(ConfigError, match="page.html: cannot be written .No space"):
            replace_file(tmp_path / "page.html", b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
    assert (tmp_path / "page.html").read_bytes() == b"old"


def test_what_killed_processes_left_is_removed_by_the_next_start(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    other = os.getppid()
    names = ("done", "report.html", "a.b.c")
    for pid in (dead.pid, other):
        for name in names:
            (tmp_path / f"{name}.{pid}.tmp").write_bytes(b"1")
    (tmp_path / "mine.tmp").write_bytes(b"")
    (tmp_path / f"folder.{dead.pid}.tmp").mkdir()  # nobody's temporary file: no hindrance
    replace_file(tmp_path / "report.html", b"page")
    assert not (tmp_path / f"report.html.{dead.pid}.tmp").exists()
    assert (tmp_path / f"done.{dead.pid}.tmp").exists()
    with locked_folder.locked(tmp_path, "training"):
        left = {file.name for file in tmp_path.iterdir()} - {".lock"}
    assert left == {
        "report.html", "mine.tmp", f"folder.{dead.pid}.tmp",
        *(f"{name}.{other}.tmp" for name in names),
    }  # fmt: skip


@NEEDS_PROC
def test_a_folder_that_cannot_be_synced_is_written_all_the_same(tmp_path, monkeypatch):
    """Some shares answer EINVAL to a sync of a folder; other errors count."""
    real = os.fsync

    def refuse(code):
        def fsync(handle):
            if os.path.isdir(f"/proc/self/fd/{handle}"):
                raise OSError(code, os.strerror(code))
            real(handle)

        return fsync

    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    locked_folder.replace_whole(tmp_path / "a", b"1")
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        locked_folder.replace_whole(tmp_path / "a", b"2")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
