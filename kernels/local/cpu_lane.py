"""All steps of one lane, compiled by numba: gradients in closed form, written to one row (P,).

Vectors are never divided by their norms: the norms are applied to the logits and their gradient
(cpu_losses.py), which are K x B numbers instead of D x B. K columns represent the classes.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from kernels.cpu.math import OPTIONS, SPLICED, F
from kernels.cpu.rows import (
    by_rows,
    column_lengths,
    gather_columns,
    outer,
    row_lengths,
    subtract_columns,
    subtract_rows,
)
from kernels.cpu.tile import gather, matmul, matmul_t, matrix, padded, transpose
from kernels.heads.cpu import ATTENTION, COSINE, backward, forward
from kernels.local.cpu_losses import CLASS, batch_loss, distinct
from kernels.local.cpu_optimizers import update


class Buffers(NamedTuple):
    """A thread's scratch, overwritten in every step; (..., p D) are cut into matrices of p columns.

    p is the number of rows B, or of columns K, of a batch, rounded up to kernels.cpu.tile.LANES.
    """

    images: np.ndarray  # (5, p D) float32, D the larger of width and hidden width
    texts: np.ndarray  # (5, p D) float32, for the most columns K a batch can have
    across: np.ndarray  # (2, max(B, K) times the largest padded width) float32: row-major copies
    columns: np.ndarray  # (K, D) float32: the classes' vectors
    pairs: np.ndarray  # (2, K p) float32: logits and their gradient
    by_row: np.ndarray  # (2, p) float32: inverse norms and <u, d_u>
    by_column: np.ndarray  # (3, p) float32: the same for columns, and their counts
    place: np.ndarray  # (B,) int32: each row's column
    classes: np.ndarray  # (K,) int32: each column's class
    column_of: np.ndarray  # (C,) int32, -1 outside cpu_losses.distinct
    lines: np.ndarray  # (7, the larger p) float32: sums over rows and over columns
    widened: np.ndarray  # (largest weight matrix, its columns padded,) float32
    hidden: int  # rows of a head's inner activations


@njit(**OPTIONS)
def train_lane(
    codes, parts, weight, features, labels, text, rows, settings, scale, anchor, shift, done,
    gradient, first, second, buffers, losses,
):  # fmt: skip
    """All steps of one lane; returns how many it took."""
    _, loss, optimizer = codes
    counts = buffers.by_column[2]
    columns = len(buffers.classes)
    for k in range(columns):  # for loss "class"; other losses overwrite them in each step
        buffers.classes[k] = k
        counts[k] = F(1)
    for step in range(len(rows)):
        n = 0
        while n < rows.shape[1] and rows[step, n] >= 0:
            n += 1
        if n == 0:
            return step
        asked = rows[step, :n]
        if loss == CLASS:
            for i in range(n):
                buffers.place[i] = labels[asked[i]]
        else:
            columns = distinct(
                labels, asked, buffers.place, buffers.classes, counts, buffers.column_of
            )
        classes = buffers.classes[:columns]
        _activate(codes, parts, weight, features, text, asked, classes, buffers, step == 0)
        t = _columns(codes, parts, weight, text, classes, buffers)
        p = padded(n)
        u = matrix(buffers.images[2], 0, text.shape[1], p)
        z = matrix(buffers.pairs[0], 0, columns, p)
        d_z = matrix(buffers.pairs[1], 0, columns, p)
        matmul(t, u, z)
        losses[step] = batch_loss(
            loss, z, buffers.place[:n], counts, scale, buffers.by_row[0], buffers.by_column[0],
            d_z, buffers.by_row[1], buffers.by_column[1], buffers.lines,
        )  # fmt: skip
        _differentiate(codes, parts, weight, t, u, d_z, n, buffers, gradient)
        update(optimizer, weight, gradient, first, second, anchor, shift, done + step + 1, settings)
    return len(rows)


@njit(**SPLICED)
def _activate(codes, parts, weight, features, text, asked, classes, buffers, begins):
    """Heads' outputs for the batch's rows and its classes, and their inverse norms.

    A loop over both sides, because compiling a head twice takes twice as long.
    """
    head, loss, _ = codes
    sides, tables = (buffers.images, buffers.texts), (features, text)
    picked, lengths = (asked, classes), (buffers.by_row[0], buffers.by_column[0])
    for side in range(2):
        if side == 1 and (not parts[1] or head == COSINE):
            continue
        x, h, u, _, spare = _cut(sides[side], text.shape[1], buffers.hidden, len(picked[side]))
        unit = side == 0 and parts[0] > 0 and head != ATTENTION  # text comes as its head needs it
        if side == 0 or begins or loss != CLASS:
            out = x if parts[side] else u
            gather_columns(tables[side], picked[side], unit, out, buffers.lines[0])
        if parts[side]:
            start = side * parts[0]
            forward(head, weight[start : start + parts[side]], x, h, u, spare, buffers.lines[0])
        column_lengths(u, lengths[side], buffers.lines[0])


@njit(**SPLICED)
def _columns(codes, parts, weight, text, classes, buffers):
    """t (K, D), the classes' vectors; writes the inverse norms of rows not computed by a head."""
    head, loss, _ = codes
    lengths = buffers.by_column[0]
    columns, width = len(classes), text.shape[1]
    t = buffers.columns[:columns]
    if parts[1] and head != COSINE:
        p = padded(columns)
        transpose(matrix(buffers.texts[2], 0, width, p), t)
        return t
    table = matrix(weight, 0, len(text), width) if head == COSINE else text
    if loss == CLASS:
        t = table
    else:
        gather(table, classes, t)
    if head == COSINE:
        row_lengths(t, lengths)
    else:
        lengths[:columns] = F(1)
    return t


@njit(**SPLICED)
def _differentiate(codes, parts, weight, t, u, d_z, n, buffers, gradient):
    """A lane's gradient (P,): d u = t^T d_z - inner u, d t = d_z u^T - inner t, through the heads.

    d_z (K, p), of which the first n columns count, and inner are as batch_loss leaves them.
    """
    head, loss, _ = codes
    columns, width = t.shape
    sides, inner = (buffers.images, buffers.texts), (buffers.by_row[1], buffers.by_column[1])
    if head == COSINE:
        _cosine(loss, t, u, d_z, n, inner[1], buffers, gradient)
        return
    for side in range(2):
        if not parts[side]:
            continue
        count = columns if side else n
        x, h, y, d_y, spare = _cut(sides[side], width, buffers.hidden, count)
        if side == 0:
            matmul_t(t, d_z, d_y)
        else:
            outer(u, by_rows(d_z, n, buffers.across[0]), d_y, buffers.widened)
        subtract_columns(d_y, inner[side], y)
        start = side * parts[0]
        end = start + parts[side]
        backward(
            head, weight[start:end], count, x, h, y, d_y, spare, buffers.across,
            gradient[start:end], buffers.widened,
        )  # fmt: skip


@njit(**SPLICED)
def _cosine(loss, t, u, d_z, n, inner, buffers, gradient):
    """gradient (C D,): d t in the rows of the batch's classes, 0 elsewhere."""
    columns, width = t.shape
    by_class = matrix(gradient, 0, len(gradient) // width, width)
    if loss == CLASS:
        d_t = by_class
    else:
        d_t = matrix(buffers.texts[0], 0, columns, width)
    outer(d_z, by_rows(u, n, buffers.across[0]), d_t, buffers.widened)
    subtract_rows(d_t, inner, t)
    if loss != CLASS:
        gradient[:] = F(0)
        for k in range(columns):
            for d in range(width):
                by_class[buffers.classes[k], d] = d_t[k, d]


@njit(**SPLICED)
def _cut(buffers, width, hidden, n):
    """x (D, p), h (hidden, p), u (D, p), d_u (D, p) and scratch the size of the largest."""
    p = padded(n)
    x = matrix(buffers[0], 0, width, p)
    h = matrix(buffers[1], 0, hidden, p)
    u = matrix(buffers[2], 0, width, p)
    d_u = matrix(buffers[3], 0, width, p)
    wide = max(width, hidden)
    return x, h, u, d_u, matrix(buffers[4], 0, wide, p)
