"""Every test file can be collected where packages that only some tests need are absent."""

import subprocess
import sys

from tests.conftest import ROOT

SOME_NEED = ("clip", "flwr", "optuna", "dp_accounting", "sklearn", "matplotlib", "tensorboard",
             "triton", "atheris", "torchvision", "ray", "pyarrow", "pandas", "transformers",
             "open_clip", "nbformat", "nbclient", "mlflow", "wandb", "jax",
             "huggingface_hub")  # fmt: skip
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
    done = collect(" ".join(SOME_NEED), "tests")
    assert not done.returncode and "test_equals_torchvision_bit_for_bit" in done.stdout, (
        done.stdout[-4000:]
    )


def test_a_file_that_imports_an_absent_package_is_seen(tmp_path):
    (tmp_path / "test_x.py").write_text("import optuna\n", encoding="utf-8")
    done = collect("optuna", str(tmp_path))
    assert done.returncode and "No module named 'optuna'" in done.stdout, done.stdout
