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
from pipeline.demo.draw import draw_dataset
from tests.conftest import ROOT
from tests.test_cli import call

PAGE = (ROOT / "docs" / "python.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


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


@pytest.mark.parametrize(
    "before",
    ["", "import pipeline.sweep_run", "import pipeline.extract, pipeline.federate, pipeline.sweep",
     "from pipeline.sweep import train_all; import pipeline; pipeline.extract"],
)  # fmt: skip
def test_the_names_are_functions_whatever_was_imported_before(before):
    python(
        f"{before}\n"
        "from pipeline import sweep, federate, load_cache, extract\n"
        "import inspect, sys\n"
        "assert all(map(inspect.isfunction, (sweep, federate, load_cache, extract)))\n"
        "from pipeline.federate import cache_facts\n"
        "from pipeline.extract import cache_path\n"
        "from pipeline import config, federate as again\n"
        "assert inspect.ismodule(config) and again is federate\n"
        "assert inspect.ismodule(sys.modules['pipeline.extract'])\n"
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
    pytest.importorskip("mypy", reason="mypy is missing: pip install -r requirements-dev.txt")
    (tmp_path / "example.py").write_text("\n".join(BLOCKS) + "\nreveal_type(federate)\n")
    public = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["mypy"]["files"]
    for name in pipeline.__all__:
        home = Path(inspect.getsourcefile(getattr(pipeline, name))).relative_to(ROOT)
        assert {str(home), str(home.parent)} & set(public), f"{home} is not held to mypy --strict"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", tmp_path / "cache", *public,
         tmp_path / "example.py"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"MYPYPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RunConfig" in done.stdout  # the names have their types; they are not Any
