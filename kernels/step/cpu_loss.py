"""The middle of a training step on the CPU: from scores to unit features to the loss, and back."""

import numpy as np
from numba import njit

from kernels.cpu.math import LEAST, SPLICED, F, exp
from kernels.cpu.tile import gather, matmul, matmul_t


@njit(**SPLICED)
def unit(x, z, u):
    """u = normalize(exp(z - max z) * x), each column of x, z and u (D, P)."""
    width, size = z.shape
    top = np.full(size, LEAST)
    squares = np.zeros(size, np.float32)
    for d in range(width):
        for i in range(size):
            top[i] = max(top[i], z[d, i])
    for d in range(width):
        for i in range(size):
            u[d, i] = x[d, i] * exp(z[d, i] - top[i])
    for d in range(width):  # a separate loop: with the exponential in it neither is vectorized
        for i in range(size):
            squares[i] += u[d, i] * u[d, i]
    for i in range(size):
        squares[i] = F(1) / max(np.sqrt(squares[i]), F(1e-12))  # as torch's normalize
    for d in range(width):
        for i in range(size):
            u[d, i] *= squares[i]


@njit(**SPLICED)
def loss(u, labels, rows, unit_text, scale, d_scores, d_u):
    """The loss of one batch; its gradient by the scores goes into d_scores, and d_u is scratch.

    Columns are the K distinct labels of the batch, with counts n_k:
    loss = (sum_i R_i + sum_k n_k A_k - 2 sum_i Z_i,label) / 2B, with R and A the log-sum-exps of
    Z + log n over k and of Z over i.
    """
    width, p = u.shape
    size = len(rows)
    place = np.empty(size, np.int64)
    classes = np.empty(size, np.int64)
    counts = np.zeros(size, np.float32)
    columns = 0
    for i in range(size):
        label = labels[rows[i]]
        k = 0
        while k < columns and classes[k] != label:
            k += 1
        if k == columns:
            classes[k] = label
            columns += 1
        place[i] = k
        counts[k] += F(1)
    text = np.empty((columns, width), np.float32)
    gather(unit_text, classes[:columns], text)

    logits = np.empty((columns, p), np.float32)
    gradient = np.zeros((columns, p), np.float32)
    matmul(text, u, logits)
    top = np.full(size, LEAST)
    by_row = np.zeros(size, np.float32)
    inner = np.zeros(p, np.float32)
    for k in range(columns):
        for i in range(size):
            logits[k, i] *= scale
            top[i] = max(top[i], logits[k, i])
    # Probabilities are quotients, not exp(z - log sum): at z near 30 that difference is rounded to
    # 1e-6, which matters for small gradients.
    for k in range(columns):
        for i in range(size):
            gradient[k, i] = exp(logits[k, i] - top[i])
            by_row[i] += counts[k] * gradient[k, i]
    summed = F(0)
    # A loop that sums must not store: LLVM would test at run time how far apart the arrays are, and
    # sum in another order for two that happen to be close.
    for i in range(size):
        summed += np.log(by_row[i]) + (top[i] - logits[place[i], i])
    for i in range(size):
        by_row[i] = F(1) / by_row[i]
    share = F(0.5) / F(size)
    column = np.empty(size, np.float32)
    for k in range(columns):
        peak = LEAST
        for i in range(size):
            peak = max(peak, logits[k, i])
        total = F(0)
        for i in range(size):
            column[i] = exp(logits[k, i] - peak)
        for i in range(size):
            total += column[i]
        summed += counts[k] * np.log(total)
        for i in range(size):
            if place[i] == k:
                summed += peak - logits[k, i]
        rest = F(1) / total
        for i in range(size):
            both = gradient[k, i] * by_row[i] + column[i] * rest
            gradient[k, i] = share * counts[k] * both
    for i in range(size):
        gradient[place[i], i] -= F(2) * share
    for k in range(columns):
        for i in range(size):
            inner[i] += gradient[k, i] * logits[k, i]  # <u, d_u>, over K columns and not D
            gradient[k, i] *= scale
    matmul_t(text, gradient, d_u)
    for d in range(width):
        for i in range(p):
            d_scores[d, i] = u[d, i] * (d_u[d, i] - inner[i] * u[d, i])
    return summed * share
