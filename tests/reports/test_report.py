"""Reports of runs: what is read, what is computed anew, how much is drawn."""

import json
import re

import numpy as np
import pytest
import torch

from cache.store import read_table
from pipeline.extraction.rate import Rate, keep_rate, read_rate
from pipeline.federation.training import to_device
from pipeline.reports.data import read_run
from pipeline.reports.maps import answers_of, confusions, feature_map, mistakes
from pipeline.reports.page import read, report_html, write_report
from pipeline.reports.predictions import encodes_a_round, predictions, read_kept
from pipeline.reports.render import lines
from tests.naive import steps as naive
from tests.reports.report_folders import HOSTILE, copy, made_run, real_run, weights_of
from tests.reports.report_pages import Page, harmless

CPU = torch.device("cpu")


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


def test_clients_and_the_quality_of_answers_are_shown(tmp_path):
    run = real_run(tmp_path, partition="iid", clients=2)
    page = harmless(write_report(run).read_bytes())
    for result in json.loads((run / "summary.json").read_text())["results"]:
        assert len(result["clients"]["accuracy"]) == 4
        shown = [*result["clients"]["accuracy"].values(), result["clients"]["worst"]]
        for value in (*shown, result["macro_f1"], result["calibration_error"]):
            assert f"{100 * value:.2f}" in page.text
        for name in result["clients"]["accuracy"]:
            assert name in page.text


def test_an_unfinished_run_tells_the_same_of_its_kept_rounds(tmp_path):
    run = real_run(tmp_path, eval="best")
    part = copy(run, tmp_path / "part", "config.json", "rounds.jsonl", "adapter.safetensors")
    whole, found = read_run(run), read_run(part)
    assert not found.finished and "not finished: 4 of 4" in found.notes[0]
    for ours, wanted in zip(found.folds, whole.folds, strict=True):
        for name in ("unseen", "participants", "overall", "val_accuracy", "per_domain"):
            assert getattr(ours.result.scores, name) == getattr(wanted.result.scores, name)
        assert (ours.result.best_round, ours.result.zero_shot) == (wanted.result.best_round, None)
    page = harmless(report_html([found], cache=run.parent / "cache.h5"))
    assert "not finished" in page.text and "test rows right: " in page.text


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
    assert "Results on held-out domains" in page.text and "no adapter.safetensors" in page.text


@pytest.mark.parametrize(
    "chosen",
    [
        {"method": "fedavg"},
        {"method": "local"},
        {"method": "central"},
        {"method": "ditto"},
        {"method": "fedper"},
        {"head": "linear", "partition": "iid", "clients": 2},
        {"mode": "FedAtTxt", "head": "cosine"},
        {"mode": "FedAtBoth", "head": "low-rank"},
    ],
    ids=lambda chosen: "-".join(map(str, chosen.values())),
)
def test_answers_are_those_that_the_summary_counts(tmp_path, chosen):
    run = real_run(tmp_path, **chosen)
    table = read_table(tmp_path / "cache.h5")
    summary = json.loads((run / "summary.json").read_text())
    for at, result in enumerate(summary["results"]):
        found = predictions(
            table, to_device(table, CPU), read_kept(run / "adapter.safetensors"), at
        )
        right = found.predicted == found.labels
        domains = np.array(table.domain_names)[table.domains[found.rows]]
        for name, accuracy in result["per_domain"].items():
            assert right[domains == name].mean() == pytest.approx(accuracy, abs=1e-12)
        assert (found.predicted != found.zero_shot).sum() == result["gate"]["changed"]
        assert len(found.rows) == result["gate"]["tested"]
    harmless(write_report(run).read_bytes())


def test_predictions_equal_the_slow_twin(run):
    table = read_table(run.parent / "cache.h5")
    x = np.asarray(table.features, float)
    text = table.text_features / np.linalg.norm(table.text_features, axis=1, keepdims=True)
    found = predictions(table, to_device(table, CPU), read_kept(run / "adapter.safetensors"), 1)
    weights, mine = weights_of(run, 1), x[found.rows[found.mapped]]
    unit = naive.gate(mine, naive.adapter_scores(weights, mine))
    assert np.abs(found.after - unit).max() < 1e-5
    before = mine / np.linalg.norm(mine, axis=1, keepdims=True)
    assert np.abs(found.before - before).max() < 1e-6
    assert (found.predicted == naive.top1(weights, x[found.rows], text)).all()
    assert (found.zero_shot == (x[found.rows] @ text.T).argmax(axis=1)).all()


def test_confusions_and_mistakes_are_counts(run):
    table = read_table(run.parent / "cache.h5")
    found = predictions(table, to_device(table, CPU), read_kept(run / "adapter.safetensors"), 0)
    counted = confusions(found, 4)
    for true in range(4):
        for answer in range(4):
            pairs = zip(found.labels, found.predicted, strict=True)
            assert counted.counts[true, answer] == sum(p == (true, answer) for p in pairs)
    listed = mistakes(counted, table.class_names, 100)
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
    kept = read_kept(run / "adapter.safetensors")
    assert encodes_a_round(table, kept.config) == encodes
    summary = json.loads((run / "summary.json").read_text())
    sent = sum(r["bytes_a_round"]["up"] + r["bytes_a_round"]["down"] for r in summary["results"])
    page = Page(report_html([read(run)], images_per_second=10.0).decode())
    assert f"{sent / 1e6:,.2f} MB" in page.text
    assert f"{encodes * 4:,}" in page.text and "at 10 images/s" in page.text


def test_seconds_are_worked_out_from_the_measured_rate(run, tmp_path):
    cache = tmp_path / "cache.h5"
    cache.write_bytes((run.parent / "cache.h5").read_bytes())
    content = read_run(run).cache["content_sha256"]
    plain = Page(report_html([read(run)], cache=cache).decode()).text
    assert "no measured rate next to the cache" in plain and "images/s" not in plain
    keep_rate(cache, content, Rate(600, 2.0, "cpu (Test & Co)"))
    text = Page(report_html([read(run)], cache=cache).decode()).text
    assert "600 images in 2 s on cpu (Test & Co)" in text and "computed at 300 images/s" in text
    assert f"{read_run(run).cache['rows'] / 300:.3g} s" in text
    keep_rate(cache, "0" * 64, Rate(600, 2.0, "cpu"))  # of another cache that lay here
    assert read_rate(cache, content) is None
    for odd in ("[]", "{}", '{"content_sha256": 1}', json.dumps({"content_sha256": content})):
        (tmp_path / "cache.h5.rate.json").write_text(odd)
        assert read_rate(cache, content) is None


def test_what_is_inside_a_setting_gets_lines_of_its_own():
    deep: dict = {"d": 1}
    for _ in range(100):
        deep = {"d": deep}
    found = list(lines([("encoder", {"size": 224, "names": ["a", "b"]}), ("deep", deep)]))
    assert found[:3] == [("encoder", "", 0), ("size", "224", 1), ("names", "a, b", 1)]
    assert [depth for _, _, depth in found] == [0, 1, 1, 0, 1, 2, 3]
    assert found[-1][1].startswith('{"d": {')


def test_left_out_with_a_reason(run, tmp_path):
    data = read_run(run)
    other = real_run(tmp_path / "other", classes=3)
    assert "features other than" in answers_of(data, other.parent / "cache.h5")
    assert "is missing" in answers_of(data, tmp_path / "none.h5")
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
    assert "188 more are in the table" in wide.text and "largest gains of 199" in wide.text
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
