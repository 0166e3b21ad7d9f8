"""Losses of local training and their gradients with respect to the logits, for numba kernels.

Columns are classes k, each with the number n_k of rows it represents: the batch's distinct labels,
or, for loss "class", all C with n_k = 1. Z = scale <u_i, t_k>, with u and t of unit length.
"""

import numpy as np
from numba import njit

from kernels.cpu.math import LEAST, SPLICED, F, exp
from kernels.names import LOSSES

CONTRASTIVE, CLASS, MULTI_POSITIVE = range(len(LOSSES))


@njit(**SPLICED)
def distinct(labels, rows, place, classes, counts, column_of):
    """K, the number of distinct labels in a batch; columns are in order of first appearance.

    Writes place (B,), each row's column, and classes and counts (K,), each column's label and
    number of rows. column_of (C,) is -1 everywhere, before and after.
    """
    columns = 0
    for i in range(len(rows)):
        label = labels[rows[i]]
        if column_of[label] < 0:
            column_of[label] = columns
            classes[columns] = label
            counts[columns] = F(0)
            columns += 1
        place[i] = column_of[label]
        counts[place[i]] += F(1)
    for k in range(columns):
        column_of[classes[k]] = -1
    return columns


@njit(**SPLICED)
def batch_loss(
    loss, z, place, counts, scale, per_row, per_column, gradient, inner, inner_column, lines,
):  # fmt: skip
    """One batch's loss (see kernels/local/__init__.py) and the inputs of its backward pass.

    z (K, at least B) holds the products of vectors v_i, w_k of any length, whose inverse norms are
    per_row and per_column, and is overwritten with Z. With G = d loss / d Z,
    p_ik = n_k e^Z / sum_k n_k e^Z over a row, q_ik = e^Z / sum_i e^Z over a column,
    r_ik = e^Z / sum of e^Z over the rows of class k:

        class           G = (p - [k = y_i]) / B
        contrastive     G = (p + n_k q - 2 [k = y_i]) / 2B
        multi-positive  G = (p + n_k q - [k = y_i] (1 + n_k r)) / 2B

    Writes gradient = scale G / (|v_i| |w_k|), so that d v = sum_k gradient w - inner v and
    d w = sum_i gradient v - inner_column w, as normalization requires: <u, d u> = sum_k G Z is a
    sum over K instead of D. lines (7, at least K and B) is scratch.
    """
    columns, size = len(z), len(place)
    top, sums = lines[0], lines[1]
    top[:size] = LEAST
    sums[:size] = F(0)
    for k in range(columns):
        factor = scale * per_column[k]
        for i in range(size):
            z[k, i] *= factor * per_row[i]
            top[i] = max(top[i], z[k, i])
    for k in range(columns):
        for i in range(size):
            gradient[k, i] = counts[k] * exp(z[k, i] - top[i])
            sums[i] += gradient[k, i]
    total = 0.0
    for i in range(size):  # subtract first: added to a logit of 100, a loss of 1e-6 is lost
        total += (top[i] - z[place[i], i]) + np.log(sums[i])
    share = F(1) / F(size) if loss == CLASS else F(0.5) / F(size)
    for i in range(size):
        sums[i] = share / sums[i]
    for k in range(columns):
        for i in range(size):
            gradient[k, i] *= sums[i]
    if loss == CLASS:
        for i in range(size):
            gradient[place[i], i] -= share
    else:
        total += _over_columns(loss, z, place, counts, share, gradient, lines)
    inner[:size] = F(0)
    for k in range(columns):
        over = F(0)
        factor = scale * per_column[k]
        for i in range(size):
            both = gradient[k, i] * z[k, i]
            inner[i] += both
            over += both
            gradient[k, i] *= factor * per_row[i]
        inner_column[k] = over * per_column[k] * per_column[k]
    for i in range(size):
        inner[i] *= per_row[i] * per_row[i]
    return F(total * share)


@njit(**SPLICED)
def _over_columns(loss, z, place, counts, share, gradient, lines):
    """Add the gradient terms of columns and targets; returns the columns' part of the loss."""
    columns, size = len(z), len(place)
    line, peaks, sums = lines[2], lines[3], lines[4]
    for k in range(columns):
        peak, over = LEAST, F(0)
        for i in range(size):
            peak = max(peak, z[k, i])
        for i in range(size):
            line[i] = exp(z[k, i] - peak)
        for i in range(size):
            over += line[i]
        weight = share * counts[k] / over
        for i in range(size):
            gradient[k, i] += weight * line[i]
        peaks[k], sums[k] = peak, over
    total = 0.0
    if loss == CONTRASTIVE:
        for i in range(size):
            k = place[i]
            total += (peaks[k] - z[k, i]) + np.log(sums[k])
            gradient[k, i] -= F(2) * share
        return total
    own_peaks, own_sums = lines[5], lines[6]
    own_peaks[:columns] = LEAST
    own_sums[:columns] = F(0)
    for i in range(size):
        own_peaks[place[i]] = max(own_peaks[place[i]], z[place[i], i])
    for i in range(size):
        own_sums[place[i]] += exp(z[place[i], i] - own_peaks[place[i]])
    for i in range(size):
        k = place[i]
        own = counts[k] * exp(z[k, i] - own_peaks[k]) / own_sums[k]
        gradient[k, i] -= share * (F(1) + own)
        total += (peaks[k] - own_peaks[k]) + np.log(sums[k] / own_sums[k]) - np.log(counts[k])
    return total
