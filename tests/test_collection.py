"""Every test file can be collected where packages that only some tests need are absent."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.flower.conftest import NEED_FLOWER
from tests.packages import BRINGS

WITHOUT = """
import sys
from importlib.machinery import PathFinder

absent = set(sys.argv.pop(1).split())

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in absent else PathFinder.find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
COLLECT = ("--collect-only", "-q", "-p", "no:cacheprovider")


def collect(absent: str, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, absent, *COLLECT, *words],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_all_files_are_collected_without_the_packages_that_some_need():
    done = collect(" ".join(BRINGS), "tests")
    assert not done.returncode and "test_equals_torchvision_bit_for_bit" in done.stdout, (
        done.stdout[-4000:]
    )
    skipped = "/conftest.py:[0-9]+: flwr is not installed: pip install -r requirements-flower.txt"
    files = {name for each in NEED_FLOWER for name in (ROOT / "tests" / "flower").glob(each)}
    (told,) = re.findall(rf"SKIPPED \[([0-9]+)\] tests/flower{skipped}", done.stdout)
    assert int(told) == len(files)


def test_a_file_that_imports_an_absent_package_is_seen(tmp_path):
    (tmp_path / "test_x.py").write_text("import optuna\n", encoding="utf-8")
    done = collect("optuna", str(tmp_path))
    assert done.returncode and "No module named 'optuna'" in done.stdout, done.stdout


@pytest.mark.parametrize("package", BRINGS)
def test_what_a_skip_says_to_install_brings_the_package(package):
    requirement, file = BRINGS[package]
    lines = (ROOT / file).read_text("utf-8").splitlines()
    assert sum(line.startswith(f"{requirement}==") for line in lines) == 1


def test_a_parameter_without_values_is_refused(tmp_path):
    """pytest would skip such a test on every machine."""
    test = "import pytest\n@pytest.mark.parametrize('x', [])\ndef test_x(x): ...\n"
    (tmp_path / "test_x.py").write_text(test, encoding="utf-8")
    done = collect("", "-p", "tests.conftest", str(tmp_path))
    assert done.returncode and "test_x.py::test_x" in done.stdout, done.stdout
    assert "no values" in done.stdout
