"""Validation of a sweep's trials by round: what is drawn, thinned, left out and said."""

import math
import random
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from pipeline.reports import trial_curves as module
from pipeline.reports.data import Curve
from pipeline.reports.page import write_report
from pipeline.reports.trial_curves import trial_curves
from pipeline.reports.trials import Trial, curve_of, read_sweep
from pipeline.sweeps.curves import MOST, curves_of
from pipeline.sweeps.trials import line_of
from tests.reports.report_folders import made_sweep
from tests.reports.report_pages import harmless
from tests.reports.test_sweep_figures import swept


def trial(number, values, status="done", kind="val_accuracy", seed=0, **settings):
    best = max((v for v in values if v is not None), default=None)
    curves = {kind: Curve(tuple(range(len(values))), tuple(values))} if values else {}
    return Trial(number, f"{number:x}", status, seed, settings, len(values), best, 1.0, (), (),
                 curves=curves)  # fmt: skip


@pytest.mark.parametrize("rounds", [1, 2, 99, 100, 101, 250, 1000, 10_007])
def test_a_thinned_curve_keeps_its_rounds(rounds, tmp_path):
    known = {round: (round / 20_000, None) for round in range(rounds)}
    found = curves_of(known, rounds)
    assert len(found["val_accuracy"]) <= MOST + 1 and set(found) == {"every", "val_accuracy"}
    folder = made_sweep(tmp_path / "s", 0)
    line = {"number": 0, "id": "0", "status": "done", "settings": {"lr": 1}, "rounds": rounds,
            "val_accuracy": 0.5, "curves": found}  # fmt: skip
    (folder / "trials.jsonl").write_bytes(line_of(line))
    curve = read_sweep(folder).trials[0].curves["val_accuracy"]
    assert list(curve.values) == [round(at / 20_000, 5) for at in curve.rounds]
    assert curve.rounds[-1] == rounds - 1 and (rounds > MOST or len(curve.rounds) == rounds)


def test_nothing_is_kept_of_no_rounds_and_nulls_of_what_is_not_finite():
    assert curves_of({}, 0) is None and curves_of({0: (None, None)}, 1) is None
    found = curves_of({0: (0.5, None), 1: (None, 2.123456789)}, 3)
    assert found == {"every": 1, "val_accuracy": [0.5, None, None],
                     "val_loss": [None, 2.12346, None]}  # fmt: skip


def test_a_line_is_the_mean_of_the_rounds_that_all_seeds_have():
    seeds = [trial(0, [0.1, 0.2, 0.3]), trial(1, [0.3, None, 0.5]), trial(2, [0.2, 0.2])]
    assert curve_of(seeds[:2], "val_accuracy") == Curve((0, 2), (0.2, pytest.approx(0.4)))
    assert curve_of(seeds, "val_accuracy") == Curve((0,), (pytest.approx(0.2),))
    assert curve_of([*seeds, trial(3, [])], "val_accuracy") is None


def test_sweeps_without_curves_have_no_chart(tmp_path):
    sweep = swept(tmp_path, [trial(n, [], lr=n) for n in range(4)])
    assert trial_curves(sweep, 0.5) == []
    assert trial_curves(swept(tmp_path, [trial(0, [0.5], lr=1)]), None) == []  # one round
    text = harmless(write_report(made_sweep(tmp_path / "old")).read_bytes()).text
    assert "Validation by round" not in text and "Settings and validation accuracy" in text


def test_the_best_are_named_and_those_that_end_early_are_counted(tmp_path):
    done = [trial(n, [0.5, 0.6, 0.7 + n / 100], lr=n) for n in range(8)]
    cut = [trial(8 + n, [0.4, 0.5], "pruned", lr=8 + n) for n in range(3)]
    lost = [trial(11, [0.4], "diverged", lr=11)]
    (figure,) = trial_curves(swept(tmp_path, [*done, *cut, *lost]), 0.55)
    names = [key.name for key in figure.keys]
    assert names[:5] == [f"trial {n}: lr {n}" for n in (7, 6, 5, 4, 3)]
    assert names[5:] == ["7 more", "zero-shot"]
    assert len({key.style for key in figure.keys[:5]}) == 5
    assert "cut by halving: 3 after 2 rounds; diverged: 1." in figure.note
    drawn = ElementTree.fromstring(str(figure.picture)).iter("path")
    lines = [each for each in drawn if each.get("class", "").startswith("line")]
    assert len(lines) == 12 + 4  # a dot where each of four ends
    assert sum("lone" in each.get("class") for each in lines) == 4 + 1  # one has a single round


def test_many_are_a_median_and_a_band(tmp_path):
    draw = random.Random(0)
    trials = [trial(n, [draw.random() for _ in range(4)], lr=n) for n in range(module.GREY + 9)]
    ends = sorted(t.curves["val_accuracy"].values[-1] for t in trials)
    bands, (median,) = module._many(
        [module.Drawn((t,), "", t.curves["val_accuracy"], None) for t in trials], (0.0, 1.0)
    )
    assert median.values[-1] == ends[len(ends) // 2]
    low, high = bands[0].ends[-1]
    assert sum(low <= end <= high for end in ends) / len(ends) == pytest.approx(0.8, abs=0.03)
    figure = trial_curves(swept(tmp_path, trials), None)[0]
    assert {"median", "80 % of all"} < {key.name for key in figure.keys}


def test_bad_trials_leave_the_axis_and_are_counted(tmp_path):
    trials = [trial(n, [0.8, 0.8 + n / 100], lr=n) for n in range(9)]
    trials.append(trial(9, [0.1, 0.05], lr=9))
    (figure,) = trial_curves(swept(tmp_path, trials), None)
    assert "1 end outside the axis" in figure.note
    inner = ElementTree.fromstring(str(figure.picture)).find("svg")
    assert inner is not None and len(list(inner)) == 10  # cut at the plot's edge
    shown = [float(x) for x in re.findall(r">(\d+\.\d)<", str(figure.picture))]
    assert min(shown) > 75


def test_losses_have_a_chart_of_their_own(tmp_path):
    trials = [trial(n, [2.0, 1.0 + n, None], kind="val_loss", lr=n) for n in range(2)]
    trials = [replace(t, val_accuracy=0.5, val_loss=t.number + 1.0) for t in trials]
    (figure,) = trial_curves(swept(tmp_path, trials), 0.9)
    assert figure.title == "Validation loss by round"
    assert [key.name for key in figure.keys] == ["trial 0: lr 0", "trial 1: lr 1"]
    assert math.isclose(curve_of(trials, "val_loss").values[1], 1.5)
