"""Triton kernels of a training step from the adapters' second layer to their update.

A batch is padded to BATCH rows, a power of two; row -1 is padding. Z is B x B, with one column per
row of the batch: at 32 rows it fits one tile, so merging equal labels would save nothing. Sums over
rows and columns of Z are stored per tile and combined where they are read: no atomics, and one
fixed order.
"""

import triton
import triton.language as tl

from kernels.gpu.layer import LEAST, PRECISION, add_product, row_tops, wait_for_previous

ONCE = tl.constexpr("evict_first")
"""For m and v, which a step reads once and writes once: evicting them first frees L2 for weights,
which its other launches read. L2 holds 12 lanes' weights, 2.1 MB each, but not 6.3 MB with m, v."""


@triton.jit
def logits(
    features, rows, labels, text, scores, tops, z, row_peaks, row_sums, column_peaks, column_sums,
    inverses, scale,
    D: tl.constexpr, BATCH: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """A BM x BC tile of Z = scale * u @ text[labels].T, u = normalize(exp(scores - top) * x).

    inverses (L, BATCH) get 1 / max(norm, 1e-12). Maxima and sums of exponentials are per tile:
    row_* (L, BATCH / BC, BATCH), column_* (L, BATCH / BM, BATCH).
    """
    ACROSS: tl.constexpr = BATCH // BC
    PARTS: tl.constexpr = BATCH // BM
    program = tl.program_id(0)
    lane = (program // (PARTS * ACROSS)).to(tl.int64)
    part = program // ACROSS % PARTS
    across = program % ACROSS
    i = part * BM + tl.arange(0, BM)
    j = across * BC + tl.arange(0, BC)
    first = lane * BATCH
    row, other = tl.load(rows + first + i), tl.load(rows + first + j)
    label = tl.load(labels + tl.maximum(other, 0))
    x_rows = features + tl.maximum(row, 0).to(tl.int64)[:, None] * D
    s_rows = scores + first * D + i[:, None] * D
    t_rows = text + label[None, :] * D
    wait_for_previous(OVERLAP)
    top = row_tops(tops, first + part * BM, COLUMNS, BM, PADDED)
    products = tl.zeros((BM, BC), tl.float32)
    squares = tl.zeros((BM, BK), tl.float32)
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        s = tl.load(s_rows + k[None, :], mask=(k < D)[None, :], other=LEAST)
        x = tl.load(x_rows + k[None, :], mask=(row >= 0)[:, None] & (k < D)[None, :], other=0.0)
        t = tl.load(t_rows + k[:, None], mask=(k < D)[:, None], other=0.0)
        u = tl.exp(s - top[:, None]) * x
        products = tl.dot(u, t, products, input_precision=PRECISION)
        squares += u * u
    inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(squares, 1)), 1e-12)
    if across == 0:
        tl.store(inverses + first + i, inverse)
    both = (row >= 0)[:, None] & (other >= 0)[None, :]
    tile = tl.where(both, products * (inverse * scale)[:, None], LEAST)
    tl.store(z + first * BATCH + i[:, None] * BATCH + j[None, :], tile)
    peak = tl.max(tile, 1)
    at = (lane * ACROSS + across) * BATCH + i
    tl.store(row_peaks + at, peak)
    tl.store(row_sums + at, tl.sum(tl.exp(tile - peak[:, None]), 1))
    peak = tl.max(tile, 0)
    at = (lane * PARTS + part) * BATCH + j
    tl.store(column_peaks + at, peak)
    tl.store(column_sums + at, tl.sum(tl.exp(tile - peak[None, :]), 0))


@triton.jit
def log_sums(peaks, sums, lane, at, BATCH: tl.constexpr, TILES: tl.constexpr):
    """log-sum-exp of rows or columns `at` of a lane's Z, combined over its TILES tiles."""
    start = lane * TILES * BATCH + at
    peak = tl.load(peaks + start)
    for tile in range(1, TILES):
        peak = tl.maximum(peak, tl.load(peaks + start + tile * BATCH))
    total = tl.load(sums + start) * tl.exp(tl.load(peaks + start) - peak)
    for tile in range(1, TILES):
        share = tl.load(sums + start + tile * BATCH)
        total += share * tl.exp(tl.load(peaks + start + tile * BATCH) - peak)
    return peak + tl.log(total)


@triton.jit(do_not_specialize_on_alignment=["losses"])
def score_gradients(
    features, rows, labels, text, scores, tops, z, row_peaks, row_sums, column_peaks, column_sums,
    inverses, losses, scale,
    D: tl.constexpr, BATCH: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr,
    PARTS: tl.constexpr, BM: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """scores become d loss / d scores = u * (d_u - u <u, d_u>), BM x BN of them per program.

    d_u = scale * G @ text[labels], G = (softmax over rows + softmax over columns - 2 I) / 2B, and
    <u, d_u> = sum_j G_ij Z_ij, a sum over the batch instead of D.
    losses (L, BATCH / BM) get each block's share of the loss.
    """
    ACROSS: tl.constexpr = BATCH // BC
    BLOCKS: tl.constexpr = BATCH // BM
    WIDE: tl.constexpr = (D + BN - 1) // BN
    program = tl.program_id(0)
    lane = (program // (BLOCKS * WIDE)).to(tl.int64)
    part = program // WIDE % BLOCKS
    column = program % WIDE
    i = part * BM + tl.arange(0, BM)
    n = column * BN + tl.arange(0, BN)
    first = lane * BATCH
    row = tl.load(rows + first + i)
    size = tl.sum((tl.load(rows + first + tl.arange(0, BATCH)) >= 0).to(tl.float32), 0)
    wait_for_previous(OVERLAP)
    by_row = log_sums(row_peaks, row_sums, lane, i, BATCH, ACROSS)
    d_u = tl.zeros((BM, BN), tl.float32)
    products = tl.zeros((BM, BC), tl.float32)
    for start in range(0, BATCH, BC):
        j = start + tl.arange(0, BC)
        other = tl.load(rows + first + j)
        label = tl.load(labels + tl.maximum(other, 0))
        by_column = log_sums(column_peaks, column_sums, lane, j, BATCH, PARTS)
        tile = tl.load(z + first * BATCH + i[:, None] * BATCH + j[None, :])
        g = tl.exp(tile - by_row[:, None]) + tl.exp(tile - by_column[None, :])
        g -= tl.where(i[:, None] == j[None, :], 2.0, 0.0)
        g = tl.where((row >= 0)[:, None] & (other >= 0)[None, :], g * (0.5 / size), 0.0)
        products += g * tile
        t = tl.load(text + label[:, None] * D + n[None, :], mask=(n < D)[None, :], other=0.0)
        d_u = tl.dot(g, t, d_u, input_precision=PRECISION)
    inner = tl.sum(products, 1)
    mask = (row >= 0)[:, None] & (n < D)[None, :]
    x = tl.load(
        features + tl.maximum(row, 0).to(tl.int64)[:, None] * D + n[None, :], mask=mask, other=0.0
    )
    here = scores + first * D + i[:, None] * D + n[None, :]
    s = tl.load(here, mask=(n < D)[None, :], other=LEAST)
    top = row_tops(tops, first + part * BM, COLUMNS, BM, PADDED)
    u = tl.exp(s - top[:, None]) * x * tl.load(inverses + first + i)[:, None]
    tl.store(here, u * (d_u * scale - u * inner[:, None]), mask=(n < D)[None, :])
    if column == 0:
        by_column = log_sums(column_peaks, column_sums, lane, i, BATCH, PARTS)
        at_pair = tl.load(z + first * BATCH + i * (BATCH + 1))
        terms = tl.where(row >= 0, by_row + by_column - 2.0 * at_pair, 0.0)
        tl.store(losses + lane * BLOCKS + part, tl.sum(terms, 0) * (0.5 / size))


@triton.jit
def hidden_gradients(
    d_scores, weight, hidden, out,
    WEIGHT_STRIDE: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """out = (d_scores @ weight) * (1 - hidden^2), BM x BN per program, transposed as in `layer`."""
    COLUMNS: tl.constexpr = (D + BN - 1) // BN
    block = (tl.program_id(0) // COLUMNS).to(tl.int64)
    n = tl.program_id(0) % COLUMNS * BN + tl.arange(0, BN)
    i = tl.arange(0, BM)
    d_rows = d_scores + block * BM * D + i[None, :] * D
    w_columns = weight + block // PARTS * WEIGHT_STRIDE + n[:, None]
    wait_for_previous(OVERLAP)
    sums = tl.zeros((BN, BM), tl.float32)
    for start in range(0, D, BK):
        k = start + tl.arange(0, BK)
        w = tl.load(w_columns + k[None, :] * D, mask=(n < D)[:, None] & (k < D)[None, :], other=0.0)
        d = tl.load(d_rows + k[:, None], mask=(k < D)[:, None], other=0.0)
        sums = add_product(sums, w, d)
    at = block * BM * D + i[None, :] * D + n[:, None]
    h = tl.load(hidden + at, mask=(n < D)[:, None], other=0.0)
    tl.store(out + at, sums * (1.0 - h * h), mask=(n < D)[:, None])


@triton.jit
def update(
    d_scores, hidden, d_hidden, features, rows, optimizer, w1, b1, w2, b2, m, v,
    W1_STRIDE: tl.constexpr, B1_STRIDE: tl.constexpr, W2_STRIDE: tl.constexpr,
    B2_STRIDE: tl.constexpr, D: tl.constexpr, BATCH: tl.constexpr, FIRST: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BB: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Adam on all four arrays; the weights' gradients never reach memory.

    optimizer (L, 8) float32: this step's rate, shrink, weight_decay, beta1, 1 - beta1, beta2,
    1 - beta2, eps. m and v (L, 2 D (D + 1)) are in the order w1, b1, w2, b2; in the FIRST step they
    are taken as 0 and not read.
    """
    TILES: tl.constexpr = ((D + BM - 1) // BM) * ((D + BN - 1) // BN)
    lane = (tl.program_id(0) // (2 * TILES)).to(tl.int64)
    tile = tl.program_id(0) % (2 * TILES)
    moments = lane * (2 * D * (D + 1))
    wait_for_previous(OVERLAP)
    if tile < TILES:
        _update_tile(
            d_scores + lane * BATCH * D, hidden + lane * BATCH * D, None, optimizer + lane * 8,
            w2 + lane * W2_STRIDE, b2 + lane * B2_STRIDE, m + moments + D * (D + 1),
            v + moments + D * (D + 1), tile, D, BATCH, FIRST, BM, BN, BB,
        )  # fmt: skip
    else:
        _update_tile(
            d_hidden + lane * BATCH * D, features, rows + lane * BATCH, optimizer + lane * 8,
            w1 + lane * W1_STRIDE, b1 + lane * B1_STRIDE, m + moments, v + moments, tile - TILES,
            D, BATCH, FIRST, BM, BN, BB,
        )  # fmt: skip


@triton.jit
def _update_tile(
    outer, inner, rows, optimizer, weight, bias, m, v, tile,
    D: tl.constexpr, BATCH: tl.constexpr, FIRST: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """A BM x BN tile of weight, gradient outer.T @ inner (inner[rows]); in column 0, bias too."""
    COLUMNS: tl.constexpr = (D + BN - 1) // BN
    o = tile // COLUMNS * BM + tl.arange(0, BM)
    n = tile % COLUMNS * BN + tl.arange(0, BN)
    gradient = tl.zeros((BM, BN), tl.float32)
    sums = tl.zeros((BM, BB), tl.float32)
    for start in range(0, BATCH, BB):
        b = start + tl.arange(0, BB)
        d = tl.load(outer + b[None, :] * D + o[:, None], mask=(o < D)[:, None], other=0.0)
        if rows is None:
            x_rows, there = inner + b[:, None] * D, b[:, None] >= 0
        else:
            row = tl.load(rows + b)
            x_rows, there = inner + tl.maximum(row, 0).to(tl.int64)[:, None] * D, row[:, None] >= 0
        x = tl.load(x_rows + n[None, :], mask=there & (n < D)[None, :], other=0.0)
        gradient = tl.dot(d, x, gradient, input_precision=PRECISION)
        sums += d
    _adam(weight, m, v, o[:, None] * D + n[None, :], (o < D)[:, None] & (n < D)[None, :], gradient,
          optimizer, FIRST)  # fmt: skip
    if tile % COLUMNS == 0:
        _adam(bias, m + D * D, v + D * D, o, o < D, tl.sum(sums, 1), optimizer, FIRST)


@triton.jit
def _adam(weight, m, v, at, mask, gradient, optimizer, FIRST: tl.constexpr):
    """torch.optim.Adam with coupled L2; rate = lr / (1 - beta1^t), shrink = (1 - beta2^t)^-1/2."""
    w = tl.load(weight + at, mask=mask, other=0.0)
    g = gradient + tl.load(optimizer + 2) * w
    first = tl.load(optimizer + 4) * g
    second = tl.load(optimizer + 6) * g * g
    if not FIRST:
        old = tl.load(m + at, mask=mask, other=0.0, eviction_policy=ONCE)
        first += tl.load(optimizer + 3) * old
        old = tl.load(v + at, mask=mask, other=0.0, eviction_policy=ONCE)
        second += tl.load(optimizer + 5) * old
    tl.store(m + at, first, mask=mask, eviction_policy=ONCE)
    tl.store(v + at, second, mask=mask, eviction_policy=ONCE)
    divisor = tl.sqrt(second) * tl.load(optimizer + 1) + tl.load(optimizer + 7)
    tl.store(weight + at, w - tl.load(optimizer) * first / divisor, mask=mask)
