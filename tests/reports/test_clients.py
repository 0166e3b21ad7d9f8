"""What a page shows of many clients: extremes, the histogram of gains, accuracy by rows."""

import random
import re

import pytest

from pipeline.reports import clients as page
from pipeline.reports.data import Curve, FoldData, Result, Scores
from pipeline.reports.rounds import MANY, _figure, _loss
from pipeline.reports.spread import tenths


def fold(count, draw, unseen=("far",), gains=None):
    names = [f"a/{k}" for k in range(count)]
    start = {name: draw.random() * 0.8 for name in names}
    gains = gains or [draw.choice([-0.1, 0.0, 0.15]) * draw.random() for _ in names]
    after = {n: start[n] + g for n, g in zip(names, gains, strict=True)}
    far = dict.fromkeys(unseen, 0.5)
    scores = [Scores(0.5, 0.5, 0.5, 0.5, far, values) for values in (after, start)]
    rows = {name: draw.randint(1, 400) for name in names}
    result = Result(3, scores[0], scores[1], None, client_rows=rows)
    loss = {n: Curve((0, 1, 2), (draw.random(), draw.random(), None)) for n in names}
    return FoldData("far", tuple(unseen), {}, {}, loss, result), result, list(gains)


def bars(figure):
    return re.findall(r'class="bar (c\d|rest)"', str(figure.picture))


def counts(figure):
    return [int(n) for n in re.findall(r">(\d+) of \d+<", str(figure.picture))]


@pytest.mark.parametrize("count", [1, 12, 31, 100, 1000])
def test_few_clients_are_all_drawn_and_many_are_counted(count):
    one, result, gains = fold(count, random.Random(count))
    drawn = bars(page.client_bars(one, result))
    if count + 1 <= page.CLIENTS:
        assert len(drawn) == count + 1 and page.client_spread(one, result) == []
        return
    assert len(drawn) == 2 * page.ENDS + 1
    histogram, scatter = page.client_spread(one, result)
    assert sum(counts(histogram)) == count
    worse, better = sum(g < 0 for g in gains), sum(g > 0 for g in gains)
    said = f"{count} clients: {worse} lose, {count - worse - better} stay, {better} gain"
    assert said in histogram.note
    assert str(scatter.picture).count('class="dot') == len(range(0, count, -(-count // page.DOTS)))


@pytest.mark.parametrize("gains", [
    [0.0], [0.1], [-0.1, -0.1], [0.0, 0.05, 0.1], [-1.0, 1.0], [1e-9, -1e-9, 0.0], [0.05, -0.05],
])  # fmt: skip
def test_each_gain_is_in_the_bin_that_names_it(gains):
    histogram = page._histogram("x", gains * 3)
    names = re.findall(r"<title>([-+.\d]+) to ([-+.\d]+)</title>", str(histogram.picture))
    expected = [
        3 * sum(float(low) / 100 - 1e-8 <= g < float(high) / 100 - 1e-8 for g in gains)
        for low, high in names
    ]
    assert counts(histogram) == expected and sum(expected) == 3 * len(gains)
    assert "+0 " not in str(names) and "-0 " not in str(names)


def test_clients_without_zero_shot_or_row_counts_are_drawn_all_the_same():
    one, result, _ = fold(60, random.Random(0))
    scores = result.scores
    assert len(page.client_spread(one, Result(1, scores, None, None))) == 0
    assert "gains" in page.client_bars(one, Result(1, scores, None, None)).note
    equal = Result(1, scores, None, None, client_rows=dict.fromkeys(scores.per_client, 7))
    (figure,) = page.client_spread(one, equal)
    assert str(figure.picture).count('class="dot') == 60


def test_losses_of_many_clients_are_a_median_and_a_band():
    one, _, _ = fold(MANY + 20, random.Random(1))
    figure = _figure("x", _loss(one, {}), (0.0, 1.0), 2)
    assert str(figure.picture).count('class="band') == 1
    assert [key.name for key in figure.keys] == ["median client", "80 % of the clients"]
    few, _, _ = fold(MANY, random.Random(1))
    assert not _loss(few, {}).bands
    assert tenths(list(range(101))) == (10, 50, 90) and tenths([3.0]) == (3.0, 3.0, 3.0)
