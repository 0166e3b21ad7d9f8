"""What a sweep's page draws of the search: where dots lie, means, history, and how many."""

import math
import re

import pytest

from pipeline.reports import sweep_figures as figures
from pipeline.reports.charts.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP
from pipeline.reports.data import Result, Scores
from pipeline.reports.trials import SweepData, Trial, varied


def trial(number, accuracy, start=0.5, **settings):
    scores = [Scores(a, a, a, val, {}, {}) for a, val in ((0.6, accuracy), (0.55, start))]
    result = Result(1, scores[0], scores[1], None)
    status = "done" if accuracy is not None else "failed"
    return Trial(number, f"{number:x}", status, 0, settings, 3, accuracy, 1.0, (result,), ("-",))


def swept(tmp_path, trials):
    names = varied([one.settings for one in trials])
    return SweepData("s", tmp_path, "validation", tuple(trials), names, {}, (), ("CACHE.h5",))


def dots(picture, style):
    found = re.findall(rf'<path class="dot {style}" d="M([\d.]+) ([\d.]+)h', str(picture))
    found = found or re.findall(
        rf'd="M([\d.]+) ([\d.]+)h0.01"[^>]*class="dot {style}"', str(picture)
    )
    return [(float(x), float(y)) for x, y in found]


def test_a_slice_has_a_dot_a_trial_and_the_mean_of_each_value(tmp_path):
    trials = [trial(n, 0.6 + 0.01 * n, lr=lr, seed=n) for n, lr in enumerate([1e-4, 1e-2] * 4)]
    found = {f.title: f for f in figures.sweep_figures(swept(tmp_path, trials), trials[7:])}
    picture = found["Validation accuracy by lr"].picture
    low, high = min(0.5, 0.6), 0.67
    air = 0.06 * (high - low)
    heights = [HEIGHT - BOTTOM + (TOP - HEIGHT + BOTTOM) * (t.val_accuracy - low + air)
               / (high - low + 2 * air) for t in trials]  # fmt: skip
    drawn = dots(picture, "c2") + dots(picture, "c1 chosen")
    assert [y for _, y in drawn] == pytest.approx(heights, abs=0.06)
    assert len(dots(picture, "c1 chosen")) == 1 and len({x for x, _ in drawn}) == 2
    line = re.search(r'd="M([\d. L]+)h0.01"[^>]*class="line', str(picture))[1].split("L")
    means = [sum(heights[k::2]) / 4 for k in (0, 1)]
    assert [float(p.split()[1]) for p in line] == pytest.approx(means, abs=0.06)
    assert "zero-shot CLIP: 50.0" in picture


def test_history_never_falls_and_ends_at_the_best(tmp_path):
    values = [0.5, 0.7, 0.6, 0.65, 0.9, 0.1]
    trials = [trial(n, v, lr=n) for n, v in enumerate(values)]
    history = figures.sweep_figures(swept(tmp_path, trials), trials[4:5])[-1]
    assert history.title == "Validation accuracy by trial"
    steps = re.search(r'd="M([\d. L]+)h0.01"[^>]*class="line', str(history.picture))[1].split("L")
    points = [tuple(map(float, p.split())) for p in steps]
    assert points == sorted(points) or all(
        b[1] <= a[1] for a, b in zip(points, points[1:], strict=False)
    )
    (chosen,) = dots(history.picture, "c1 chosen")
    assert points[-1][1] == pytest.approx(chosen[1], abs=0.06)


@pytest.mark.parametrize("values", [
    [1e-5, 3e-4, 1e-2], list(range(1, 40)), [10.0**-n for n in range(12)], ["a", "b", None],
    [0.0, *range(1, 20)], [-1.0, *range(20)], [True, False, 3], [f"word {n}" for n in range(30)],
    [5.0],
])  # fmt: skip
def test_places_are_in_order_within_the_axis_and_few_are_written(values):
    at, words = figures._places(values * 2)
    assert len(at) == len(set(map(str, values)))
    assert all(0 <= x <= 1 and math.isfinite(x) for x in at.values())
    assert 1 <= len(words) <= figures.WORDS and len({x for x, _ in words}) == len(words)
    if all(isinstance(v, float | int) and not isinstance(v, bool) for v in values):
        places = list(at.values())
        assert places == sorted(places) and len(set(places)) == len(places)


def test_few_trials_draw_nothing_and_thousands_are_thinned(tmp_path):
    two = [trial(n, 0.5 + n / 10, lr=n) for n in range(2)] + [trial(3, None, lr=5)]
    assert figures.sweep_figures(swept(tmp_path, two), two[:1]) == []
    many = [trial(n, 0.5 + (n * 37 % 100) / 400, lr=n * 1e-6 + 1e-9) for n in range(3001)]
    found = figures.sweep_figures(swept(tmp_path, many), many[1234:1235])
    picture = found[-1].picture
    assert len(dots(picture, "c1 chosen")) == 1 and len(dots(picture, "c2")) <= figures.THREADS
    assert "of 3,001 trials are drawn" in found[-1].note
    xs = [x for x, _ in dots(picture, "c2")]
    assert min(xs) >= LEFT and max(xs) <= RIGHT


def test_equal_scores_have_no_importance(tmp_path):
    equal = [trial(n, 0.5, lr=n % 3, start=None) for n in range(9)]
    titles = [f.title for f in figures.sweep_figures(swept(tmp_path, equal), equal[:1])]
    assert titles == ["Validation accuracy by lr", "Validation accuracy by trial"]
