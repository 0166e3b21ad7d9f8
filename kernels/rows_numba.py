"""Rows of tables as columns of activations, their lengths, and the products over them.

The products are behind three names, so that another way of multiplying is one file's change.
"""

import numpy as np
from numba import njit

from kernels.numba_math import OPTIONS, F

SHORTEST = F(1e-12)  # as torch's normalize: what is shorter counts as that long


@njit(**OPTIONS)
def times(w, x, out):
    """out = w @ x; all are C-contiguous matrices, here and in the next two."""
    np.dot(w, x, out)


@njit(**OPTIONS)
def back(w, d, out):
    """out = w.T @ d."""
    np.dot(w.T, d, out)


@njit(**OPTIONS)
def outer(d, x, out):
    """out = d @ x.T."""
    np.dot(d, x.T, out)


@njit(**OPTIONS)
def gather_rows(table, rows, out):
    """out[i] = table[rows[i]]; assigning whole rows costs 3 s of compiling."""
    for i in range(len(rows)):
        row = rows[i]
        for d in range(table.shape[1]):
            out[i, d] = table[row, d]


@njit(**OPTIONS)
def gather_columns(table, rows, unit, out):
    """out[:, i] = table[rows[i]], at length 1 if `unit`; eight rows at a time.

    32 rows of 2 KiB would fall on two sets of an L1 cache.
    """
    width, size = out.shape
    scale = np.ones(size, np.float32)
    if unit:
        for i in range(size):
            scale[i] = _inverse_length(table[rows[i]])
    for start in range(0, size, 8):
        end = min(size, start + 8)
        for d in range(width):
            for i in range(start, end):
                out[d, i] = table[rows[i], d] * scale[i]


@njit(**OPTIONS)
def transpose(x, out):
    """out (n, D) = x.T, eight columns at a time."""
    width, size = x.shape
    for start in range(0, size, 8):
        end = min(size, start + 8)
        for d in range(width):
            for i in range(start, end):
                out[i, d] = x[d, i]


@njit(**OPTIONS)
def _inverse_length(row):
    squares = F(0)
    for d in range(len(row)):
        squares += row[d] * row[d]
    return F(1) / max(np.sqrt(squares), SHORTEST)


@njit(**OPTIONS)
def row_lengths(x, inverse):
    """inverse[i] = 1 / |x[i]|; x (n, D)."""
    for i in range(len(x)):
        inverse[i] = _inverse_length(x[i])


@njit(**OPTIONS)
def column_lengths(x, inverse):
    """inverse[i] = 1 / |x[:, i]|; x (D, n).

    In sums of 32: 512 squares one after another are off by 3e-7, and a logit of 100 by 3e-5.
    """
    width, size = x.shape
    squares, part = np.zeros(size, np.float32), np.empty(size, np.float32)
    for start in range(0, width, 32):
        part[:] = F(0)
        for d in range(start, min(width, start + 32)):
            for i in range(size):
                part[i] += x[d, i] * x[d, i]
        for i in range(size):
            squares[i] += part[i]
    for i in range(size):
        inverse[i] = F(1) / max(np.sqrt(squares[i]), SHORTEST)


@njit(**OPTIONS)
def subtract_columns(x, factor, y):
    """x[:, i] -= factor[i] * y[:, i]; x and y (D, n)."""
    for d in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[d, i] -= factor[i] * y[d, i]


@njit(**OPTIONS)
def subtract_rows(x, factor, y):
    """x[i] -= factor[i] * y[i]; x and y (n, D)."""
    for i in range(x.shape[0]):
        for d in range(x.shape[1]):
            x[i, d] -= factor[i] * y[i, d]
