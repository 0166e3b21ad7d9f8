"""The numba kernels' own products and exponentials, where everything else stands on them."""

import numpy as np
import pytest
from numba import njit

from kernels.cpu import math as numba_math
from kernels.cpu.tile import (
    DEPTH,
    LANES,
    ROWS,
    gather,
    matmul,
    matmul_t,
    padded,
    panels_length,
    transpose,
    wide_product,
)

SIZES = [
    (1, 1, LANES),
    (ROWS - 1, 2, 2 * LANES),
    (ROWS, DEPTH, 3 * LANES),
    (ROWS + 1, DEPTH + 1, LANES),
    (3 * ROWS + 2, 2 * DEPTH + 5, 5 * LANES),
]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_at_any_size_whatever_stood_in_out(size):
    rows, depth, columns = size
    b = draw(depth, columns)
    for a, product, wide in (
        (draw(rows, depth + 3), matmul, lambda a: a[:, :depth]),
        (draw(depth, rows), matmul_t, lambda a: a.T),
    ):
        out = np.full((rows, columns), np.nan, np.float32)
        product(a, b, out)
        truth = wide(a).astype(float) @ b.astype(float)
        # Summing n numbers errs by at most n eps times the sum of their sizes.
        bound = depth * np.finfo(np.float32).eps * (abs(wide(a)).astype(float) @ abs(b))
        assert (abs(out - truth) <= bound).all()
        again = np.zeros_like(out)
        product(a, b, again)
        assert out.tobytes() == again.tobytes()


WIDE_SIZES = [
    (1, 1, 1),
    (ROWS - 1, 3, 2 * LANES - 1),
    (ROWS, 8, 2 * LANES),
    (2 * ROWS + 1, DEPTH + 3, 4 * LANES + 1),
    (40, 2 * DEPTH + 9, 3),
]


@pytest.mark.parametrize("size", WIDE_SIZES, ids=str)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("across", [False, True])
def test_wide_products_of_any_shape_are_the_bytes_of_matmul(size, turned, across):
    rows, depth, columns = size
    a, b = draw(rows, depth), draw(depth, columns, seed=1)
    given = np.ascontiguousarray(a.T) if turned else a
    other = np.ascontiguousarray(b.T) if across else b
    behind = np.zeros((depth, padded(columns)), np.float32)
    behind[:, :columns] = b
    truth = np.empty((rows, padded(columns)), np.float32)
    matmul(a, behind, truth)
    panels, out = np.full(panels_length(rows), np.nan, np.float32), np.full_like(a @ b, np.nan)
    wide_product(given, turned, other, across, np.float32(1), out, 0, panels)
    np.testing.assert_array_equal(out, truth[:, :columns])
    before = draw(rows, columns, seed=2)
    more = before.copy()
    wide_product(given, turned, other, across, np.float32(-3), more, 1, panels)
    # Twice the rounding of matmul's own sums, and of joining them to what was there.
    bound = 2 * (depth + 2) * np.finfo(np.float32).eps * (3 * abs(a) @ abs(b) + abs(before))
    assert (abs(more - (before - 3 * (a.astype(float) @ b))) <= bound).all()


def test_products_err_no_more_than_numpy_s():
    a, b = draw(64, 1024), draw(1024, 4 * LANES, seed=1)
    out = np.empty((64, 4 * LANES), np.float32)
    matmul(a, b, out)
    truth = a.astype(float) @ b.astype(float)
    assert np.square(out - truth).mean() <= 2 * np.square(a @ b - truth).mean()


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (7, 9), (32, 50), (17, 64)])
def test_transpose_and_gather_write_what_they_should_and_no_more(shape):
    x = draw(*shape)
    out = np.full((shape[1], padded(shape[0])), np.nan, np.float32)
    transpose(x, out)
    np.testing.assert_array_equal(out[:, : shape[0]], x.T)
    assert np.isnan(out[:, shape[0] :]).all()
    rows = np.array([shape[0] - 1, 0], np.int32)
    taken = np.full((2, padded(shape[1])), np.nan, np.float32)
    gather(x, rows, taken)
    np.testing.assert_array_equal(taken[:, : shape[1]], x[rows])
    assert np.isnan(taken[:, shape[1] :]).all()


@pytest.mark.parametrize(("name", "low", "high"), [("exp", -60, 88), ("tanh", -12, 12)])
def test_exp_and_tanh_are_within_float32_s_rounding(name, low, high):
    function = getattr(numba_math, name)

    @njit
    def each(values, out):
        for i in range(len(values)):
            out[i] = function(values[i])

    values = np.linspace(low, high, 100_001, dtype=np.float32)
    found = np.empty_like(values)
    each(values, found)
    truth = getattr(np, name)(values.astype(float))
    eps = np.finfo(np.float32).eps
    allowed = eps * truth if name == "exp" else 3 * eps
    assert (abs(found - truth) <= allowed).all()
    each(np.array([np.nan], np.float32), found)
    assert np.isnan(found[0])  # a diverged adapter must stay visible
