"""flwr, imported before any test; it wants to know in which run a message is made."""

import importlib.util
import os
import warnings
from pathlib import Path

import pytest

from tests.packages import need

NEED_FLOWER = ("test_site*.py", "test_flower_[als]*.py")  # these files import it

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # flwr reads it when it is imported
FOUND = importlib.util.find_spec("flwr") is not None
if FOUND:
    with warnings.catch_warnings():  # typer's, of click
        warnings.simplefilter("ignore")
        import flwr  # noqa: F401


class WithoutFlower(pytest.Module):
    """A file that is skipped as a whole, without being imported."""

    def collect(self):
        need("flwr")
        return []


def pytest_pycollect_makemodule(module_path: Path, parent):
    if not FOUND and any(module_path.match(name) for name in NEED_FLOWER):
        return WithoutFlower.from_parent(parent, path=module_path)
    return None


def outside_of_runs(patch: pytest.MonkeyPatch) -> None:
    """Lets messages be made where there is no run, and so no number of one."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_run_id", "_task_id", "_node_id"):
        patch.setattr(TaskIdentity, name, 1)


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    if FOUND:
        outside_of_runs(monkeypatch)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Four domains in one cache file."""
    from tests.flower.sites import whole

    return whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def files(table, tmp_path_factory):
    """A cache file for each of its domains."""
    from tests.flower.sites import cut

    return cut(table, tmp_path_factory.mktemp("sites"), ("a",), ("b",), ("c",), ("d",))
