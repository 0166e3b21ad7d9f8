"""The growing CSV of results: a line a training, replaced and never doubled, safe to open."""

import csv
import io
import json
import multiprocessing

import pytest

from cache.store import write_table
from pipeline.errors import ConfigError
from pipeline.reports.csv_tables import safe_cell
from pipeline.reports.data import read_run
from pipeline.reports.results_file import HEADS, KEY, grow
from pipeline.reports.trials import read_sweep
from pipeline.settings import RunConfig
from tests.cli.commands import call
from tests.reports.report_folders import made_run, made_sweep
from tests.runs.small_runs import small


def lines(file) -> list[dict[str, str]]:
    raw = file.read_bytes()
    assert not raw.startswith(b"\xef\xbb\xbf")
    return list(csv.DictReader(io.StringIO(raw.decode(), newline="")))


def test_it_grows_replaces_and_keeps_strange_columns(tmp_path):
    file = tmp_path / "new" / "results.csv"
    runs = [read_run(made_run(tmp_path / name, 3, 2, 2)) for name in ("a", "=b")]
    grow(file, runs[:1])
    grow(file, runs)
    grow(file, [read_sweep(made_sweep(tmp_path / "sweep"))])
    first = file.read_bytes()
    grow(file, [*runs, read_sweep(tmp_path / "sweep")])
    assert file.read_bytes() == first
    found = lines(file)
    assert len(found) == 4 + 60
    assert [row["run"] for row in found[:4]] == ["a", "a", "'=b", "'=b"]
    assert found[0] | {"dataset": "made", "model": "ViT-B/32", "method": "fedavg", "lr": "5e-05",
                       "unseen": "0.61", "zero_shot_unseen": "0.6", "partition": "domain",
                       "held_out": "domain 0", "trial": "", "rounds": "2"} == found[0]  # fmt: skip
    wider = first.decode().replace("\r\n", ",=1+1\r\n").replace(",=1+1", ",note", 1)
    file.write_text(wider, newline="")
    grow(file, runs)
    assert [row["note"] for row in lines(file)] == [""] * 4 + ["=1+1"] * 60


def test_every_setting_has_a_column():
    assert set(HEADS) >= set(vars(RunConfig())) and len(HEADS) == len(set(HEADS))


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "\xff\xfe", ",".join(KEY) + "\n1,2,3,4\n"])
def test_a_file_that_is_no_such_table_is_left_alone(tmp_path, text):
    file = tmp_path / "other.csv"
    file.write_text(text, "latin-1")
    with pytest.raises(ConfigError, match="another file"):
        grow(file, [read_run(made_run(tmp_path / "run", 1, 1, 1))])
    assert file.read_text("latin-1") == text


def _grow(arguments) -> None:
    file, folder = arguments
    grow(file, [read_run(folder)])


def test_processes_grow_one_file_at_once(tmp_path):
    runs = [made_run(tmp_path / f"r{at}", 1, 1, 1) for at in range(6)]
    with multiprocessing.get_context("fork").Pool(3) as pool:
        pool.map(_grow, [(tmp_path / "results.csv", run) for run in runs], chunksize=1)
    assert sorted(row["run"] for row in lines(tmp_path / "results.csv")) == [r.name for r in runs]


@pytest.mark.parametrize("cell", ["=1", "+1+cmd", "-x", "@a", "\tx", "\rx", " =1", "  @x", "-1+1"])
def test_what_a_spreadsheet_would_run_is_guarded(cell):
    assert safe_cell(cell) == f"'{cell}"
    assert safe_cell(safe_cell(cell)) == f"'{cell}"


def test_federate_and_sweep_grow_it_and_none_is_the_word(tmp_path, monkeypatch):
    write_table(tmp_path / "c.h5", small())
    monkeypatch.chdir(tmp_path)
    words = ["c.h5", "--held-out", "none", "--rounds", "1", "--device", "cpu", "--csv", "r.csv"]
    done = call("federate", *words, "--out", "run", "--name", "=x", "--json")
    json.loads(done.stdout)
    done = call("sweep", *words, "--grid", "lr=1e-3,1e-2", "--out", "sweep")
    assert "r.csv" in done.stdout, done.output
    with open("r.csv", newline="") as file:
        found = list(csv.DictReader(file))
    for kind in ("run", "sweep"):
        call("report", kind, "--csv")
    listed = json.loads(call("runs", ".", "--json").stdout)
    text = call("table", "run").stdout
    with open("run/domains.csv", newline="") as file:
        domains = {row["held_out"] for row in csv.DictReader(file)}
    assert [(row["held_out"], row["name"]) for row in found] == [("none", "'=x")] + 2 * [
        ("none", "")
    ]
    assert {name for row in listed for name in row["held_out"]} == {"none"} == domains
    assert "none: no domain is held out" in text and "none held out" not in text
