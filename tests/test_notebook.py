"""docs/tour.ipynb runs from its first cell to its last, and shows frames and a figure."""

import os

import pytest

from pipeline.datasets.demo.draw import draw_dataset
from tests.conftest import ROOT
from tests.packages import need

need("nbformat", "nbclient", "ipykernel", "pandas", "matplotlib")

import nbclient  # noqa: E402
import nbformat  # noqa: E402

SMALLER = {'extract("demo", root="data"': 'extract("images"', "rounds=20": "rounds=2"}


@pytest.mark.filterwarnings("default")  # of what runs notebooks
def test_the_tour_runs(tmp_path, monkeypatch):
    draw_dataset(tmp_path / "images", pictures=240)
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    for whole, small in SMALLER.items():
        assert sum(whole in cell.source for cell in notebook.cells) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(whole, small)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "jupyter"))
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env={**os.environ})
    shown = [
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    ]
    assert shown.count("text/html") == 3 and "image/svg+xml" in shown
    assert {file.suffix for file in (tmp_path / "figures").iterdir()} == {".pdf", ".svg", ".png"}
