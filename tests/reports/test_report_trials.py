"""Reports of sweeps and benchmarks, and of several at once."""

import json

import pytest

from pipeline.digests import sealed
from pipeline.errors import ConfigError
from pipeline.reports.bench import read_bench
from pipeline.reports.page import write_report
from pipeline.reports.trials import ranking, read_sweep
from tests.cli.commands import call
from tests.reports.report_folders import made_bench, made_sweep, real_run
from tests.reports.report_pages import harmless
from tests.reports.table_folders import result, swept


def test_a_sweep_is_chosen_by_validation_alone(tmp_path):
    sweep = read_sweep(made_sweep(tmp_path / "sweep"))
    whole: dict[str, float] = {}
    for first in range(0, 60, 3):
        seeds = sweep.trials[first : first + 3]
        if all(t.status == "done" for t in seeds):
            whole[first] = sum(t.val_accuracy for t in seeds)
    best = max(whole, key=whole.get)
    assert [t.number for t in ranking(sweep)[0].records] == [best, best + 1, best + 2]
    assert set(sweep.varied) == {"lr", "loss", "head", "weight_decay"}
    page = harmless(write_report(tmp_path / "sweep").read_bytes())
    assert "diverged or failed" in page.text and "By configuration" in page.text
    threads = [a for t, a in page.tags if "thread" in (a.get("class") or "").split() and "d" in a]
    known = [t for t in sweep.trials if t.val_accuracy is not None]
    assert len(threads) == len(known) + 3  # the legend has three
    assert sum("best" in a["class"] for a in threads) == 3 + 1
    assert "Trials " + ", ".join(str(best + k) for k in range(3)) in page.text


def test_a_sweep_by_oracle_is_called_so(tmp_path):
    folder = made_sweep(tmp_path / "sweep")
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    for line in lines:  # what is best on validation is worst when tested
        for found in line["results"]:
            found["unseen"] = 1 - line["val_accuracy"]
    (folder / "trials.jsonl").write_text("".join(json.dumps(sealed(line)) + "\n" for line in lines))
    whole = {}
    for group in (lines[at : at + 3] for at in range(0, 60, 3)):
        if all(line["status"] == "done" for line in group):
            whole[group[0]["number"]] = sum(line["val_accuracy"] for line in group)
    worst, best = min(whole, key=whole.get), max(whole, key=whole.get)
    for select, number in (("oracle", worst), ("validation", best)):
        (folder / "selection.json").write_text(json.dumps({"select": select}))
        assert ranking(read_sweep(folder))[0].records[0].number == number
        text = harmless(write_report(folder).read_bytes()).text
        assert ("by oracle" in text, "not a result" in text) == (select == "oracle",) * 2
        assert ("Best on validation" in text) == (select == "validation")
    (folder / "selection.json").write_text('{"select": "wishes"}')
    with pytest.raises(ConfigError, match="selection.json: is not what"):
        read_sweep(folder)


def test_sweeps_without_trials_and_with_thousands(tmp_path):
    empty = made_sweep(tmp_path / "empty", 0)
    assert "No trial has ended" in harmless(write_report(empty).read_bytes()).text
    many = harmless(write_report(made_sweep(tmp_path / "many", 3000)).read_bytes())
    assert "The best 2,000 of 3,000" in many.text and "trials are drawn" in many.text
    lines = (tmp_path / "many" / "trials.jsonl").read_text().splitlines()[:2]
    again = sealed(json.loads(lines[0]) | {"status": "failed"})
    (empty / "trials.jsonl").write_text("\n".join([*lines, json.dumps(again)]) + "\n")
    assert [t.status for t in read_sweep(empty).trials][0] == "failed"  # the later line counts
    (tmp_path / "empty" / "trials.jsonl").write_text('{"number": 1}\n')
    with pytest.raises(ConfigError, match="trials.jsonl: is not what"):
        read_sweep(empty)


def test_benchmarks_show_their_floor(tmp_path):
    file = made_bench(tmp_path / "made.jsonl")
    first, second = read_bench(file).cases
    assert (first.floor, second.floor) == (0.25 * 3e-3, None)
    result = call("report", file)
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
    result = call("report", *words)
    assert result.stdout.strip() == str(page)
    text = harmless(page.read_bytes()).text
    assert "Runs compared" in text and "0.003" in text and "Sweep sweep" in text


def test_what_a_person_may_name_wrongly(run, tmp_path):
    for words, said in (
        ([tmp_path / "none"], "no such path"),
        ([tmp_path], "takes a run folder"),
        ([run, "--cache", tmp_path / "none.h5"], "no such file"),
        ([run, "--out", tmp_path / "no folder" / "r.html"], "cannot be written"),
    ):
        result = call("report", *words, code=1)
        assert said in result.stderr.strip().splitlines()[-1], words


def test_own_adapters_have_a_best_of_their_own(tmp_path):
    trials = [
        {"settings": {"method": method}, "seed": 0, "val_accuracy": value,
         "results": [result("x", value)]}
        for method, value in (("fedavg", 0.6), ("ditto", 0.9), ("krum", 0.7), ("local", 0.8))
    ]  # fmt: skip
    text = harmless(write_report(swept(tmp_path / "s", trials)).read_bytes()).text
    assert "Trial 2: method krum" in text and "Ranked apart: ditto, local validate" in text
    assert "Best on validation, own adapters" in text and "90.00 %" in text
    words = " ".join(text.split())
    assert "To train the best again: ./run.sh federate CACHE.h5 --held-out x --method krum" in words
    assert "each client: ./run.sh federate CACHE.h5 --held-out x --method ditto" in words
