"""Rows of tables as columns of activations, their lengths, and the products over them.

The products are behind three names, so that another way of multiplying is one file's change.
"""

import numpy as np
from numba import njit

from kernels.numba_math import OPTIONS, F

BLOCK = 128
SHORTEST = F(1e-12)  # as torch's normalize: what is shorter counts as that long


@njit(**OPTIONS)
def times(w, x, out):
    """out = w @ x; all are C-contiguous matrices, here and in the next two."""
    np.dot(w, x, out)


@njit(**OPTIONS)
def times_in_blocks(w, x, out):
    """out = w @ x, summed over 128 at a time, for logits: the gradient's error is mostly theirs.

    At D = 512 and a scale of 100 the gradient errs 2.5 times as much as torch's with one sum, as
    much as torch's with four. It costs 2 us for 7 classes, 30 for 196.
    """
    count, width = w.shape
    part = np.empty_like(out)
    out[:] = F(0)
    for start in range(0, width, BLOCK):
        end = min(width, start + BLOCK)
        block = np.empty((count, end - start), np.float32)
        for k in range(count):
            for d in range(start, end):
                block[k, d - start] = w[k, d]
        times(block, x[start:end], part)
        for k in range(count):
            for i in range(out.shape[1]):
                out[k, i] += part[k, i]


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
    """out[:, i] = table[rows[i]], at length 1 if `unit`.

    8 x 8 at a time: 10 us for 32 rows of 512, row by row twice that.
    """
    width, size = out.shape
    scale = np.ones(size, np.float32)
    if unit:
        for i in range(size):
            scale[i] = _inverse_length(table[rows[i]])
    for d in range(0, width, 8):
        for i in range(0, size, 8):
            if i + 8 <= size and d + 8 <= width:  # lengths that the compiler knows
                for a in range(i, i + 8):
                    row, factor = rows[a], scale[a]
                    for b in range(d, d + 8):
                        out[b, a] = table[row, b] * factor
            else:
                for a in range(i, min(size, i + 8)):
                    for b in range(d, min(width, d + 8)):
                        out[b, a] = table[rows[a], b] * scale[a]


@njit(**OPTIONS)
def transpose(x, out):
    """out (n, D) = x.T, 8 x 8 at a time as above."""
    width, size = x.shape
    for i in range(0, size, 8):
        for d in range(0, width, 8):
            if i + 8 <= size and d + 8 <= width:
                for a in range(i, i + 8):
                    for b in range(d, d + 8):
                        out[a, b] = x[b, a]
            else:
                for a in range(i, min(size, i + 8)):
                    for b in range(d, min(width, d + 8)):
                        out[a, b] = x[b, a]


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
