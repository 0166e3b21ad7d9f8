"""flwr, imported before any test; it wants to know in which run a message is made."""

import importlib.util
import os
import warnings

import pytest

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # flwr reads it when it is imported
if importlib.util.find_spec("flwr") is None:  # pip install -r requirements-dev.txt
    collect_ignore_glob = ["test_site*.py", "test_flower_[als]*.py"]
else:
    with warnings.catch_warnings():  # typer's, of click
        warnings.simplefilter("ignore")
        import flwr  # noqa: F401


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """Outside of a run there is no number."""
    task = pytest.importorskip("flwr.supercore.task_identity").TaskIdentity
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(task, name, 1)
