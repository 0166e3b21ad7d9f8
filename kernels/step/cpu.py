"""adapter_steps on the CPU, compiled by numba: one thread trains one lane through all its steps.

Activations lie feature-major (D, P), the batch's B rows as columns with P - B columns behind them
that nothing reads: every sum over D becomes vector arithmetic over the batch, and the products fit
numba_matmul's tile without packing. A gradient of 8 rows of weights goes from its product straight
into Adam while the L1 cache holds it; the whole D x D gradient is never written. A lane stays with
its thread for the whole call, so that its 6.3 MB (D = 512) stay in the cache. The identities used
are those of adapter_step_torch.py, with the batch's distinct labels as columns.
"""

import functools

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.adapter import AdamSettings, AdapterState
from kernels.cpu.math import OPTIONS, PART, F, tanh
from kernels.cpu.scratch import staggered
from kernels.cpu.threads import run_all
from kernels.cpu.tile import LANES, ROWS, gather, matmul, matmul_t, matrix, padded, transpose
from kernels.step.cpu_loss import loss, unit


def adapter_steps(
    adapters: AdapterState,
    features: Tensor,
    labels: Tensor,
    unit_text: Tensor,
    rows: Tensor,
    settings: AdamSettings,
    logit_scale: float,
) -> Tensor:
    """See kernels.step.adapter_steps; arguments are checked there."""
    steps, lanes, batch = rows.shape
    width = features.shape[1]
    losses = torch.zeros(steps, lanes)
    weights = [weight.numpy() for weight in adapters]
    table = features.contiguous().numpy(), labels.numpy(), unit_text.contiguous().numpy()
    by_lane = np.ascontiguousarray(rows.numpy().transpose(1, 0, 2))
    options = np.stack([value.numpy() for value in settings], axis=1)
    found = losses.numpy()

    def train(lane: int, scratch: tuple) -> None:
        own = [weight[lane] for weight in weights]
        _train_lane(*own, *table, by_lane[lane], options[lane], F(logit_scale), *scratch,
                    found[:, lane])  # fmt: skip

    run_all(train, range(lanes), lambda: _scratch(width, batch), _spare(width, batch))
    return losses


@functools.lru_cache(maxsize=1)
def _spare(width: int, batch: int) -> list:
    """Scratch of earlier calls of this size: touching 5 MB for the first time costs 2 ms."""
    return []


def _scratch(width: int, batch: int) -> tuple:
    """What one thread needs; zeros, so that columns behind a batch hold nothing slow."""
    return (
        *(array.reshape(width, width) for array in staggered(width * width, 4)),
        np.empty((6, width), np.float32),
        np.zeros((2, batch * padded(width)), np.float32),
        np.zeros((5, width * padded(batch)), np.float32),
        np.zeros((ROWS, padded(width)), np.float32),
    )


@njit(**OPTIONS)
def _train_lane(
    w1, b1, w2, b2, features, labels, unit_text, rows, options, scale,
    m1, v1, m2, v2, vectors, by_row, by_feature, gradient, losses,
):  # fmt: skip
    steps, batch = rows.shape
    width, wide = features.shape[1], gradient.shape[1]
    lr, weight_decay, beta1, beta2, eps = options
    m1[:] = v1[:] = m2[:] = v2[:] = F(0)
    vectors[:4] = F(0)
    for step in range(steps):
        size = 0
        while size < batch and rows[step, size] >= 0:
            size += 1
        if size == 0:
            return
        p = (size + LANES - 1) // LANES * LANES
        x = matrix(by_row[0], 0, size, wide)
        h_by_row = matrix(by_row[1], 0, size, wide)
        x_by_feature = matrix(by_feature[0], 0, width, p)
        h = matrix(by_feature[1], 0, width, p)
        z = matrix(by_feature[2], 0, width, p)
        u = matrix(by_feature[3], 0, width, p)
        d_h = matrix(by_feature[4], 0, width, p)
        gather(features, rows[step, :size], x)
        transpose(x, x_by_feature)
        scores(x_by_feature, w1, b1, w2, b2, h, z)
        unit(x_by_feature, z, u)
        losses[step] = loss(u, labels, rows[step, :size], unit_text, scale, z, d_h)
        db1, db2 = vectors[4], vectors[5]
        _sum_rows(z, size, db2)
        matmul_t(w2, z, d_h)
        for d in range(width):
            for i in range(p):
                d_h[d, i] *= F(1) - h[d, i] * h[d, i]
        _sum_rows(d_h, size, db1)
        transpose(h, h_by_row)

        rate = F(lr / (1 - beta1 ** (step + 1)))
        shrink = F(1 / np.sqrt(1 - beta2 ** (step + 1)))
        adam = (rate, shrink, F(weight_decay), F(beta1), F(1 - beta1), F(beta2), F(1 - beta2),
                F(eps))  # fmt: skip
        _update(w2, z, h_by_row, m2, v2, gradient, adam)
        _update(w1, d_h, x, m1, v1, gradient, adam)
        _adam(b1, db1, vectors[0], vectors[1], adam)
        _adam(b2, db2, vectors[2], vectors[3], adam)


@njit(**PART)
def _update(weight, d_out, inputs, m, v, gradient, adam):
    """Adam on weight (D, D) with the gradient d_out (D, P) @ inputs (B, D), ROWS rows at a time."""
    width = len(weight)
    for start in range(0, width, ROWS):
        end = min(width, start + ROWS)
        matmul(d_out[start:end], inputs, gradient[: end - start])
        for d in range(start, end):
            _adam(weight[d], gradient[d - start, :width], m[d], v[d], adam)


@njit(**PART)
def scores(x, w1, b1, w2, b2, h, z):
    """h = tanh(W1 x + b1), z = W2 h + b2; x, h and z (D, P)."""
    width, size = h.shape
    matmul(w1, x, h)
    for d in range(width):
        for i in range(size):
            h[d, i] = tanh(h[d, i] + b1[d])
    matmul(w2, h, z)
    for d in range(width):
        for i in range(size):
            z[d, i] += b2[d]


@njit(**PART)
def _sum_rows(values, size, sums):
    for d in range(values.shape[0]):
        total = F(0)
        for i in range(size):
            total += values[d, i]
        sums[d] = total


@njit(**PART)
def _adam(weight, gradient, m, v, settings):
    """torch.optim.Adam with coupled L2; rate = lr / (1 - beta1^t), shrink = (1 - beta2^t)^-1/2."""
    rate, shrink, weight_decay, beta1, rest1, beta2, rest2, eps = settings
    for i in range(weight.size):
        g = gradient[i] + weight_decay * weight[i]
        first = beta1 * m[i] + rest1 * g
        second = beta2 * v[i] + rest2 * g * g
        m[i] = first
        v[i] = second
        weight[i] -= rate * first / (np.sqrt(second) * shrink + eps)
