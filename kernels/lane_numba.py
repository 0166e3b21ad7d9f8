"""One lane through all its steps, compiled by numba: gradients in closed form, into one row (P,).

Vectors are never divided by their lengths: those go into the logits and into the gradient by them
(losses_numba.py), which are K x B numbers and not D x B. K columns stand for the classes.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from kernels.heads_numba import ATTENTION, COSINE, backward, forward
from kernels.losses_numba import CLASS, batch_loss, distinct
from kernels.numba_math import OPTIONS, F
from kernels.optimizers_numba import update
from kernels.rows_numba import (
    back,
    column_lengths,
    gather_columns,
    gather_rows,
    outer,
    row_lengths,
    subtract_columns,
    subtract_rows,
    times_in_blocks,
    transpose,
)


class Buffers(NamedTuple):
    """What a thread writes over in every step; (..., n D) are cut into matrices of n columns."""

    images: np.ndarray  # (5, B D) float32, D or the hidden width where that is larger
    texts: np.ndarray  # (5, K D) float32, K the most columns a batch can have
    columns: np.ndarray  # (K, D) float32: what stands for the classes
    pairs: np.ndarray  # (2, K B) float32: logits and the gradient by them
    by_row: np.ndarray  # (2, B) float32: inverse lengths and <u, d_u>
    by_column: np.ndarray  # (3, K) float32: the same of columns, and their counts
    place: np.ndarray  # (B,) int32: each row's column
    classes: np.ndarray  # (K,) int32: each column's class
    column_of: np.ndarray  # (C,) int32, -1 outside of losses_numba.distinct
    hidden: int  # rows of a head's inner activations


@njit(**OPTIONS)
def train_lane(
    codes, parts, weight, features, labels, text, rows, settings, scale, anchor, shift, done,
    gradient, first, second, buffers, losses,
):  # fmt: skip
    """All steps of one lane; returns how many there were."""
    head, loss, optimizer = codes
    images, texts = parts
    place, counts = buffers.place, buffers.by_column[2]
    per_row, inner = buffers.by_row[0], buffers.by_row[1]
    per_column, inner_column = buffers.by_column[0], buffers.by_column[1]
    width, columns = features.shape[1], len(buffers.classes)
    for k in range(columns):  # for the loss "class"; the others write their own in each step
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
                place[i] = labels[asked[i]]
        else:
            columns = distinct(labels, asked, place, buffers.classes, counts, buffers.column_of)
        x, h, u, d_u, spare = _cut(buffers.images, width, buffers.hidden, n)
        if images:
            gather_columns(features, asked, head != ATTENTION, x)
            forward(head, weight[:images], x, h, u, spare)
        else:
            gather_columns(features, asked, False, u)
        column_lengths(u, per_row)
        t = _columns(codes, texts, weight[images:], text, columns, buffers, step)
        z = buffers.pairs[0, : columns * n].reshape(columns, n)
        d_z = buffers.pairs[1, : columns * n].reshape(columns, n)
        times_in_blocks(t, u, z)
        losses[step] = batch_loss(
            loss, z, place, counts, scale, per_row, per_column, d_z, inner, inner_column
        )
        if images:
            back(t, d_z, d_u)
            subtract_columns(d_u, inner, u)
            backward(head, weight[:images], x, h, u, d_u, spare, gradient[:images])
        if texts:
            _text_gradient(codes, weight[images:], t, u, d_z, buffers, gradient[images:])
        update(optimizer, weight, gradient, first, second, anchor, shift, done + step + 1, settings)
    return len(rows)


@njit(**OPTIONS)
def _columns(codes, texts, row, text, columns, buffers, step):
    """t (K, D), what stands for the classes; its rows' inverse lengths are written."""
    head, loss, _ = codes
    classes, lengths = buffers.classes[:columns], buffers.by_column[0]
    width = text.shape[1]
    t = buffers.columns[:columns]
    if not texts:
        lengths[:columns] = F(1)
        if loss == CLASS:
            return text
        gather_rows(text, classes, t)
    elif head == COSINE:
        table = row.reshape(len(text), width)
        if loss == CLASS:
            t = table
        else:
            gather_rows(table, classes, t)
        row_lengths(t, lengths)
    else:
        y, h, v, _, spare = _cut(buffers.texts, width, buffers.hidden, columns)
        if step == 0 or loss != CLASS:
            gather_columns(text, classes, False, y)
        forward(head, row, y, h, v, spare)
        column_lengths(v, lengths)
        transpose(v, t)
    return t


@njit(**OPTIONS)
def _text_gradient(codes, row, t, u, d_z, buffers, gradient):
    """gradient = d loss / d row of the text's adapter, from d t = d_z u^T - inner t."""
    head, loss, _ = codes
    columns, width = t.shape
    inner = buffers.by_column[1]
    if head != COSINE:
        y, h, v, d_v, spare = _cut(buffers.texts, width, buffers.hidden, columns)
        outer(u, d_z, d_v)
        subtract_columns(d_v, inner, v)
        backward(head, row, y, h, v, d_v, spare, gradient)
        return
    table = gradient.reshape(len(gradient) // width, width)
    if loss == CLASS:
        outer(d_z, u, table)
        subtract_rows(table, inner, t)
        return
    d_t = buffers.texts[0, : columns * width].reshape(columns, width)
    outer(d_z, u, d_t)
    subtract_rows(d_t, inner, t)
    gradient[:] = F(0)
    for k in range(columns):
        for d in range(width):
            table[buffers.classes[k], d] = d_t[k, d]


@njit(**OPTIONS)
def _cut(buffers, width, hidden, n):
    """x (D, n), h (hidden, n), u (D, n), d_u (D, n) and as many numbers as the larger of those."""
    x = buffers[0, : width * n].reshape(width, n)
    h = buffers[1, : hidden * n].reshape(hidden, n)
    u = buffers[2, : width * n].reshape(width, n)
    d_u = buffers[3, : width * n].reshape(width, n)
    wide = max(width, hidden)
    return x, h, u, d_u, buffers[4, : wide * n].reshape(wide, n)
