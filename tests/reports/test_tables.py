"""Tables of test accuracies: statistics against twins, what is compared, names, formats."""

import json
import shutil

import pytest

from pipeline.errors import ConfigError
from pipeline.reports.table_formats import FORMATS
from pipeline.reports.tables import build_table, records
from pipeline.runs.federate import federate
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options
from tests.cli.commands import call, refused
from tests.naive import tables as twins
from tests.reports.report_folders import made_sweep
from tests.reports.table_folders import ACCURACIES, cell, cells, facts, made, result, swept
from tests.runs.small_runs import config, small


def test_cells_are_over_the_seeds_of_their_row(runs):
    found = records([runs])
    for method in ("fedavg", "krum"):
        own = [by for (m, _), by in ACCURACIES.items() if m == method]
        series = {"photo": [by["photo"] for by in own], "sketch": [by["sketch"] for by in own],
                  "mean": [(by["photo"] + by["sketch"]) / 2 for by in own]}  # fmt: skip
        for column, values in series.items():
            one = cell(found, method=method, column=column)
            assert (one["mean"], one["std"]) == pytest.approx(twins.mean_and_std(values))
            assert (one["n"], one["figure"], one["dataset"]) == (len(own), "unseen", "made")
            assert min(values) <= one["mean"] <= max(values)
    assert [one["mean"] for one in cells(found, row="zero-shot")] == pytest.approx([0.6, 0.4, 0.5])
    assert [one["row"] for one in cells(found, column="photo")] == ["zero-shot", "fedavg", "krum"]
    for column in ("photo", "sketch", "mean"):
        means = [one["mean"] for one in cells(found, column=column)]
        assert [one["place"] for one in cells(found, column=column)] == twins.places(means)
    summary = records([runs], columns="summary")
    assert [one["column"] for one in cells(summary, row="krum")] == [
        "unseen", "participants", "overall"]  # fmt: skip
    unseen = cell(summary, row="fedavg", column="unseen")
    assert unseen["mean"] == cell(found, row="fedavg", column="mean")["mean"]
    participants = cell(summary, row="fedavg", column="participants")
    assert participants["mean"] == pytest.approx(unseen["mean"] + 0.01)
    assert all(isinstance(v, str | int | float | None) for one in found for v in one.values())


def test_the_order_of_the_inputs_does_not_matter(runs, tmp_path):
    trials = [
        {
            "settings": {"lr": lr},
            "seed": seed,
            "results": [result("photo", 0.5 + lr + seed / 9, 0.6)],
        }
        for lr in (1e-3, 1e-2)
        for seed in (0, 1)
    ]
    swept(tmp_path / "sweep", trials, method="krum")
    paths = [*sorted(runs.iterdir()), tmp_path / "sweep"]
    known = records(paths, against="fedavg, 5e-05")
    for again in (paths[::-1], paths[3:] + paths[:3], [tmp_path / "sweep", runs], [*paths, runs]):
        assert records(again, against="fedavg,5e-05") == known
    assert {one["row"] for one in known} == {"zero-shot", "fedavg, 5e-05", "krum, 5e-05",
                                             "krum, 0.001", "krum, 0.01"}  # fmt: skip


def test_differences_are_paired_over_common_seeds(runs):
    found = records([runs], against="fedavg")
    for column in ("photo", "sketch"):
        pairs = [[ACCURACIES[m, s][column] for s in (0, 1)] for m in ("krum", "fedavg")]
        one = cell(found, row="krum", column=column)
        assert one["pairs"] == 2 and one["against"] == "fedavg"
        assert (one["difference"], one["low"], one["high"]) == pytest.approx(
            twins.t_interval(*pairs), rel=1e-5)  # fmt: skip
        own = cell(found, row="fedavg", column=column)
        assert own["pairs"] == 0 and own["difference"] is None
    start = cell(records([runs], against="zero-shot"), row="fedavg", column="photo")
    assert start["difference"] == pytest.approx(0.02) and start["pairs"] == 3
    text = call("table", runs, "--against", "fedavg").stdout
    assert "95% t-interval" in text and "+9.00 (+9.00 to +9.00)" in text.replace("+9.00 (+8", "")
    refused("table", runs, "--against", "fedavgm", code=1, match="no rows have this name.*'krum'")


def test_one_seed_has_no_std_and_no_interval(tmp_path):
    made(tmp_path / "run", [result("photo", 0.75)])
    (one,) = cells(records([tmp_path / "run"], against="zero-shot"), row="fedavg")
    assert (one["n"], one["std"], one["low"], one["pairs"]) == (1, None, None, 1)
    lines = call("table", tmp_path / "run", "--against", "zero-shot").stdout.splitlines()
    (row, difference) = (line.split() for line in lines if line.startswith("fedavg "))
    assert row == ["fedavg", "1", "75.00*"] and difference == ["fedavg", "1", "-"]


def test_unequal_seeds_and_left_out_ones_are_said(runs):
    made(runs / "late", [result("photo", 0.9)], 3, method="krum", finished=False)
    shown = call("table", runs)
    assert "Unequal seeds: not 0, 1, 2 in all columns: krum (0, 1)." in shown.stdout
    assert f"{runs / 'late'} is left out: it is not finished" in shown.stderr
    assert "Left out: 1 runs or trials that did not finish" in shown.stdout
    shutil.rmtree(runs / "krum11")
    found = records([runs])
    assert cell(found, row="krum", column="sketch")["n"] == 1
    assert cell(found, row="krum", column="mean")["seeds"] == "0"  # a mean has all its parts


def test_settings_that_differ_are_rows_or_refused(tmp_path):
    for seed in (0, 1):
        made(tmp_path / f"a{seed}", [result("x", 0.5)], seed, lr=1e-3)
        made(tmp_path / f"b{seed}", [result("x", 0.6)], seed, lr=1e-2, method="fedprox", mu=0.5)
        made(tmp_path / f"c{seed}", [result("x", 0.7)], seed, lr=1e-2, head="linear")
    by = {"method": None, "head": None, "lr": None}
    known = records([tmp_path])
    assert {name for name in by if name in known[0]} == set(by) and "mu" not in known[0]
    assert len({one["row"] for one in known}) == 4
    with pytest.raises(ConfigError, match="also differ in lr, head; add them"):
        records([tmp_path], by=("method",))
    with pytest.raises(ConfigError, match="also differ in head; add it"):
        records([tmp_path], by=("method", "lr"))
    some = records([tmp_path], by=("lr", "method", "head"))
    assert list(some[0])[:3] == ["lr", "method", "head"] and len(some) == len(known)
    for name, why in (("seed", "means over seeds"), ("held-out", "are columns"), ("lrr", "no such"),
                      ("dataset", "are columns"), ("", "no such")):  # fmt: skip
        refused("table", tmp_path, "--by", name, code=1, match=why)


def test_a_setting_that_plays_no_part_makes_no_row(tmp_path):
    for at, mu in enumerate((0.1, 0.2)):
        made(tmp_path / f"avg{at}", [result("x", 0.5)], method="fedavg", mu=mu)
        made(tmp_path / f"prox{at}", [result("x", 0.6 + mu)], method="fedprox", mu=mu)
    rows = {one["row"]: one for one in records([tmp_path])}
    assert set(rows) == {"zero-shot", "fedavg, -", "fedprox, 0.1", "fedprox, 0.2"}
    assert rows["fedavg, -"]["n"] == 1


def test_the_same_twice_counts_once_and_two_answers_are_refused(tmp_path):
    made(tmp_path / "one", [result("x", 0.5)])
    made(tmp_path / "again", [result("x", 0.5)])
    assert cell(records([tmp_path]), row="fedavg")["n"] == 1
    made(tmp_path / "other", [result("x", 0.51)])
    with pytest.raises(ConfigError, match="different accuracies of one configuration and seed 0"):
        records([tmp_path])


def test_data_sets_are_columns_models_and_caches_are_rows(tmp_path):
    for name, cache in (("a", facts("pacs")), ("b", facts("vlcs")), ("c", facts("pacs", "RN50"))):
        zero = 0.3 if name == "c" else 0.5
        made(tmp_path / name, [result("x", 0.6, zero), result("y", 0.7, zero)], cache=cache)
    table = build_table([tmp_path])
    assert table.by == ("model",)
    assert [(c.dataset, c.name) for c in table.columns] == [
        (d, n) for d in ("pacs", "vlcs") for n in ("x", "y", "mean")]  # fmt: skip
    assert [row.label for row in table.rows] == [
        "zero-shot of RN50", "zero-shot of ViT-B/32", "RN50", "ViT-B/32"]  # fmt: skip
    gains = records([tmp_path], against="zero-shot")
    assert cell(gains, row="RN50", dataset="pacs", column="x")["difference"] == pytest.approx(0.3)
    assert "vlcs: mean" in FORMATS["text"](table)
    made(tmp_path / "d", [result("x", 0.9)], cache=facts("vlcs", content="1" * 64))
    with pytest.raises(ConfigError, match="also differ in cache"):
        records([tmp_path], by=("model",))
    assert "ViT-B/32, 11111111" in {one["row"] for one in records([tmp_path])}


def test_zero_shot_runs_are_the_zero_shot_row_and_nothing_held_out_is_a_column(tmp_path):
    made(tmp_path / "zero", [result(None, 0.5)], method="zero-shot")
    only = records([tmp_path])
    assert [(one["row"], one["column"], one["figure"]) for one in only] == [
        ("zero-shot", "none", "participants")]  # fmt: skip
    made(tmp_path / "avg", [result(None, 0.75)])
    found = records([tmp_path], against="zero-shot")
    assert [one["row"] for one in found] == ["zero-shot", "fedavg"]
    assert found[1]["difference"] == pytest.approx(0.25)


TRIALS = [  # of each lr two seeds: what validation prefers is the worst when tested
    {"settings": {"lr": lr, "method": method}, "seed": seed, "val_accuracy": val + seed / 100,
     "results": [result("x", 1 - val - seed / 10)]}
    for method, low in (("fedavg", 0.5), ("fedprox", 0.3))
    for lr, val in ((1e-3, low), (1e-2, low + 0.2), (1e-1, low + 0.1))
    for seed in (0, 1)
]  # fmt: skip


def test_best_is_chosen_by_validation_alone_and_said(tmp_path):
    trials = [
        *TRIALS,
        {"settings": {"lr": 1.0, "method": "fedavg"}, "seed": 0, "status": "diverged"},
    ]
    folder = swept(tmp_path / "sweep", trials)
    best = cell(records([folder], by=("lr",), best=True), row="0.01")
    assert best["mean"] == pytest.approx(1 - 0.7 - 0.05) and best["n"] == 2
    assert {one["row"] for one in records([folder], best=True)} == {"zero-shot", "fedavg"}
    rows = {one["row"]: one for one in records([folder], by=("method",), best=True)}
    assert rows["fedprox"]["mean"] == pytest.approx(1 - 0.5 - 0.05)
    shown = call("table", folder, "--best", "--by", "method")
    assert "of each sweep and method the best by validation" in shown.stdout
    assert f"{folder}: 1 diverged trials are left out (12)" in shown.stderr
    everything = call("table", folder).stdout
    assert "configurations: none, all are shown. Test accuracy selected nothing." in everything
    assert len([line for line in everything.splitlines() if line.startswith("fed")]) == 6
    (folder / "selection.json").write_text('{"select": "oracle"}')
    assert cell(records([folder], by=("method",), best=True), row="fedavg")["n"] == 2
    made(tmp_path / "run", [result("x", 0.5)])
    refused("table", tmp_path / "run", "--best", code=1, match="no sweep was named")
    swept(tmp_path / "other", [trial | {"settings": {**trial["settings"], "head": "linear"}}
                               for trial in TRIALS])  # fmt: skip
    refused("table", folder, tmp_path / "other", "--best", "--by", "method", code=1,
            match="also differ in head")  # fmt: skip


def test_sweeps_of_older_versions_with_trials_lost(tmp_path):
    folder = made_sweep(tmp_path / "sweep", 30)
    table = build_table([folder])
    done = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    wanted = sum(one["status"] == "done" for one in done)
    kept = [row for row in table.rows if not row.label.startswith("zero-shot")]
    shown = {seeds for row in kept for seeds in row.seeds}
    assert shown == {0, 1, 2} and sum(len(row.seeds) for row in kept) == wanted
    assert any("are left out" in note for note in table.read.notes)


def test_folders_without_results_are_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    refused("table", tmp_path / "none", code=1, match="no such path")
    refused("table", tmp_path / "empty", code=1, match="takes a run folder")
    made(tmp_path / "late", [result("x", 0.5)], finished=False)
    refused("table", tmp_path, code=1, match=r"no run or trial has finished.*\(1 unfinished")
    swept(tmp_path / "sweep", [{"settings": {"lr": 1.0}, "seed": 0, "status": "failed"}])
    refused("table", tmp_path / "sweep", code=1, match="no run or trial has finished")
    call("table", code=2)
    made(tmp_path / "run", [result("x", 0.5)])
    refused(
        "table", tmp_path / "run", "--json", "--format", "csv", code=1, match="cannot be combined"
    )
    (tmp_path / "run" / "summary.json").write_text("{}")
    refused("table", tmp_path / "run", code=1, match="has changed since the run ended")
    made(tmp_path / "good", [result("x", 0.5)])
    shown = call("table", tmp_path)
    assert f"{tmp_path / 'run'} is left out" in shown.stderr and "50.00" in shown.stdout


@pytest.mark.parametrize(
    "wrong",
    [{"method": 3, "lr": "high"}, {"lr": [1]}, {"rounds": 1.5}, {"seed": -1}, {"seed": "x"}],
    ids=str,
)
def test_odd_settings_are_one_line(tmp_path, wrong):
    made(tmp_path / "run", [result("x", 0.5)], **wrong)
    refused("table", tmp_path / "run", code=1, match="config.json: is not what this program writes")


def test_ties_share_a_place_and_one_row_has_none(tmp_path):
    for method, value in (("fedavg", 0.7), ("fedprox", 0.1 * 7), ("ditto", 0.6), ("krum", 0.5)):
        made(tmp_path / method, [result("x", value, 0.6)], method=method)
    places = {one["row"]: one["place"] for one in records([tmp_path])}
    assert places == {"zero-shot": 2, "fedavg": 1, "fedprox": 1, "ditto": None, "krum": None}
    made(tmp_path / "local", [result("x", 0.9)], method="local")
    places = {one["row"]: one["place"] for one in records([tmp_path])}
    assert places["local"] == 1 and places["ditto"] == 2 and places["fedavg"] == 1
    text = FORMATS["text"](build_table([tmp_path]))
    assert "ditto, local: each client's own adapter" in text and "marked apart" in text


def test_rows_that_change_nothing_are_named(tmp_path):
    for name, value, mu in (("a", 0.7, 0.0), ("b", 0.7, 0.01), ("c", 0.6, 1.0)):
        made(tmp_path / name, [result("x", value), result("y", 0.5)], method="fedprox", mu=mu)
    text = FORMATS["text"](build_table([tmp_path]))
    assert "in every training: 0 = 0.01. What these rows differ in changes nothing" in text
    assert "in every training" not in FORMATS["text"](build_table([tmp_path / "a", tmp_path / "c"]))
    alike = result("x", 0.6) | {"participants": 0.5}  # a coincidence of one figure is none of all
    made(tmp_path / "d", [alike, result("y", 0.5)], method="fedprox", mu=0.5)
    text = FORMATS["text"](build_table([tmp_path]))
    assert "in every training: 0 = 0.01. What" in text


def test_real_runs_and_sweeps_give_what_their_summaries_say(tmp_path):
    table = small()
    on = {"device": "cpu", "backend": "torch"}
    settings = config(rounds=2)
    summary = federate(table, settings, runs=tmp_path, **on)
    swept_too = sweep(table, from_options(["lr=1e-3,1e-2"], seeds=2), settings, runs=tmp_path, **on)
    found = records([tmp_path], columns="summary")
    rows = {one["row"]: one["n"] for one in found}
    assert rows == {"zero-shot": 2, "0.001": 2, "0.01": 2}  # the run is one of the sweep's trials
    alone = records([summary["run"]], columns="summary")
    for figure in ("unseen", "participants", "overall"):
        wanted = summary["mean"][figure], summary["mean"]["zero_shot"][figure]
        got = [cell(alone, row=row, column=figure)["mean"] for row in ("fedavg", "zero-shot")]
        assert got == pytest.approx(wanted)
    best = records([swept_too["sweep"]], columns="summary", best=True)
    for figure, tested in swept_too["best"]["tested"].items():
        one = cell(best, row="fedavg", column=figure)
        assert (one["mean"], one["std"]) == pytest.approx((tested["mean"], tested["std"]))


def test_each_method_may_have_its_own_best_settings_and_sweeps_meet_runs(tmp_path):
    trials = [
        {"settings": {"method": method, "lr": lr}, "seed": 0, "val_accuracy": val,
         "results": [result(None, val)]}
        for method, lr, val in (("fedavg", 0.1, 0.5), ("fedavg", 0.2, 0.6),
                                ("fedprox", 0.1, 0.75), ("fedprox", 0.2, 0.25))
    ]  # fmt: skip
    swept(tmp_path / "sweep", trials)
    found = records([tmp_path / "sweep"], by=("method",), best=True)
    assert {one["row"]: one["mean"] for one in found[1:]} == pytest.approx(
        {"fedavg": 0.61, "fedprox": 0.76}
    )
    made(tmp_path / "run", [result(None, 0.8)], 1, lr=0.1)
    (one,) = cells(records([tmp_path]), row="fedavg, 0.1")
    assert one["seeds"] == "0 1" and one["column"] == "none"
