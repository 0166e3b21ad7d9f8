"""adapter_steps on the CPU, compiled by numba: one thread trains one lane through all its steps.

Activations are feature-major (D, P): the batch's B rows are columns, padded to P, and nothing reads
the padding. Sums over D become vector arithmetic over the batch, and kernels/cpu/tile.py multiplies
without packing. A weight's gradient goes from its product into Adam 8 rows at a time
(kernels/step/cpu_update.py); the D x D gradient is never stored. A lane stays on its thread for the
whole call, which keeps its 6.3 MB (D = 512) in that core's cache. The algebra is that of
kernels/step/plain.py, with the batch's distinct labels as columns.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.adapter import AdamSettings, AdapterState
from kernels.cpu.math import OPTIONS, PART, F, tanh
from kernels.cpu.scratch import staggered
from kernels.cpu.threads import run_all
from kernels.cpu.tile import ROWS, gather, matmul, matmul_t, matrix, padded, transpose
from kernels.step.cpu_loss import loss, unit
from kernels.step.cpu_update import adam, panel_width, update


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
    width, batch = features.shape[1], rows.shape[2]
    return run_lanes(
        _train_lane, lambda: _scratch(width, batch), _spare(width, batch),
        adapters, features, labels, unit_text, rows, settings, logit_scale,
    )  # fmt: skip


def run_lanes(
    train_lane: Callable[..., None],
    scratch: Callable[[], tuple],
    spare: list,
    adapters: AdapterState,
    features: Tensor,
    labels: Tensor,
    unit_text: Tensor,
    rows: Tensor,
    settings: AdamSettings,
    logit_scale: float,
) -> Tensor:
    """The losses (T, L) of train_lane, a compiled function, on every lane; see run_all."""
    steps, lanes, _ = rows.shape
    losses = torch.zeros(steps, lanes)
    weights = [weight.numpy() for weight in adapters]
    table = features.contiguous().numpy(), labels.numpy(), unit_text.contiguous().numpy()
    by_lane = np.ascontiguousarray(rows.numpy().transpose(1, 0, 2))
    options = np.stack([value.numpy() for value in settings], axis=1)
    found = losses.numpy()

    def train(lane: int, scratch: tuple) -> None:
        own = [weight[lane] for weight in weights]
        train_lane(*own, *table, by_lane[lane], options[lane], F(logit_scale), *scratch,
                   found[:, lane])  # fmt: skip

    run_all(train, range(lanes), scratch, spare)
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
        np.zeros((3, batch * padded(width)), np.float32),
        np.zeros((5, width * padded(batch)), np.float32),
        np.zeros((2, ROWS, padded(width)), np.float32),
    )


@njit(**OPTIONS)
def _train_lane(
    w1, b1, w2, b2, features, labels, unit_text, rows, options, scale,
    m1, v1, m2, v2, vectors, by_row, by_feature, gradient, losses,
):  # fmt: skip
    steps = len(rows)
    width = features.shape[1]
    settings = np.empty(8, np.float32)
    lr, weight_decay, beta1, beta2, eps = options
    m1[:] = v1[:] = m2[:] = v2[:] = F(0)
    vectors[:4] = F(0)
    db1, db2 = vectors[4], vectors[5]
    size = count_rows(rows, 0)
    x = matrix(by_feature[0], 0, width, padded(size))
    h = matrix(by_feature[1], 0, width, padded(size))
    _gather_panels(features, rows[0, :size], by_row[0], x)
    matmul(w1, x, h)
    for step in range(steps):
        if size == 0:
            return
        z = matrix(by_feature[2], 0, width, padded(size))
        u = matrix(by_feature[3], 0, width, padded(size))
        d_h = matrix(by_feature[4], 0, width, padded(size))
        activate(h, b1)
        matmul(w2, h, z)
        add_bias(z, b2)
        unit(x, z, u)
        losses[step] = loss(u, labels, rows[step, :size], unit_text, scale, z, d_h)
        sum_rows(z, size, db2)
        matmul_t(w2, z, d_h)
        times_slope(d_h, h)
        sum_rows(d_h, size, db1)
        _to_panels(h, size, by_row[2])
        settings[:] = (lr / (1 - beta1 ** (step + 1)), 1 / np.sqrt(1 - beta2 ** (step + 1)),
                       weight_decay, beta1, 1 - beta1, beta2, 1 - beta2, eps)  # fmt: skip
        update(w2, z, by_row[2], size, m2, v2, gradient, settings, z[:0], z[:, :0])
        adam(b2, db2, vectors[2], vectors[3], settings)
        # The next batch's W1 x is computed in the pass that updates W1: 3 to 4 % of a step. The
        # same for W2, a step later, gained nothing more: the backward product reads W2 in between.
        before, size = size, count_rows(rows, step + 1)
        x = matrix(by_feature[0], 0, width, padded(size))
        h = matrix(by_feature[1], 0, width, padded(size))
        _gather_panels(features, rows[min(step + 1, steps - 1), :size], by_row[1 - step % 2], x)
        update(w1, d_h, by_row[step % 2], before, m1, v1, gradient, settings, x, h)
        adam(b1, db1, vectors[0], vectors[1], settings)


@njit(**PART)
def count_rows(rows, step):
    """The number of rows of a step, before its -1; 0 after the last step."""
    size = 0
    if step < len(rows):
        while size < rows.shape[1] and rows[step, size] >= 0:
            size += 1
    return size


@njit(**PART)
def _gather_panels(features, rows, panels, by_feature):
    """features[rows] in panels, as `update` takes them, and as columns of by_feature (D, P)."""
    size, width = len(rows), features.shape[1]
    panel = panel_width(width)
    for start in range(0, width, panel):
        part = matrix(panels, start * size, size, panel)
        gather(features[:, start : start + panel], rows, part)
        transpose(part, by_feature[start : start + panel])


@njit(**PART)
def _to_panels(h, size, panels):
    """The first `size` columns of h (D, P) as rows, in panels."""
    panel = panel_width(len(h))
    for start in range(0, len(h), panel):
        transpose(h[start : start + panel], matrix(panels, start * size, size, panel))


@njit(**PART)
def scores(x, w1, b1, w2, b2, h, z):
    """h = tanh(W1 x + b1), z = W2 h + b2; x, h and z (D, P)."""
    matmul(w1, x, h)
    activate(h, b1)
    matmul(w2, h, z)
    add_bias(z, b2)


@njit(**PART)
def activate(h, bias):
    """h[d] = tanh(h[d] + bias[d]); h (D, P)."""
    for d in range(h.shape[0]):
        for i in range(h.shape[1]):
            h[d, i] = tanh(h[d, i] + bias[d])


@njit(**PART)
def add_bias(z, bias):
    """z[d] += bias[d]; z (D, P)."""
    for d in range(z.shape[0]):
        for i in range(z.shape[1]):
            z[d, i] += bias[d]


@njit(**PART)
def times_slope(d_h, h):
    """d_h *= 1 - h^2, what tanh leaves of a gradient; d_h and h (D, P)."""
    for d in range(h.shape[0]):
        for i in range(h.shape[1]):
            d_h[d, i] *= F(1) - h[d, i] * h[d, i]


@njit(**PART)
def sum_rows(values, size, sums):
    """sums[d] = values[d, :size] added up; values (D, P)."""
    for d in range(values.shape[0]):
        total = F(0)
        for i in range(size):
            total += values[d, i]
        sums[d] = total
