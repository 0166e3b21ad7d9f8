"""Heads and their gradients for numba kernels; kernels/heads.py says what each computes.

Activations lie feature-major, (D, p): n rows or classes as columns, and p - n behind them that
nothing reads, as kernels/numba_matmul.py wants. A sum over D is then vector arithmetic over
columns. `row` and `gradient` are one adapter's numbers as kernels/heads.py lays them out; `spare`
is as large as the larger of x and h, and keeps clip-adapter's outer layer in between.
"""

import numpy as np
from numba import njit

from kernels.heads import RATIO
from kernels.names import HEADS
from kernels.numba_math import LEAST, OPTIONS, F, exp, tanh
from kernels.numba_matmul import matmul, matmul_t
from kernels.rows_numba import by_rows, outer

ATTENTION, CLIP_ADAPTER, LINEAR, LOW_RANK, COSINE = range(len(HEADS))
NEW, OLD = F(RATIO), F(1 - RATIO)


@njit(**OPTIONS)
def forward(head, row, x, h, u, spare):
    """u = what a head makes of x, not normalised; x (D, p) is raw for attention, else at length 1.

    h (hidden, p) is kept for `backward`.
    """
    if head == ATTENTION:
        _attention(row, x, h, u)
    elif head == CLIP_ADAPTER:
        _clip_adapter(row, x, h, u, spare)
    elif head == LINEAR:
        w, b = _cut(row, len(u), len(u))
        matmul(w, x, u)
        _add(u, b)
    else:  # low-rank
        a, b = _cut(row, len(h), len(u))
        matmul(a, x, h)
        matmul(b.reshape(len(u), len(h)), h, u)
        for d in range(u.shape[0]):
            for i in range(u.shape[1]):
                u[d, i] += x[d, i]


@njit(**OPTIONS)
def backward(head, row, n, x, h, u, d_u, spare, across, gradient):
    """gradient (P,) = d loss / d row, from d_u = d loss / d u, which is overwritten.

    n columns count; across (2, n times the larger padded width) is scratch, for x and h by rows.

    attention     d_s = d_u u, d_W2 = d_s h^T, d_b2 = sum d_s, d_a = (W2^T d_s) (1 - h^2),
                  d_W1 = d_a x^T, d_b1 = sum d_a
    clip-adapter  d_o = 0.2 d_u [o > 0], d_W2 = d_o h^T, d_W1 = ((W2^T d_o) [h > 0]) x^T
    linear        d_W = d_u x^T, d_b = sum d_u
    low-rank      d_B = d_u (A x)^T, d_A = (B^T d_u) x^T
    """
    width, size = u.shape
    x_by_row = by_rows(x, n, across[0])
    if head == LINEAR:
        d_w, d_b = _cut(gradient, width, width)
        outer(d_u, x_by_row, d_w)
        _sum(d_u, n, d_b)
        return
    hidden = len(h)
    d_h = spare[:hidden]
    d_first, d_rest = _cut(gradient, hidden, width)
    _, rest = _cut(row, hidden, width)
    if head == ATTENTION:
        rest, d_b1, d_rest = rest[width:], d_rest[:width], d_rest[width:]
        for d in range(width):
            for i in range(size):
                d_u[d, i] *= u[d, i]
        _sum(d_u, n, d_rest[width * width :])
    elif head == CLIP_ADAPTER:
        for d in range(width):
            for i in range(size):
                d_u[d, i] *= NEW if spare[d, i] > F(0) else F(0)
    w = rest[: width * hidden].reshape(width, hidden)
    outer(d_u, by_rows(h, n, across[1]), d_rest[: width * hidden].reshape(width, hidden))
    matmul_t(w, d_u, d_h)
    if head == ATTENTION:
        for d in range(hidden):
            for i in range(size):
                d_h[d, i] *= F(1) - h[d, i] * h[d, i]
        _sum(d_h, n, d_b1)
    elif head == CLIP_ADAPTER:
        for d in range(hidden):
            for i in range(size):
                d_h[d, i] *= F(1) if h[d, i] > F(0) else F(0)
    outer(d_h, x_by_row, d_first)


@njit(**OPTIONS)
def _attention(row, x, h, u):
    width, size = u.shape
    w1, rest = _cut(row, width, width)
    b1 = rest[:width]
    w2, b2 = _cut(rest[width:], width, width)
    matmul(w1, x, h)
    for d in range(width):
        for i in range(size):
            h[d, i] = tanh(h[d, i] + b1[d])
    matmul(w2, h, u)
    _add(u, b2)
    top = np.full(size, LEAST)
    for d in range(width):
        for i in range(size):
            top[i] = max(top[i], u[d, i])
    for d in range(width):
        for i in range(size):
            u[d, i] = exp(u[d, i] - top[i]) * x[d, i]


@njit(**OPTIONS)
def _clip_adapter(row, x, h, u, outside):
    width, size = u.shape
    hidden = len(h)
    w1, w2 = _cut(row, hidden, width)
    matmul(w1, x, h)
    for d in range(hidden):
        for i in range(size):
            h[d, i] = max(h[d, i], F(0))
    matmul(w2.reshape(width, hidden), h, outside[:width])
    for d in range(width):
        for i in range(size):
            u[d, i] = NEW * max(outside[d, i], F(0)) + OLD * x[d, i]


@njit(**OPTIONS)
def _cut(row, rows, columns):
    """The matrix (rows, columns) that a row begins with, and all numbers behind it."""
    return row[: rows * columns].reshape(rows, columns), row[rows * columns :]


@njit(**OPTIONS)
def _add(values, bias):
    for d in range(values.shape[0]):
        for i in range(values.shape[1]):
            values[d, i] += bias[d]


@njit(**OPTIONS)
def _sum(values, n, sums):
    for d in range(values.shape[0]):
        total = F(0)
        for i in range(n):
            total += values[d, i]
        sums[d] = total
