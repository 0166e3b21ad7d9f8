"""The package from Python: docs/python.md as it stands, names that are functions, typed."""

import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pipeline
from pipeline.datasets.demo.draw import draw_dataset
from tests.cli.commands import call
from tests.conftest import ROOT
from tests.packages import need
from tests.processes import python

PAGE = (ROOT / "docs" / "python.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_runs_and_gives_what_the_command_gives(tmp_path, monkeypatch, capsys):
    draw_dataset(tmp_path / "images", pictures=240)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    assert len(BLOCKS) == 2
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), names)
    told = capsys.readouterr().out
    assert "240 rows" in told and "(240, 128)" in told and "something else" in told
    assert (tmp_path / names["results"]["run"] / "done").exists()
    assert len(names["pictures"]) > 20 and not names["lost"]
    words = ["--held-out", "sketch", "--rounds", 20, "--json", "--out", tmp_path / "again"]
    again = json.loads(call("federate", "features.h5", *words).stdout)
    assert again["results"] == names["results"]["results"]
    assert sum(names["found"]["trials"].values()) == 4
    assert {cell["n"] for cell in names["cells"]} == {2}


@pytest.mark.parametrize(
    "before",
    ["", "import pipeline.sweeps.run",
     "import pipeline.extraction.extract, pipeline.runs.federate, pipeline.sweeps.train",
     "from pipeline.sweeps.schedule import train_all; import pipeline; pipeline.extract"],
)  # fmt: skip
def test_the_names_are_functions_whatever_was_imported_before(before):
    python(
        f"{before}\n"
        "from pipeline import sweep, federate, load_cache, extract\n"
        "import inspect\n"
        "assert all(map(inspect.isfunction, (sweep, federate, load_cache, extract)))\n"
        "from pipeline.runs.federate import cache_facts\n"
        "from pipeline.extraction.extract import cache_path\n"
        "import pipeline; assert pipeline.sweep is sweep\n"
    )


def test_importing_the_package_is_light():
    told = python("import sys, pipeline; print('torch' in sys.modules, 'numpy' in sys.modules)")
    assert told.split() == ["False", "False"]
    assert set(pipeline.__all__) <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        pipeline.nonsense  # noqa: B018


@pytest.mark.parametrize("name", pipeline.__all__)
def test_each_function_is_documented_and_typed(name):
    function = getattr(pipeline, name)
    assert "Raises" in inspect.getdoc(function)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter


def test_a_typed_program_and_the_public_modules_pass_mypy_strict(tmp_path):
    need("mypy")
    (tmp_path / "example.py").write_text("\n".join(BLOCKS) + "\nreveal_type(federate)\n")
    public = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["mypy"]["files"]
    for name in pipeline.__all__:
        home = Path(inspect.getsourcefile(getattr(pipeline, name))).relative_to(ROOT)
        assert {str(home), str(home.parent)} & set(public), f"{home} is not held to mypy --strict"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *public, tmp_path / "example.py"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"MYPYPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RunConfig" in done.stdout  # the names have their types; they are not Any


def paths_taken():
    """(function, parameter) for all that is documented to take a path."""
    import cache.npz
    import cache.store
    import pipeline.datasets.fetch
    import pipeline.datasets.find
    import pipeline.datasets.tree
    import pipeline.extraction.check
    import pipeline.features.read
    import pipeline.features.write
    import pipeline.reports.csv_tables
    import pipeline.reports.figure_data
    import pipeline.reports.figures
    import pipeline.reports.page
    import pipeline.reports.tables
    import pipeline.reports.tensorboard_events
    import pipeline.runs.adapters
    import pipeline.runs.folder
    import pipeline.runs.predict
    import pipeline.sweeps.reproduce

    functions = [
        *(getattr(pipeline, name) for name in pipeline.__all__),
        *(getattr(cache.store, name) for name in ("info", "verify", "read_paths", "write_table")),
        *(cache.store.merge_shards, cache.npz.read_npz, cache.npz.write_npz),
        *(pipeline.extraction.check.check_cache, pipeline.sweeps.reproduce.reproduce),
        *(pipeline.reports.page.write_report, pipeline.reports.page.read),
        pipeline.reports.page.report_html,
        *(pipeline.runs.adapters.read_trained, pipeline.reports.tables.records),
        *(pipeline.features.read.read_features, pipeline.features.write.write_features),
        *(pipeline.datasets.fetch.download_dataset, pipeline.datasets.find.find_images),
        *(pipeline.datasets.tree.scan, pipeline.reports.csv_tables.write_csv),
        *(pipeline.reports.figure_data.collect, pipeline.reports.figures.write_figures),
        *(pipeline.reports.tensorboard_events.write_events, pipeline.runs.predict.find_pictures),
        pipeline.runs.folder.read_first_adapter,
    ]
    return [(f, p) for f in functions for p in inspect.signature(f).parameters.values()]


def test_no_public_function_asks_for_a_pathlib_path():
    taken = [(f, p) for f, p in paths_taken() if "Path" in str(p.annotation)]
    assert len(taken) > 30
    for function, parameter in taken:
        said = str(parameter.annotation)
        assert "str | os.PathLike" in said or said == "AnyPath", f"{function}: {parameter}"


def test_everything_works_with_str(tmp_path, monkeypatch):
    from cache.npz import read_npz, write_npz
    from cache.store import info, verify, write_table
    from pipeline.reports.page import write_report
    from pipeline.settings import RunConfig
    from pipeline.sweeps.spec import from_options
    from tests.runs.small_runs import small

    monkeypatch.chdir(tmp_path)
    write_table("small.h5", small())
    write_npz(pipeline.load_cache("small.h5"), "small.npz")
    write_table("again.h5", read_npz("small.npz"))
    verify("again.h5")
    assert info("again.h5")["rows"] == 185
    on = {"device": "cpu", "backend": "torch"}
    config = RunConfig(held_out=(("a",),), rounds=1)
    for where in ({"runs": "runs"}, {"runs": "runs", "out": "out"}):
        told = pipeline.federate(small(), config, **where, **on, file="small.h5")
        assert Path(write_report(told["run"], cache="small.h5")).exists()
        spec = from_options(["lr=1e-3"])
        assert pipeline.sweep(small(), spec, config, **where | {"out": None}, **on)["best"]
