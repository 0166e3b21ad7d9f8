"""Reports: what is read, what is computed anew, what strange files lead to."""

import csv
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.store import read_table
from pipeline.cli import cli
from pipeline.config import ConfigError
from pipeline.predictions import adapter_numbers, encodes_a_round, predictions
from pipeline.report_data import read_run
from pipeline.report_maps import answers_of, confusions, feature_map, mistakes
from pipeline.report_page import read, report_html, write_report
from pipeline.report_trials import best_trial, read_bench, read_sweep
from pipeline.training import to_device
from tests import naive
from tests.report_folders import (
    HOSTILE,
    made_bench,
    made_run,
    made_sweep,
    real_run,
    weights_of,
)

CPU = torch.device("cpu")


class Page(HTMLParser):
    """Tags with their attributes, and the text outside style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.silent = "", False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.silent = tag in ("style", "script")

    def handle_endtag(self, tag):
        self.silent = False

    def handle_data(self, data):
        self.text += "" if self.silent else data + " "


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return real_run(tmp_path_factory.mktemp("report"))


def copy(run: Path, target: Path, *names: str) -> Path:
    target.mkdir()
    for name in names:
        (target / name).write_bytes((run / name).read_bytes())
    return target


def harmless(html: bytes) -> Page:
    """The page, which asks for nothing, runs one script only and draws no NaN."""
    page = Page(html.decode())
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == tags.count("style") == 1
    assert not {"img", "iframe", "object", "embed", "form", "base"} & set(tags)
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("href", "src", "xlink:href"):
            assert re.match(r"#|data:,$", attributes.get(name) or "#"), (tag, attributes)
        for value in attributes.values():
            assert tag in ("td", "meta") or not re.search(r"\b(nan|inf)\b", value or ""), attributes
    policy = next(a["content"] for t, a in page.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    return page


def test_a_run_is_read_as_its_files_say(run):
    data = read_run(run)
    summary = json.loads((run / "summary.json").read_text())
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert data.finished and data.rounds_done == 4 and not data.notes
    for at, (fold, wanted) in enumerate(zip(data.folds, summary["results"], strict=True)):
        assert fold.result.scores.per_domain == wanted["per_domain"]
        assert fold.result.zero_shot.overall == wanted["zero_shot"]["overall"]
        assert fold.result.gate.changed == wanted["gate"]["changed"]
        for name, curve in fold.validation.items():
            assert list(curve.values) == [line["folds"][at]["val_accuracy"][name] for line in lines]


def test_an_unfinished_run_tells_the_same_of_its_kept_rounds(run, tmp_path):
    part = copy(run, tmp_path / "part", "config.json", "rounds.jsonl", "adapter.safetensors")
    whole, found = read_run(run), read_run(part)
    assert not found.finished and "not finished: 4 of 4" in found.notes[0]
    for ours, wanted in zip(found.folds, whole.folds, strict=True):
        assert ours.result.scores == wanted.result.scores
        assert (ours.result.best_round, ours.result.zero_shot) == (wanted.result.best_round, None)
    page = harmless(report_html([found], cache=run.parent / "cache.h5"))
    assert "not finished" in page.text and "right (" in page.text


def test_a_line_that_a_kill_cut_off_is_left_out(run, tmp_path):
    part = copy(run, tmp_path / "cut", "config.json", "rounds.jsonl")
    raw = (part / "rounds.jsonl").read_bytes()
    (part / "rounds.jsonl").write_bytes(raw[:-20])
    data = read_run(part)
    assert data.rounds_done == 3 and "cut off" in data.notes[0]
    harmless(report_html([data]))


def test_a_run_before_its_first_round(run, tmp_path):
    page = harmless(report_html([read(copy(run, tmp_path / "new", "config.json"))]))
    assert "rounds.jsonl is missing" in page.text and "no results yet" in page.text


def test_zero_shot_runs_have_neither_rounds_nor_adapters(tmp_path):
    page = harmless(report_html([read(real_run(tmp_path, method="zero-shot"))]))
    assert "Held-out results" in page.text and "no adapter.safetensors" in page.text


@pytest.mark.parametrize("method", ["fedavg", "local", "central", "ditto", "fedper"])
def test_answers_are_those_that_the_summary_counts(tmp_path, method):
    run = real_run(tmp_path, method=method)
    table = read_table(tmp_path / "cache.h5")
    summary = json.loads((run / "summary.json").read_text())
    for at, result in enumerate(summary["results"]):
        found = predictions(table, to_device(table, CPU), run / "adapter.safetensors", at)
        right = found.predicted == found.labels
        domains = np.array(table.domain_names)[table.domains[found.rows]]
        for name, accuracy in result["per_domain"].items():
            assert right[domains == name].mean() == pytest.approx(accuracy, abs=1e-12)
        assert (found.predicted != found.zero_shot).sum() == result["gate"]["changed"]
        assert len(found.rows) == result["gate"]["tested"]


def test_predictions_equal_the_slow_twin(run):
    table = read_table(run.parent / "cache.h5")
    x = np.asarray(table.features, float)
    text = table.text_features / np.linalg.norm(table.text_features, axis=1, keepdims=True)
    found = predictions(table, to_device(table, CPU), run / "adapter.safetensors", 1)
    weights, mine = weights_of(run, 1), x[found.rows[found.mapped]]
    unit = naive.gate(mine, naive.adapter_scores(weights, mine))
    assert np.abs(found.after - unit).max() < 1e-5
    before = mine / np.linalg.norm(mine, axis=1, keepdims=True)
    assert np.abs(found.before - before).max() < 1e-6
    assert (found.predicted == naive.top1(weights, x[found.rows], text)).all()
    assert (found.zero_shot == (x[found.rows] @ text.T).argmax(axis=1)).all()


def test_confusions_and_mistakes_are_counts(run):
    table = read_table(run.parent / "cache.h5")
    found = predictions(table, to_device(table, CPU), run / "adapter.safetensors", 0)
    counted = confusions(found, 4)
    for true in range(4):
        for answer in range(4):
            pairs = zip(found.labels, found.predicted, strict=True)
            assert counted.counts[true, answer] == sum(p == (true, answer) for p in pairs)
    listed = mistakes(counted, 100)
    assert sum(m.count for m in listed) == (found.labels != found.predicted).sum()
    assert [m.count for m in listed] == sorted((m.count for m in listed), reverse=True)


def test_the_map_keeps_distances_of_points_in_a_plane():
    draw = np.random.default_rng(0)
    flat = draw.normal(size=(40, 2)) @ draw.normal(size=(2, 9)) + 3
    found = feature_map(flat[:25].astype(np.float32), flat[25:].astype(np.float32))
    both = np.concatenate([found.before, found.after])
    for points in (flat, both):
        points -= points.mean(axis=0)
    assert np.allclose(flat @ flat.T, both @ both.T, atol=1e-4)
    assert found.share == pytest.approx(1.0)


def test_the_map_of_points_that_are_all_one():
    found = feature_map(np.ones((3, 1), np.float32), np.ones((2, 1), np.float32))
    assert not found.before.any() and not found.after.any() and found.share == 1.0


def test_costs_count_what_the_released_loop_encodes(run):
    table = read_table(run.parent / "cache.h5")
    encodes = 0
    for held_out in range(3):
        for domain in range(3):
            rows = int((table.domains == domain).sum())
            train, val, test = (len(part) for part in naive.split(rows, 0.6, 0))
            encodes += rows if domain == held_out else 2 * train + val + test
    assert encodes_a_round(table, run / "adapter.safetensors") == encodes
    assert adapter_numbers(run / "adapter.safetensors") == 2 * 12 * 12 + 2 * 12
    page = Page(report_html([read(run)], images_per_second=10.0).decode())
    assert f"{encodes * 4:,}" in page.text and "at 10 images/s" in page.text


def test_left_out_with_a_reason(run, tmp_path):
    data = read_run(run)
    other = real_run(tmp_path / "other", classes=3)
    assert "other features" in answers_of(data, other.parent / "cache.h5")
    assert "is not there" in answers_of(data, tmp_path / "none.h5")
    (tmp_path / "bad.h5").write_bytes(b"<html>")
    assert "HTML" in answers_of(data, tmp_path / "bad.h5")
    strange = copy(run, tmp_path / "strange", "config.json", "rounds.jsonl")
    (strange / "adapter.safetensors").write_bytes((other / "adapter.safetensors").read_bytes())
    text = (strange / "config.json").read_text().replace('"rounds": 4', '"rounds": 5')
    (strange / "config.json").write_text(text)
    assert "other settings" in answers_of(read_run(strange), run.parent / "cache.h5")
    bare = copy(run, tmp_path / "bare", "config.json", "rounds.jsonl", "summary.json", "done")
    page = harmless(report_html([read(bare)]))
    assert page.text.count("no adapter.safetensors") == 3


def test_hostile_names_are_text(run):
    page = harmless(write_report(run).read_bytes())
    for name in HOSTILE:
        assert name in page.text or name[:13] in page.text
    assert page.text.count(HOSTILE[0]) > 3


def test_four_hundred_classes_list_their_mistakes(tmp_path):
    page = harmless(write_report(real_run(tmp_path, classes=400, rounds=1)).read_bytes())
    assert "Most frequent mistakes" in page.text and "393 more classes" in page.text


def test_two_hundred_domains_and_ten_thousand_rounds_stay_small(tmp_path):
    wide = harmless(write_report(made_run(tmp_path / "wide", 200, 3, 200)).read_bytes())
    assert "188 more are in the table" in wide.text and "largest gains of 200" in wide.text
    held_out = [a for t, a in wide.tags if t == "rect" and a.get("class") == "bar c1"]
    assert len(held_out) == 2 * 12  # of each training drawn: its bar and its legend
    long = write_report(made_run(tmp_path / "long", 3, 10_000, 2))
    page = harmless(long.read_bytes())
    lines = [
        a["d"] for t, a in page.tags if t == "path" and "line" in (a.get("class") or "").split()
    ]
    assert max(d.count("L") for d in lines) in range(500, 1001)
    assert long.stat().st_size < 1_000_000


def test_nan_leaves_a_gap(tmp_path):
    run = made_run(tmp_path / "run", 3, 5, 1)
    text = (run / "rounds.jsonl").read_text().splitlines()
    text[2] = re.sub(
        r'"train_loss": {[^}]*}', '"train_loss": {"domain 1": NaN, "domain 2": 1e999}', text[2]
    )
    (run / "rounds.jsonl").write_text("\n".join(text) + "\n")
    data = read_run(run)
    assert data.folds[0].loss["domain 1"].values[2] is None
    harmless(report_html([data]))


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


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
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


def test_a_sweep_is_chosen_by_validation_alone(tmp_path):
    sweep = read_sweep(made_sweep(tmp_path / "sweep"))
    done = [t for t in sweep.trials if t.status == "done"]
    assert best_trial(sweep.trials).val_accuracy == max(t.val_accuracy for t in done)
    assert set(sweep.varied) == {"lr", "loss", "head"}
    page = harmless(write_report(tmp_path / "sweep").read_bytes())
    assert "diverged or failed" in page.text and "Over seeds" in page.text
    threads = [a for t, a in page.tags if "thread" in (a.get("class") or "").split() and "d" in a]
    known = [t for t in sweep.trials if t.val_accuracy is not None]
    assert len(threads) == len(known) + 3  # the legend has three
    assert sum("best" in a["class"] for a in threads) == 2


def test_sweeps_without_trials_and_with_thousands(tmp_path):
    empty = made_sweep(tmp_path / "empty", 0)
    assert "No trial has ended" in harmless(write_report(empty).read_bytes()).text
    many = harmless(write_report(made_sweep(tmp_path / "many", 3000)).read_bytes())
    assert "The best 2,000 of 3,000" in many.text and "trials are drawn" in many.text
    (tmp_path / "empty" / "trials.jsonl").write_text('{"number": 1}\n')
    with pytest.raises(ConfigError, match="trials.jsonl: is not what"):
        read_sweep(empty)


def test_benchmarks_show_their_floor(tmp_path):
    file = made_bench(tmp_path / "made.jsonl")
    first, second = read_bench(file).cases
    assert (first.floor, second.floor) == (0.25 * 3e-3, None)
    result = CliRunner().invoke(cli, ["report", str(file)])
    assert result.stdout.strip() == str(tmp_path / "made.html")
    page = harmless((tmp_path / "made.html").read_bytes())
    assert "750 µs" in page.text and "4.00x" in page.text and "3.00x" in page.text
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ConfigError, match="names no machine"):
        read_bench(tmp_path / "other.jsonl")


def test_several_are_compared_on_one_page(run, tmp_path):
    other = real_run(tmp_path, lr=3e-3)
    page = tmp_path / "all.html"
    words = [str(run), str(other), str(made_sweep(tmp_path / "sweep")), "--out", str(page)]
    result = CliRunner().invoke(cli, ["report", *words])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(page)
    text = harmless(page.read_bytes()).text
    assert "Runs compared" in text and "0.003" in text and "Sweep sweep" in text


def test_tables_for_spreadsheets(run, tmp_path):
    target = tmp_path / "here"
    target.mkdir()
    words = ["report", str(run), "--out", str(target / "r.html"), "--csv"]
    result = CliRunner().invoke(cli, words)
    files = result.stdout.split()
    assert files == [str(target / n) for n in ("results.csv", "rounds.csv", "r.html")]
    with (target / "rounds.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    data = read_run(run)
    wanted = [v for f in data.folds for c in f.loss.values() for v in c.values]
    assert [float(r["value"]) for r in rows if r["number"] == "loss"] == wanted
    trials = made_sweep(tmp_path / "=sweep")
    CliRunner().invoke(cli, ["report", str(trials), "--csv"])
    with (trials / "trials.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60 and {r["lr"] for r in rows} <= {"5e-05", "0.0003", "0.001", "0.01"}


def test_a_name_never_becomes_a_formula(tmp_path):
    run = made_run(tmp_path / "run", 3, 2, 1)
    for name in ("config.json", "rounds.jsonl", "summary.json"):
        text = (run / name).read_text().replace("domain 0", "=1+1").replace("domain 1", "@x")
        (run / name).write_text(text)
    CliRunner().invoke(cli, ["report", str(run), "--csv"])
    text = (run / "results.csv").read_text("utf-8-sig")
    assert "'=1+1" in text and "'@x" in text
    assert not re.search(r"(^|,)[=@]", text, re.MULTILINE)


def test_event_files_hold_every_number(run, tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is missing"
    )
    result = CliRunner().invoke(
        cli, ["report", str(run), "--out", str(tmp_path / "r.html"), "--tensorboard", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    folders = sorted((tmp_path / "run").iterdir())
    for fold, folder in zip(read_run(run).folds, folders, strict=True):
        events = reader.EventAccumulator(str(folder)).Reload()
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
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1
    assert "requirements-tensorboard.txt" in result.stderr.strip().splitlines()[-1]


def test_what_a_person_may_name_wrongly(run, tmp_path):
    for words, said in (
        ([tmp_path / "none"], "no such path"),
        ([tmp_path], "takes a run folder"),
        ([run, "--cache", tmp_path / "none.h5"], "no such file"),
        ([run, "--out", tmp_path / "no folder" / "r.html"], "cannot be written"),
    ):
        result = CliRunner().invoke(cli, ["report", *map(str, words)])
        assert result.exit_code == 1 and said in result.stderr.strip().splitlines()[-1], words
