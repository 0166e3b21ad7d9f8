"""Metrics against slow twins and scikit-learn, and at their edges."""

import numpy as np
import pytest

from pipeline.runs.metrics import accuracy_by, calibration_error, macro_f1, spread
from tests.naive import metrics as naive
from tests.packages import need

CASES = [(1, 1), (2, 3), (33, 2), (200, 7), (500, 65)]
NONE = np.empty(0, np.int64)


def draw(rows, classes, seed=0):
    random = np.random.RandomState(seed)
    labels = random.randint(classes, size=rows)
    guesses = random.randint(classes, size=rows)
    return labels, np.where(random.uniform(size=rows) < 0.6, labels, guesses), random


@pytest.mark.parametrize(("rows", "classes"), CASES)
def test_accuracy_by_group(rows, classes):
    labels, predictions, random = draw(rows, classes)
    groups = random.randint(5, size=rows) * 3
    comp = accuracy_by(labels == predictions, groups)
    assert comp == pytest.approx(naive.accuracy_by(labels, predictions, groups))
    assert list(comp) == sorted(comp)


@pytest.mark.parametrize("count", [1, 2, 9, 10, 11, 20, 39, 100])
def test_spread(count):
    random = np.random.RandomState(count)
    accuracies, rows = random.uniform(size=count).tolist(), random.randint(1, 99, size=count)
    comp = spread(accuracies, rows)
    assert list(comp.values()) == pytest.approx(naive.spread(accuracies, rows))
    assert comp["worst"] <= comp["worst_decile"] <= comp["mean"]
    assert (comp["worst"] == comp["worst_decile"]) == (count < 20)


def test_weighted_by_rows_is_the_accuracy_over_all_rows():
    labels, predictions, random = draw(300, 7)
    clients = random.randint(6, size=300)
    by = accuracy_by(labels == predictions, clients)
    comp = spread(list(by.values()), np.bincount(clients).tolist())
    assert comp["weighted"] == pytest.approx((labels == predictions).mean())


@pytest.mark.parametrize(("rows", "classes"), CASES)
def test_macro_f1(rows, classes):
    for seed in range(5):
        labels, predictions, _ = draw(rows, classes, seed)
        ref = naive.macro_f1(labels.tolist(), predictions.tolist())
        assert macro_f1(labels, predictions) == pytest.approx(ref)
    assert macro_f1(labels, labels) == 1.0


@pytest.mark.parametrize(("rows", "classes"), CASES)
def test_accuracy_and_macro_f1_are_scikit_learns(rows, classes):
    need("sklearn")
    from sklearn import metrics

    for seed in range(5):
        labels, predictions, _ = draw(rows, classes, seed)
        ref = metrics.f1_score(labels, predictions, average="macro", zero_division=0.0)
        assert macro_f1(labels, predictions) == pytest.approx(ref, rel=1e-12)
        (comp,) = accuracy_by(labels == predictions, np.zeros_like(labels)).values()
        assert comp == pytest.approx(metrics.accuracy_score(labels, predictions), rel=1e-12)


@pytest.mark.parametrize(("rows", "bins"), [(1, 15), (7, 1), (200, 15), (1000, 10)])
def test_calibration_error(rows, bins):
    random = np.random.RandomState(rows)
    for power in (0.1, 1, 10):  # confidences near 1, spread, near 0
        confidences = random.uniform(size=rows) ** power
        right = random.uniform(size=rows) < 0.7
        comp = calibration_error(right, confidences, bins)
        assert comp == pytest.approx(naive.calibration_error(right, confidences, bins))


def test_calibration_error_from_scikit_learns_curve():
    need("sklearn")
    from sklearn.calibration import calibration_curve

    random = np.random.RandomState(0)
    confidences = random.uniform(size=2000)
    right = random.uniform(size=2000) < confidences**2
    true, said = calibration_curve(right, confidences, n_bins=15)  # no bin is empty
    share = np.histogram(confidences, np.linspace(0, 1, 16))[0] / 2000
    ref = (share * np.abs(true - said)).sum()
    assert calibration_error(right, confidences) == pytest.approx(ref, rel=1e-12)


def test_calibration_error_of_what_is_known():
    sure = np.ones(4)
    assert calibration_error(np.array([True] * 4), sure) == 0
    assert calibration_error(np.array([True, True, True, False]), sure) == pytest.approx(0.25)
    assert calibration_error(np.array([False]), np.zeros(1)) == 0
    # 1/15 is in the first bin, a little more in the second: each errs, where one bin evens out
    edge = np.array([1 / 15, 1 / 15 + 1e-9])
    assert calibration_error(np.array([True, False]), edge) == pytest.approx(0.5)
    assert calibration_error(np.array([True, False]), edge, bins=1) == pytest.approx(0.5 - 1 / 15)


def test_calibrated_answers_err_little_and_float32_confidences_do():
    random = np.random.RandomState(1)
    confidences = random.uniform(size=200_000).astype(np.float32)
    right = random.uniform(size=200_000) < confidences
    assert calibration_error(right, confidences) < 0.01
    over = np.full(3, 1 + 2**-23, np.float32)  # a float32 softmax may sum past 1
    assert calibration_error(np.ones(3, bool), over) < 1e-6


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_confidences_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="confidences"):
        calibration_error(np.array([True, True]), np.array([0.5, wrong]))


def test_nothing_has_no_metric():
    assert accuracy_by(NONE.astype(bool), NONE) == {}
    assert not any(spread([], []).values()) and macro_f1(NONE, NONE) is None
    assert calibration_error(NONE.astype(bool), NONE.astype(float)) is None
    with pytest.raises(ValueError, match="1 accuracies and 0"):
        spread([0.5], [])
