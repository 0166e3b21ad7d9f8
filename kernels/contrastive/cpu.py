"""contrastive on the CPU in blocks of logits, one call of compiled code per block.

Forward and backward take 6 N^2 D operations if the blocks are kept between them, and 8 N^2 D if
they exceed `memory` and are recomputed: by the same calls, so to the same bytes. Blocks are stored
transposed, texts as rows and images as columns. Sums have one order for any number of threads.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.cpu.math import LEAST, OPTIONS, SPLICED, F, exp
from kernels.cpu.threads import thread_count
from kernels.cpu.tile import WIDE, matrix, panels_length, wide_product

BLOCK = 512  # maximum rows and columns of Z in a block
LEAST_BLOCK = 384  # up to here one block: further calls would cost more than threads save
RUN = 32  # terms summed in sequence; with thousands the error is 3 times that of torch's sums


def forward(
    image: Tensor, text: Tensor, scale: float, precision: str, memory: int = 0
) -> tuple[Tensor, Tensor]:
    """The loss (), and for backward Z's blocks, if they fit `memory` bytes, and its sums.

    Z is (blocks, blocks, block * block), indexed by row block first; the log-sum-exps of rows and
    columns (2, N) follow it.
    """
    x, y = _rows(image), _rows(text)
    count, block = len(x), _block(len(x))
    blocks = -(-count // block)
    size = (blocks * block) ** 2
    kept = torch.empty((size if 4 * size <= memory else 0) + 2 * count)
    numbers, tops = kept.numpy(), np.empty((3, count), np.float32)

    def work(r: int, c: int, own: np.ndarray) -> None:
        _forward_block(x, y, r, c, block, scale, numbers, tops, own)

    _each_pair(blocks, block, work)
    return torch.scalar_tensor(_loss(numbers, tops)), kept


def backward(
    image: Tensor, text: Tensor, scale: float, kept: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """d loss / d image and d loss / d text; kept is not modified, so backward can run again."""
    x, y = _rows(image), _rows(text)
    block, numbers = _block(len(x)), kept.numpy()
    d_image, d_text = torch.empty(image.shape), torch.empty(image.shape)
    d_x, d_y = d_image.numpy(), d_text.numpy()

    def work(r: int, c: int, own: np.ndarray) -> None:
        _backward_block(x, y, r, c, block, scale, numbers, d_x, d_y, own)

    _each_pair(-(-len(x) // block), block, work)
    return d_image, d_text


def inner(image: Tensor, d_image: Tensor) -> float:
    """sum image * d_image."""
    found: float = _inner(_rows(image), d_image.numpy())
    return found


def _block(count: int) -> int:
    """The block size that gives one block, or an even number, so two threads get equal work.

    It depends on N alone: sums must not depend on the number of threads.
    """
    if count <= LEAST_BLOCK:
        return count
    pairs = -(-count // (2 * BLOCK))
    return -(-count // (2 * pairs))


def _each_pair(blocks: int, block: int, work: Callable[[int, int, np.ndarray], None]) -> None:
    """work(r, c, own) for every pair of row and column blocks, the diagonal's first.

    Blocks that run concurrently share neither rows nor columns, so each adds to sums that no other
    touches, and every sum has one order. own is scratch: wide_product's panels and one block.
    """
    count = min(thread_count(), blocks)
    spare = _spare(block)

    def one(r: int, c: int) -> None:
        try:
            own = spare.pop()
        except IndexError:
            # torch aligns it to a cache line; without that, products are a third slower
            own = torch.empty(panels_length(block) + block * block).numpy()
        work(r, c, own)
        spare.append(own)

    if count == 1:
        for turn in range(blocks):
            for r in range(blocks):
                one(r, (r + turn) % blocks)
        return
    pool = _pool(count)
    for turn in range(blocks):
        pairs = [(r, (r + turn) % blocks) for r in range(blocks)]
        for future in [pool.submit(one, *pair) for pair in pairs]:
            future.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """A pool reused across calls: new threads for both passes took 0.7 of 8 ms at 512 pairs."""
    return ThreadPoolExecutor(threads, "contrastive")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


@functools.lru_cache(maxsize=1)
def _spare(block: int) -> list[np.ndarray]:
    """Scratch reused across calls, up to 1.4 MB a thread: a page's first touch costs up to 2 us."""
    return []


def _rows(values: Tensor) -> np.ndarray:
    if values.dtype == torch.float64:
        raise ValueError(
            "contrastive: backend 'numba' computes in float32; pass .float(), or backend='torch'"
        )
    if values.dtype != torch.float32 or not values.is_contiguous():
        values = values.float().contiguous()
    return values.detach().numpy()


@njit(**OPTIONS)
def _forward_block(x, y, r, c, block, scale, kept, tops, own):
    """Compute the block of Z at row block r and column block c; then _add_exponentials."""
    part, other = x[r * block : (r + 1) * block], y[c * block : (c + 1) * block]
    z = _kept_block(kept, len(x), r, c, block, len(other), len(part))
    if not z.size:
        z = matrix(own, len(own) - block * block, len(other), len(part))
    wide_product(other, False, part, True, F(scale), z, 0, own)
    _add_exponentials(z, r * block, c * block, _sums(kept, len(x)), tops)


@njit(**OPTIONS)
def _backward_block(x, y, r, c, block, scale, kept, d_image, d_text, own):
    """Add a block's contribution to its rows of d_image and d_text; Z is kept or recomputed."""
    part, other = x[r * block : (r + 1) * block], y[c * block : (c + 1) * block]
    g = matrix(own, len(own) - block * block, len(other), len(part))
    z = _kept_block(kept, len(x), r, c, block, len(other), len(part))
    if not z.size:
        z = g
        wide_product(other, False, part, True, F(scale), z, 0, own)
    _gradient(z, r * block, c * block, _sums(kept, len(x)), scale / (2 * len(x)), g)
    more = int(r != c)  # the diagonal's block comes first for both
    by_part, by_other = d_image[r * block : (r + 1) * block], d_text[c * block : (c + 1) * block]
    wide_product(g, True, other, False, F(1), by_part, more, own)
    wide_product(g, False, part, False, F(1), by_other, more, own)


@njit(**SPLICED)
def _kept_block(kept, count, r, c, block, columns, rows):
    """A block of Z (columns, rows), as forward lays it out; (0, 0) if it was not kept."""
    blocks = -(-count // block)
    there = len(kept) > 2 * count
    return matrix(kept, (r * blocks + c) * block * block, columns * there, rows * there)


@njit(**SPLICED)
def _sums(kept, count):
    """The log-sum-exps (2, N) after Z's blocks."""
    return matrix(kept, len(kept) - 2 * count, 2, count)


@njit(**OPTIONS)
def _add_exponentials(z, first_row, first_column, sums, tops):
    """Add a block of Z to the sums of exponentials of its rows and columns.

    sums (2, N) hold sum exp(z - top) of rows and columns; tops (3, N) their maxima and Z's
    diagonal. The diagonal's blocks come first and initialize them.
    """
    columns, rows = z.shape
    row_sum, row_top = sums[0, first_row:], tops[0, first_row:]
    column_sum, column_top = sums[1, first_column:], tops[1, first_column:]
    if first_row == first_column:
        for i in range(rows):
            row_top[i] = column_top[i] = LEAST
            row_sum[i] = column_sum[i] = F(0)
            tops[2, first_row + i] = z[i, i]
    old, run = row_top[:rows].copy(), np.empty(rows, np.float32)
    lanes = np.empty(WIDE, np.float32)
    for j in range(columns):
        for i in range(rows):
            row_top[i] = max(row_top[i], z[j, i])
    for i in range(rows):
        row_sum[i] *= exp(old[i] - row_top[i])
    for first in range(0, columns, RUN):
        run[:] = F(0)
        for j in range(first, min(columns, first + RUN)):
            for i in range(rows):
                run[i] += exp(z[j, i] - row_top[i])
        for i in range(rows):
            row_sum[i] += run[i]
    for j in range(columns):
        peak = max(column_top[j], _largest(z[j], lanes))
        share = F(0)
        for i in range(rows):
            share += exp(z[j, i] - peak)
        column_sum[j] = column_sum[j] * exp(column_top[j] - peak) + share
        column_top[j] = peak


@njit(**SPLICED)
def _largest(values, lanes):
    """The largest of values, or LEAST; lanes (WIDE,) is scratch.

    A plain maximum is vectorized only if the compiler may ignore NaN, and took as long as the
    exponentials of both sides.
    """
    lanes[:] = LEAST
    whole = len(values) // WIDE * WIDE
    for first in range(0, whole, WIDE):
        for k in range(WIDE):
            lanes[k] = max(lanes[k], values[first + k])
    peak = LEAST
    for i in range(whole, len(values)):
        peak = max(peak, values[i])
    for k in range(WIDE):
        peak = max(peak, lanes[k])
    return peak


@njit(**OPTIONS)
def _loss(kept, tops):
    """mean(by_row + by_column - 2 diagonal) / 2; turns the sums into log-sum-exps in place."""
    total, sums = 0.0, _sums(kept, tops.shape[1])
    for i in range(sums.shape[1]):
        for side in range(2):
            sums[side, i] = tops[side, i] + np.log(sums[side, i])
            total += np.float64(sums[side, i]) - np.float64(tops[2, i])
    return total / (2 * sums.shape[1])


@njit(**OPTIONS)
def _gradient(z, first_row, first_column, sums, factor, g):
    """g = factor * (exp(z - by_row) + exp(z - by_column) - 2 on Z's diagonal); g may be z."""
    columns, rows = z.shape
    by_row, factor = sums[0, first_row:], F(factor)
    for j in range(columns):
        by_j = sums[1, first_column + j]
        for i in range(rows):
            g[j, i] = factor * (exp(z[j, i] - by_row[i]) + exp(z[j, i] - by_j))
    if first_row == first_column:
        for i in range(rows):
            g[i, i] -= F(2) * factor


@njit(**OPTIONS)
def _inner(x, d):
    """sum x d, row by row."""
    total = 0.0
    for i in range(len(x)):
        share = F(0)
        for k in range(x.shape[1]):
            share += x[i, k] * d[i, k]
        total += share
    return total
