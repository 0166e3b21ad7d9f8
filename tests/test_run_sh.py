"""run.sh as the one door: from any folder, with any interpreter, and what it makes of .venv."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from cache.store import write_table
from tests.conftest import ROOT, on_posix
from tests.runs.small_runs import small

pytestmark = on_posix("run.sh is for bash")


def call(*words: object, script: Path = ROOT / "run.sh", cwd: Path = ROOT, **environment):
    given = os.environ | {"FEDCLIP_PYTHON": sys.executable} | environment
    command = [str(script), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=300)


def test_files_are_named_from_where_the_caller_stands(tmp_path):
    write_table(tmp_path / "mine.h5", small())
    (tmp_path / "cache.py").write_text("raise SystemExit('not ours')")
    (tmp_path / "link").symlink_to(ROOT / "run.sh")
    for script in (ROOT / "run.sh", tmp_path / "link"):
        done = call("cache", "verify", "mine.h5", script=script, cwd=tmp_path)
        assert done.returncode == 0 and done.stdout.startswith("mine.h5: every byte"), done.stderr


def test_an_interpreter_may_be_named_by_a_path_from_here(tmp_path):
    (tmp_path / "py").symlink_to(sys.executable)
    done = call("federate", "--help", cwd=tmp_path, FEDCLIP_PYTHON="./py", PYTHONPATH=site())
    assert done.returncode == 0 and "Usage:" in done.stdout, done.stderr


def site() -> str:
    return next(path for path in sys.path if path.endswith("site-packages"))


def test_an_interpreter_that_cannot_is_one_line(tmp_path):
    done = call("federate", FEDCLIP_PYTHON=str(tmp_path / "none"))
    assert done.returncode == 1 and "there is no such interpreter" in done.stderr
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    done = call("federate", FEDCLIP_PYTHON=str(tmp_path / "bare/bin/python"), PYTHONPATH="")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "package click is not installed" in line
    assert line.endswith(f"install -r {ROOT / 'requirements.txt'}")


@pytest.fixture
def project(tmp_path) -> Path:
    """run.sh in a folder of its own, which needs no packages and prints the words it gets."""
    shutil.copy(ROOT / "run.sh", tmp_path)
    (tmp_path / "locks").mkdir()
    for lock in ("cpu.txt", "cuda.txt"):
        (tmp_path / "locks" / lock).touch()
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__main__.py").write_text("import sys; print(sys.argv[1:])")
    return tmp_path


def test_venv_is_made_once_and_again_when_it_is_half_made_or_unlike(project):
    def run(expected_lines: int) -> None:
        done = call("say", "a b", script=project / "run.sh", FEDCLIP_PYTHON="")
        assert done.stdout == "['say', 'a b']\n", done.stderr
        assert len(done.stderr.splitlines()) == expected_lines, done.stderr

    run(1)
    run(0)
    lock = project / "locks" / f"{(project / '.venv/.torch-build').read_text().strip()}.txt"
    lock.write_text("# changed\n")
    run(1)
    (project / f".venv/.installed-locks-{lock.name}").unlink()
    (project / ".venv/bin/python").unlink()  # as a kill, or an upgrade of the system, leaves it
    run(1)


def test_a_venv_of_somebody_else_without_pip_is_left_alone(project):
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "mine").touch()
    done = call("say", script=project / "run.sh", FEDCLIP_PYTHON="")
    assert done.returncode == 1 and "was not made here" in done.stderr
    assert (project / ".venv" / "mine").exists()


def test_help_installs_nothing_but_what_all_commands_need(project):
    for name in ("bench", "dev", "flower"):
        (project / f"requirements-{name}.txt").write_text("./there-is-no-such-folder\n")
    (project / "benchmarks").mkdir()
    (project / "benchmarks" / "__main__.py").write_text("import sys; print(sys.argv[1:])")
    for words in ("flower --help", "flower run -h", "flower run --sites 2 --help", "bench --help",
                  "bench --quick -h", "federate --help"):  # fmt: skip
        done = call(*words.split(), script=project / "run.sh", FEDCLIP_PYTHON="")
        assert done.returncode == 0, done.stderr
    (installed,) = (project / ".venv").glob(".installed-*")
    assert installed.name in (".installed-locks-cpu.txt", ".installed-locks-cuda.txt")
    # Its work, and the help of Flower's own programs, need it.
    for words in ("flower run", "flower superlink -- --help", "bench --quick"):
        done = call(*words.split(), script=project / "run.sh", FEDCLIP_PYTHON="")
        assert done.returncode == 1 and "could not install" in done.stderr


def test_flowers_help_needs_no_flower(tmp_path):
    (tmp_path / "flwr.py").write_text("raise ImportError('no Flower here')")
    for words in (["flower", "--help"], ["flower", "run", "--help"], ["flower", "supernode", "-h"]):
        done = call(*words, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0 and done.stdout.startswith("Usage:"), done.stderr


@pytest.mark.parametrize("word", ["test", "check", "bench", "docs-check", "gpu-check"])
def test_every_word_explains_itself_and_does_nothing_else(word):
    for option in ("--help", "-h"):
        done = call(word, option)
        assert done.returncode == 0 and done.stdout.lower().startswith("usage:"), done.stderr
        assert len(done.stdout.splitlines()) > 3 and not done.stderr
    asked = call("check", "tests/reports/test_svg.py")
    assert asked.returncode == 1 and "./run.sh test tests/reports/test_svg.py" in asked.stderr
