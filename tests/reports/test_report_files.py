"""Reports of strange files, and the files beside a report."""

import csv
import re
import sys

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.cli.app import cli
from pipeline.errors import ConfigError
from pipeline.reports.data import read_run
from pipeline.reports.page import read, report_html
from tests.cli.commands import call
from tests.packages import need
from tests.reports.report_folders import copy, made_run, made_sweep
from tests.reports.report_pages import harmless

STRANGE = {
    "config.json": ['[]', '{', '{}', '{"settings": {"held_out": 3}, "cache": {}}', '"\xff'],
    "rounds.jsonl": ['{}\n', '3\n', '{"round": 0}\n', '{"round": "x", "folds": [{}]}\n', 'x\n',
                     '{"round": -1, "folds": []}\n'],
    "summary.json": ['[]', '{"results": []}', '{"results": [{}]}', '{"results": 7}'],
    "adapter.safetensors": ["", "x" * 100],
}  # fmt: skip


@pytest.mark.parametrize("name, text", [(n, t) for n, all in STRANGE.items() for t in all])
def test_strange_files_end_as_one_line(run, tmp_path, name, text):
    names = ("config.json", "rounds.jsonl", "summary.json", "adapter.safetensors")
    part = copy(run, tmp_path / "part", *names)
    (part / name).write_text(text, "latin-1")
    result = CliRunner().invoke(cli, ["report", str(part)])
    if result.exit_code == 0:  # an adapter that cannot be read leaves panels out
        assert (
            name == "adapter.safetensors" and "cannot be read" in (part / "report.html").read_text()
        )
        return
    assert result.exit_code == 1 and not (part / "report.html").exists()
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ") and name in line


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_files_are_refused_or_drawn_whole(run, tmp_path, data):
    target = tmp_path / "fuzzed"
    target.mkdir(exist_ok=True)
    for name in ("config.json", "rounds.jsonl", "summary.json"):
        raw = bytearray((run / name).read_bytes())
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, len(raw) - 1))
            cut = data.draw(st.integers(0, 8))
            raw[at : at + cut] = data.draw(st.binary(max_size=4) | st.sampled_from(
                [b"null", b"NaN", b"[]", b"{}", b"-1", b'"', b"1e999", b"true"]
            ))  # fmt: skip
        (target / name).write_bytes(raw)
    try:
        html = report_html([read(target)])
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    harmless(html)


def test_tables_for_spreadsheets(run, tmp_path):
    target = tmp_path / "here"
    target.mkdir()
    words = ["report", str(run), "--out", str(target / "r.html"), "--csv"]
    result = call(*words)
    files = result.stdout.split()
    assert files == [
        str(target / n) for n in ("results.csv", "domains.csv", "rounds.csv", "r.html")
    ]
    with (target / "rounds.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    data = read_run(run)
    wanted = [v for f in data.folds for c in f.loss.values() for v in c.values]
    assert [float(r["value"]) for r in rows if r["number"] == "loss"] == wanted
    trials = made_sweep(tmp_path / "=sweep")
    call("report", trials, "--csv")
    with (trials / "trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60 and {r["lr"] for r in rows} <= {"5e-05", "0.0003", "0.001", "0.01"}


def test_a_name_never_becomes_a_formula(tmp_path):
    run = made_run(tmp_path / "run", 3, 2, 1)
    for name in ("config.json", "rounds.jsonl", "summary.json"):
        text = (run / name).read_text().replace("domain 0", "=1+1").replace("domain 1", "@x")
        (run / name).write_text(text)
    call("report", run, "--csv")
    text = (run / "domains.csv").read_text("utf-8")
    assert "'=1+1" in text and "'@x" in text
    assert not re.search(r"(^|,)[=@]", text, re.MULTILINE)


def test_event_files_hold_every_number(run, tmp_path):
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    call("report", run, "--out", tmp_path / "r.html", "--tensorboard", tmp_path)
    folders = sorted((tmp_path / "run").iterdir())
    for fold, folder in zip(read_run(run).folds, folders, strict=True):
        events = EventAccumulator(str(folder)).Reload()
        for name, curve in fold.validation.items():
            (tag,) = [t for t in events.Tags()["scalars"] if t == f"validation/{name}"]
            found = [(event.step, event.value) for event in events.Scalars(tag)]
            assert found == [
                (r, pytest.approx(v)) for r, v in zip(curve.rounds, curve.values, strict=True)
            ]


def test_missing_tensorboard_is_one_line(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    words = ["report", str(run), "--tensorboard", str(tmp_path), "--out", str(tmp_path / "r.html")]
    result = call(*words, code=1)
    assert "requirements-tensorboard.txt" in result.stderr.strip().splitlines()[-1]
