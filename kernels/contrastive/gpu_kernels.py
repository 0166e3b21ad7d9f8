"""Triton kernels of contrastive: tiles of Z in registers, per-tile sums added in one order."""

import math

import triton
import triton.language as tl

from kernels import backends
from kernels.gpu.layer import LEAST

INTERPRETED = tl.constexpr(backends.INTERPRETED)
LOG2_E_64 = tl.constexpr(math.log2(math.e))
GROUP = tl.constexpr(8)
"""Row tiles whose programs run consecutively, so that they find their operands in L2."""
LOW = tl.constexpr(2.0**-11)
"""The weight of the low one of an exact operand's two float16 parts."""
LARGEST = tl.constexpr(2.0**13)
"""G / (scale share) is between -2 and 2; multiplied by this, it is stored as two float16 parts."""


@triton.jit
def _parts(v):
    """v (|v| < 2^15) as two float16 parts: v = high + LOW low, to a relative 2^-22."""
    high = v.to(tl.float16)
    return high, ((v - high.to(tl.float32)) / LOW).to(tl.float16)


@triton.jit
def _add_product(sums, a, a_low, b, b_low):
    """sums + (a + LOW a_low) @ (b + LOW b_low), without the product of the low parts.

    The tensor core sums each block of K from zero: its adder truncates, which over all of K would
    give 20 times float32's error.
    """
    if INTERPRETED:  # the interpreter would multiply in float16
        a, a_low, b, b_low = (a.to(tl.float32), a_low.to(tl.float32), b.to(tl.float32),
                              b_low.to(tl.float32))  # fmt: skip
    cross = tl.dot(a, b_low, tl.dot(a_low, b))
    return sums + cross * LOW + tl.dot(a, b)


@triton.jit
def _logits(x, y, units, i, j, count, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
            BK: tl.constexpr):  # fmt: skip
    """(BM, BN) x[i] @ y[j].T for bfloat16 (N, D), or for two parts (2, N, D) scaled by units."""
    EXACT: tl.constexpr = x.dtype.element_ty == tl.float16
    low = tl.cast(count, tl.int64) * D
    x_rows = x + i[:, None] * D
    y_rows = y + j[None, :] * D
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        a, b = _loaded(x_rows, y_rows, k, D, BK)
        if EXACT:
            a_low, b_low = _loaded(x_rows + low, y_rows + low, k, D, BK)
            sums = _add_product(sums, a, a_low, b, b_low)
        else:
            if INTERPRETED:  # it would multiply bfloat16 bit patterns as integers
                a, b = a.to(tl.float32), b.to(tl.float32)
            sums = tl.dot(a, b, sums)
    if EXACT:
        sums *= tl.load(units) * tl.load(units + 1)
    return sums


@triton.jit
def _loaded(x_rows, y_rows, k, D: tl.constexpr, BK: tl.constexpr):
    if D % BK == 0:
        return tl.load(x_rows + k[None, :]), tl.load(y_rows + k[:, None])
    else:
        a = tl.load(x_rows + k[None, :], mask=(k < D)[None, :], other=0.0)
        return a, tl.load(y_rows + k[:, None], mask=(k < D)[:, None], other=0.0)


@triton.jit
def _base2(scale):
    """scale / ln 2, rounded once."""
    return (tl.load(scale).to(tl.float64) * LOG2_E_64).to(tl.float32)


@triton.jit
def _place(program, rows, columns):
    """Row and column of a program's tile: GROUP rows of tiles at a time, column by column."""
    group = program // (GROUP * columns)
    height = tl.minimum(rows - group * GROUP, GROUP)
    inside = program % (GROUP * columns)
    return group * GROUP + inside % height, inside // height


@triton.jit(do_not_specialize_on_alignment=["scale"])
def statistics(
    x, y, units, row_peaks, row_sums, column_peaks, column_sums, at_pair, scale, count,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Maxima and sums of 2^(z - maximum) over rows and columns of a tile of z = Z / ln 2.

    row_* (N / BN, N) are indexed by the tile's column, column_* (N / BM, N) by its row;
    at_pair (N,) gets the diagonal of z.
    """
    rows = tl.cdiv(count, BM)
    above, left = _place(tl.program_id(0), rows, tl.cdiv(count, BN))
    i = above * BM + tl.arange(0, BM)
    j = left * BN + tl.arange(0, BN)
    at_i, at_j = tl.minimum(i, count - 1), tl.minimum(j, count - 1)
    z = _logits(x, y, units, at_i, at_j, count, D, BM, BN, BK)
    z *= _base2(scale)
    both = (i < count)[:, None] & (j < count)[None, :]
    z = tl.where(both, z, LEAST)
    if (above * BM < (left + 1) * BN) & (left * BN < (above + 1) * BM):  # on the diagonal
        pair = tl.sum(tl.where(i[:, None] == j[None, :], z, 0.0), 1)
        mask = (i < count) & (i >= left * BN) & (i < (left + 1) * BN)
        tl.store(at_pair + i, pair, mask=mask)
    peak = tl.max(z, 0)
    at = above.to(tl.int64) * count + j
    tl.store(column_peaks + at, peak, mask=j < count)
    tl.store(column_sums + at, tl.sum(tl.exp2(z - peak[None, :]), 0), mask=j < count)
    peak = tl.max(z, 1)
    at = left.to(tl.int64) * count + i
    tl.store(row_peaks + at, peak, mask=i < count)
    tl.store(row_sums + at, tl.sum(tl.exp2(z - peak[:, None]), 1), mask=i < count)


@triton.jit
def combine(peaks, sums, out, count, tiles, BN: tl.constexpr):
    """out = log2 sum over tiles of sums * 2^peaks, in order; sums and peaks are (tiles, N)."""
    i = tl.program_id(0) * BN + tl.arange(0, BN)
    peak = tl.full((BN,), LEAST, tl.float32)
    for tile in range(tiles):
        at = tl.cast(tile, tl.int64) * count + i
        peak = tl.maximum(peak, tl.load(peaks + at, mask=i < count, other=LEAST))
    total = tl.zeros((BN,), tl.float32)
    for tile in range(tiles):
        at = tl.cast(tile, tl.int64) * count + i
        here = tl.load(peaks + at, mask=i < count, other=LEAST)
        total += tl.load(sums + at, mask=i < count, other=1.0) * tl.exp2(here - peak)
    tl.store(out + i, peak + tl.log2(total), mask=i < count)


@triton.jit(do_not_specialize_on_alignment=["scale"])
def gradient(
    x, y, units, by_row, by_column, chunk, scale, share, first, here, count, stride,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Rows first..first+here-1 of G: scale * share * (2^(z - by_row) + 2^(z - by_column) - 2 I).

    Exact: LARGEST G / (scale * share) in two parts, (2, here, stride).
    """
    above, left = _place(tl.program_id(0), tl.cdiv(here, BM), tl.cdiv(count, BN))
    local = above * BM + tl.arange(0, BM)
    i = first + local
    j = left * BN + tl.arange(0, BN)
    at_i, at_j = tl.minimum(i, count - 1), tl.minimum(j, count - 1)
    z = _logits(x, y, units, at_i, at_j, count, D, BM, BN, BK)
    z *= _base2(scale)
    rows = tl.load(by_row + i, mask=i < count, other=-LEAST)
    columns = tl.load(by_column + j, mask=j < count, other=-LEAST)
    g = tl.exp2(z - rows[:, None]) + tl.exp2(z - columns[None, :])
    g -= tl.where(i[:, None] == j[None, :], 2.0, 0.0)
    at = (above.to(tl.int64) * BM * stride + tl.arange(0, BM)[:, None] * stride) + j[None, :]
    mask = (local < here)[:, None] & (j < count)[None, :]
    if chunk.dtype.element_ty == tl.float16:
        high, low = _parts(g * LARGEST)
        tl.store(chunk + at, high, mask=mask)
        tl.store(chunk + tl.cast(here, tl.int64) * stride + at, low, mask=mask)
    else:
        g *= tl.load(scale).to(tl.float32) * share
        tl.store(chunk + at, g.to(chunk.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize_on_alignment=["scale", "unit"])
def multiply(
    a, b, b_low, out, unit, scale, share, rows, inner, stride,
    W: tl.constexpr, TURNED: tl.constexpr, ADD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """out = G @ B, or out + G @ B: G (rows, inner), TURNED (inner, rows); B (inner, W).

    a      LARGEST G / (scale share) in two parts, as written by gradient
    b      the high part of B / unit; b_low its low part
    """
    here = inner if TURNED else rows
    low = tl.cast(here, tl.int64) * stride
    COLUMNS: tl.constexpr = (W + BN - 1) // BN
    i = tl.program_id(0) // COLUMNS * BM + tl.arange(0, BM)
    n = tl.program_id(0) % COLUMNS * BN + tl.arange(0, BN)
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, inner, BK):
        k = start + tl.arange(0, BK)
        if TURNED:
            a_at = a + k.to(tl.int64)[None, :] * stride + i[:, None]
        else:
            a_at = a + i.to(tl.int64)[:, None] * stride + k[None, :]
        mask = (i < rows)[:, None] & (k < inner)[None, :]
        left = tl.load(a_at, mask=mask, other=0.0)
        left_low = tl.load(a_at + low, mask=mask, other=0.0)
        b_at, mask = k[:, None] * W + n[None, :], (k < inner)[:, None] & (n < W)[None, :]
        right = tl.load(b + b_at, mask=mask, other=0.0)
        right_low = tl.load(b_low + b_at, mask=mask, other=0.0)
        sums = _add_product(sums, left, left_low, right, right_low)
    sums *= tl.load(unit) * (tl.load(scale).to(tl.float32) * share) * (1 / LARGEST)
    at = out + i[:, None] * W + n[None, :]
    mask = (i < rows)[:, None] & (n < W)[None, :]
    if ADD:
        sums += tl.load(at, mask=mask, other=0.0)
    tl.store(at, sums, mask=mask)
