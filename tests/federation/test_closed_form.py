"""Closed-form heads: against twins, scikit-learn, rows left out by hand, and any partition."""

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.federation.methods import closed_form
from pipeline.federation.methods.closed_form import (
    Sums,
    gda,
    packed,
    prototype,
    ridge,
    sums_of,
    unpacked,
)
from tests.naive import closed_form as naive
from tests.packages import need

SCALE = 100.0
SOLVERS = {
    "gda": (gda, lambda x, y, c, p, **kept: naive.gda(x, y, c, p, **kept)),
    "ridge": (
        lambda sums: ridge(sums, SCALE),
        lambda x, y, c, p, **kept: naive.ridge(x, y, c, p, SCALE, **kept),
    ),
    "prototype": (
        lambda sums: prototype(sums, SCALE),
        lambda x, y, c, p, **kept: naive.prototype(x, y, c, p, SCALE),
    ),
}
SHAPES = {  # rows, width, classes: more rows than columns and fewer, odd ones, one class
    "tall": (60, 7, 5),
    "wide": (11, 33, 4),
    "one class": (9, 5, 1),
    "two columns": (12, 2, 3),
}


def sklearn_module(name):
    need("sklearn")
    return importlib.import_module(f"sklearn.{name}")


def draw(rows, width, classes, seed=0):
    """Unit rows around class means, every class twice at least; (N, D) float32, (N,)."""
    random = np.random.default_rng(seed)
    y = np.concatenate([np.repeat(np.arange(classes), 2), random.integers(0, classes, rows)])
    means = random.normal(size=(classes, width)) + 1
    x = (means[y] + random.normal(size=(len(y), width))).astype(np.float32)
    return x, y


def unit(x):
    x = x.astype(np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def summed(x, y, classes) -> Sums:
    return sums_of(torch.from_numpy(x), torch.from_numpy(y), classes)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("parameter", [0.03, 1.0, 8.0])
def test_heads_and_rows_left_out_equal_the_twin_s(name, shape, parameter):
    rows, width, classes = SHAPES[shape]
    x, y = draw(rows, width, classes)
    solver, twin = SOLVERS[name]
    classes += 2  # two without rows
    comp = solver(summed(x, y, classes))(parameter)
    ref, kept = twin(unit(x), y, classes, parameter)
    at = unit(draw(6, width, 1, seed=1)[0])
    expected = np.array([ref(row) for row in at])
    size = abs(expected).max() + 1
    assert abs(comp(torch.from_numpy(at)).numpy() - expected).max() <= 1e-9 * size

    out = comp.left_out(torch.from_numpy(unit(x)), torch.from_numpy(y)).numpy()
    given = {"gda": {"ridge": kept, "rows": len(x)}, "ridge": {"diagonal": kept}}.get(name, {})
    for i in range(len(x)):
        others = naive.without(i, unit(x), y)
        expected = twin(*others, classes, parameter, **given)[0](unit(x)[i])
        assert abs(out[i] - expected).max() <= 1e-9 * (abs(expected).max() + 1)


def test_a_class_without_rows_keeps_its_zero_shot_logit_and_a_row_alone_leaves_such_a_class():
    x, y = draw(40, 6, 4)
    y[y == 3] = 2
    y[7] = 3  # alone in class 3
    for name, (solver, _) in SOLVERS.items():
        head = solver(summed(x, y, 6))(1.0)
        assert (head.weight[4:] == 0).all() and (head.bias[4:] == 0).all(), name
        out = head.left_out(torch.from_numpy(unit(x)), torch.from_numpy(y))
        assert out.isfinite().all()
        if (
            name != "ridge"
        ):  # ridge without any row of a class fits 0 to it, as the twin's test shows
            assert out[7, 3] == 0


def test_gda_is_scikit_learns_discriminant_analysis():
    x, _ = draw(90, 8, 3)
    y = (
        np.arange(len(x)) % 3
    )  # as many of each class: its covariance weighs classes by their priors
    keep = len(x) // 3 * 3
    x, y, eps = x[:keep], y[:keep], 0.7
    theirs = (
        sklearn_module("discriminant_analysis")
        .LinearDiscriminantAnalysis(solver="lsqr", shrinkage=eps / (1 + eps))
        .fit(unit(x), y)
    )
    ours = gda(summed(x, y, 3))(eps)
    expected = theirs.decision_function(unit(x)) / (1 + eps)
    comp = ours(torch.from_numpy(unit(x))).numpy()
    rows = comp - comp.mean(1, keepdims=True)
    np.testing.assert_allclose(rows, expected - expected.mean(1, keepdims=True), atol=1e-9)


def test_ridge_is_scikit_learns():
    x, y = draw(50, 9, 4)
    sums = summed(x, y, 4)
    diagonal = 0.2 * float(sums.gram.trace()) / 9
    theirs = sklearn_module("linear_model").Ridge(
        alpha=diagonal, fit_intercept=False, solver="cholesky"
    )
    theirs.fit(unit(x), np.eye(4)[y])
    comp = ridge(sums, SCALE)(0.2)(torch.from_numpy(unit(x))).numpy()
    np.testing.assert_allclose(comp, SCALE * theirs.predict(unit(x)), atol=1e-8)


@settings(derandomize=True, max_examples=30)
@given(st.data())
def test_any_partition_gives_the_central_head(data):
    x, y = draw(50, 12, 5)
    owners = np.array(data.draw(st.lists(st.integers(0, 9), min_size=len(y), max_size=len(y))))
    if data.draw(st.booleans()):
        owners = y.copy()  # one class a client
    whole = summed(x, y, 5)
    features, labels = torch.from_numpy(x), torch.from_numpy(y)
    parts = [
        sums_of(features, labels, 5, torch.from_numpy(np.flatnonzero(owners == k)))
        for k in range(10)
    ]
    total = sum(parts[1:], start=parts[0])
    for solver, _ in SOLVERS.values():
        ours, central = solver(total)(0.5), solver(whole)(0.5)
        np.testing.assert_allclose(ours.weight, central.weight, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(ours.bias, central.bias, rtol=1e-9, atol=1e-9)
    back = total - parts[3]
    rest = torch.from_numpy(np.flatnonzero(owners != 3))
    np.testing.assert_allclose(back.gram, sums_of(features, labels, 5, rest).gram, atol=1e-12)


@pytest.mark.parametrize("classes, width", [(1, 1), (3, 5), (7, 2)])
def test_what_travels_is_the_upper_half_and_comes_back_as_it_was(classes, width):
    x, y = draw(20, width, classes)
    sums = summed(x, y, classes)
    numbers = packed(sums)
    assert len(numbers) == classes + classes * width + width * (width + 1) // 2
    again = unpacked(numbers, classes, width)
    for name in ("count", "by_class", "gram"):
        np.testing.assert_allclose(getattr(again, name), getattr(sums, name), rtol=1e-15)
    with pytest.raises(ValueError, match="sums of"):
        unpacked(numbers[:-1], classes, width)


def test_sums_are_those_of_one_pass_over_all_rows(monkeypatch):
    x, y = draw(50, 6, 4)
    x[5] = 0  # counts, and adds nothing
    whole = summed(x, y, 4)
    monkeypatch.setattr(closed_form, "BLOCK", 7)
    parts = summed(x, y, 4)
    np.testing.assert_allclose(parts.gram, whole.gram, rtol=1e-14, atol=1e-14)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    rows = np.divide(x, lengths, out=np.zeros_like(x), where=lengths > 0).astype(float)
    np.testing.assert_allclose(whole.gram, rows.T @ rows, atol=1e-6)
    assert whole.count.sum() == len(x)


@pytest.mark.parametrize("name", SOLVERS)
def test_rows_that_are_all_the_same_and_rows_there_twice_stay_finite(name):
    solver = SOLVERS[name][0]
    for x, y in (
        (np.ones((8, 5), np.float32), np.arange(8) % 2),
        (np.repeat(draw(6, 9, 3)[0], 3, axis=0), np.repeat(draw(6, 9, 3)[1], 3)),
        (np.ones((1, 4), np.float32), np.zeros(1, np.int64)),
        (np.ones((0, 4), np.float32), np.zeros(0, np.int64)),
    ):
        head = solver(summed(x, y, 3))(0.5)
        assert head.weight.isfinite().all() and head.bias.isfinite().all()
        if len(x):
            rows = torch.from_numpy(unit(x))
            assert head.left_out(rows, torch.from_numpy(y)).isfinite().all()
