"""Gathering table rows as activation columns, their norms, and outer products over them."""

import numpy as np
from numba import njit

from kernels.cpu.math import PART, SPLICED, F
from kernels.cpu.tile import APART, matmul, matrix, padded, transpose

SHORTEST = F(1e-12)  # minimum norm, as in torch's normalize


@njit(**SPLICED)
def by_rows(x, n, buffer):
    """The first n columns of x (M, at least n) as rows (n, M padded), in `buffer`."""
    wide = padded(len(x))
    out = matrix(buffer, 0, n, wide)
    transpose(x, out)
    return out


@njit(**APART)
def outer(d, by_row, out, spare):
    """out (M, N) = d[:, :n] @ by_row; d (M, at least n), by_row (n, N or N padded).

    spare holds out with N padded; it is unused if there is no padding.
    """
    if by_row.shape[1] == out.shape[1]:
        matmul(d, by_row, out)
        return
    wide = matrix(spare, 0, len(out), by_row.shape[1])
    matmul(d, by_row, wide)
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[r, c] = wide[r, c]


@njit(**PART)
def gather_columns(table, rows, unit, out, scale):
    """out[:, i] = table[rows[i]], scaled to unit length if `unit`; other columns are untouched.

    In 8 x 8 blocks: 10 us for 32 rows of 512; row by row takes twice that.
    """
    width, size = len(out), len(rows)
    for i in range(size):
        scale[i] = _inverse_length(table[rows[i]]) if unit else F(1)
    for d in range(0, width, 8):
        for i in range(0, size, 8):
            if i + 8 <= size and d + 8 <= width:  # trip counts known to the compiler
                for a in range(i, i + 8):
                    row, factor = rows[a], scale[a]
                    for b in range(d, d + 8):
                        out[b, a] = table[row, b] * factor
            else:
                for a in range(i, min(size, i + 8)):
                    for b in range(d, min(width, d + 8)):
                        out[b, a] = table[rows[a], b] * scale[a]


@njit(**PART)
def _inverse_length(row):
    squares = F(0)
    for d in range(len(row)):
        squares += row[d] * row[d]
    return F(1) / max(np.sqrt(squares), SHORTEST)


@njit(**PART)
def row_lengths(x, inverse):
    """inverse[i] = 1 / |x[i]|; x (n, D)."""
    for i in range(len(x)):
        inverse[i] = _inverse_length(x[i])


@njit(**PART)
def column_lengths(x, inverse, part):
    """inverse[i] = 1 / |x[:, i]|; x (D, n).

    In partial sums of 32: summing 512 squares in sequence is off by 3e-7, and a logit of 100 by
    3e-5.
    """
    width, size = x.shape
    inverse[:size] = F(0)
    for start in range(0, width, 32):
        part[:size] = F(0)
        for d in range(start, min(width, start + 32)):
            for i in range(size):
                part[i] += x[d, i] * x[d, i]
        for i in range(size):
            inverse[i] += part[i]
    for i in range(size):
        inverse[i] = F(1) / max(np.sqrt(inverse[i]), SHORTEST)


@njit(**APART)
def subtract_columns(x, factor, y):
    """x[:, i] -= factor[i] * y[:, i]; x and y (D, n)."""
    for d in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[d, i] -= factor[i] * y[d, i]


@njit(**APART)
def subtract_rows(x, factor, y):
    """x[i] -= factor[i] * y[i]; x and y (n, D)."""
    for i in range(x.shape[0]):
        for d in range(x.shape[1]):
            x[i, d] -= factor[i] * y[i, d]
