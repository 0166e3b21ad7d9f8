"""contrastive on the CPU without an N x N matrix: blocks of logits, made twice.

Forward and backward together multiply 8 N^2 D instead of the 6 N^2 D that keeping Z needs; in turn
the N x N matrices are neither written nor read. Blocks of Z lie transposed, texts down and images
across, so that only a block of images is ever transposed for numba_matmul. All sums have one order
whatever the threads.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.cpu.math import LEAST, OPTIONS, PART, F, exp
from kernels.cpu.threads import run_all
from kernels.cpu.tile import LANES, matmul, matmul_t, padded, transpose

BLOCK = 512  # rows and columns of Z at a time, at most: 1 MiB, one core's L2
LEAST_BLOCK = 128  # and at least: packing images would show in smaller ones
RUN = 32  # terms summed in sequence: thousands would err 3 times as much as torch's sums
STRIPES = 16  # of row blocks in the forward pass, each with column sums of its own


def forward(
    image: Tensor, text: Tensor, scale: float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (), and the log-sum-exps of Z's rows (N,) and of its columns (N,)."""
    x, y = _array(image), _array(text)
    count = len(x)
    block = _block(count)
    stripes = min(STRIPES, -(-count // block))
    by_row, at_pair = np.empty(count, np.float32), np.empty(count, np.float32)
    tops = np.full((stripes, count), LEAST)
    sums = np.zeros((stripes, count), np.float32)

    def work(stripe: int, scratch: tuple) -> None:
        for start in range(stripe * block, count, stripes * block):
            _forward_rows(x, y, F(scale), start, block, *scratch, by_row, at_pair, tops[stripe],
                          sums[stripe])  # fmt: skip

    run_all(work, range(stripes), lambda: _scratch(count, x.shape[1]))
    top = tops.max(axis=0)
    by_column = top + np.log((sums * np.exp(tops - top)).sum(axis=0))
    loss = np.mean(by_row.astype(float) + by_column - 2 * at_pair.astype(float)) / 2
    return torch.tensor(loss, dtype=torch.float32), *map(torch.from_numpy, (by_row, by_column))


def backward(
    image: Tensor, text: Tensor, scale: float, by_row: Tensor, by_column: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """d loss / d image and d loss / d text.

    A block of rows after another; within it threads take blocks of columns, each of which owns its
    rows of d_text and leaves its share of d_image to be summed in order.
    """
    x, y = _array(image), _array(text)
    count, width = x.shape
    rows, columns = by_row.numpy(), by_column.numpy()
    d_image, d_text = np.empty_like(x), np.zeros_like(y)
    block = _block(count)
    shares = np.empty((-(-count // block), min(block, count) * width), np.float32)
    factor = F(scale / (2 * count))
    for start in range(0, count, block):

        def work(k: int, own: tuple, start: int = start) -> None:
            _backward_block(x, y, F(scale), factor, start, k * block, block, rows, columns, *own,
                            shares[k], d_text)  # fmt: skip

        run_all(
            work,
            range(len(shares)),
            lambda: (
                *_scratch(count, width),
                np.empty(min(block, count) * width, np.float32),
            ),
        )
        part = d_image[start : start + block]
        np.sum(shares[:, : part.size], axis=0, out=part.reshape(-1))
    width = image.shape[1]
    return torch.from_numpy(d_image[:, :width]), torch.from_numpy(d_text[:, :width])


def _block(count: int) -> int:
    """An even number of blocks, so that two threads have equal work: N 512 takes 8.4 ms, not 14.

    Of N alone: sums must not depend on the number of threads.
    """
    pairs = -(-count // (2 * BLOCK))
    return max(LEAST_BLOCK, padded(-(-count // (2 * pairs))))


def _scratch(count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A block of images transposed, and a block of logits; zeros, so that no rest is slow."""
    block = min(_block(count), count)
    return (
        np.zeros(width * padded(block), np.float32),
        np.zeros(block * padded(block), np.float32),
    )


def _array(values: Tensor) -> np.ndarray:
    """(N, D) float32 with D padded by zeros to a multiple of LANES."""
    if values.dtype == torch.float64:
        raise ValueError(
            "contrastive: backend 'numba' computes in float32; pass .float(), or backend='torch'"
        )
    values = values.detach().float()
    behind = padded(values.shape[1]) - values.shape[1]
    if behind:
        values = torch.nn.functional.pad(values, (0, behind))
    return values.contiguous().numpy()


@njit(**OPTIONS)
def _forward_rows(x, y, scale, start, block, across, logits, by_row, at_pair, tops, sums):
    """Rows start..start+block against all columns: row sums finished, column sums continued."""
    count, width = x.shape
    rows = min(count, start + block) - start
    p = (rows + LANES - 1) // LANES * LANES
    images = _images(x, start, rows, scale, across)
    top = np.full(p, LEAST)
    total, run = np.zeros(p, np.float32), np.empty(p, np.float32)
    for left in range(0, count, block):
        columns = min(block, count - left)
        z = logits[: columns * p].reshape(columns, p)
        matmul(y[left : left + columns], images, z)
        old = top.copy()
        for j in range(columns):
            for i in range(p):
                top[i] = max(top[i], z[j, i])
        for i in range(p):
            total[i] *= exp(old[i] - top[i])
        for first in range(0, columns, RUN):
            run[:] = F(0)
            for j in range(first, min(columns, first + RUN)):
                for i in range(p):
                    run[i] += exp(z[j, i] - top[i])
            for i in range(p):
                total[i] += run[i]
        for j in range(columns):
            peak = tops[left + j]
            for i in range(rows):
                peak = max(peak, z[j, i])
            share = F(0)
            for i in range(rows):
                share += exp(z[j, i] - peak)
            sums[left + j] = sums[left + j] * exp(tops[left + j] - peak) + share
            tops[left + j] = peak
        if left == start:
            for i in range(rows):
                at_pair[start + i] = z[i, i]
    for i in range(rows):
        by_row[start + i] = top[i] + np.log(total[i])


@njit(**PART)
def _images(x, start, rows, scale, across):
    """scale * x[start : start + rows] as columns, (D, rows padded)."""
    width = x.shape[1]
    p = (rows + LANES - 1) // LANES * LANES
    images = across[: width * p].reshape(width, p)
    transpose(x[start : start + rows], images)
    for d in range(width):
        for i in range(p):
            images[d, i] *= scale
    return images


@njit(**OPTIONS)
def _backward_block(x, y, scale, factor, start, left, block, by_row, by_column, across, logits,
                    product, share, d_text):  # fmt: skip
    """G of one block, transposed; its share of d_image, and its part of d_text."""
    count, width = x.shape
    part = x[start : min(count, start + block)]
    other = y[left : min(count, left + block)]
    rows, columns = len(part), len(other)
    images = _images(x, start, rows, scale, across)
    g = logits[: columns * images.shape[1]].reshape(columns, images.shape[1])
    matmul(other, images, g)
    by_i = by_row[start : start + rows]
    for j in range(columns):
        by_j = by_column[left + j]
        for i in range(rows):
            g[j, i] = factor * (exp(g[j, i] - by_i[i]) + exp(g[j, i] - by_j))
    if left == start:
        for i in range(rows):
            g[i, i] -= F(2) * factor
    matmul_t(g, other, share[: rows * width].reshape(rows, width))
    for_text = product[: columns * width].reshape(columns, width)
    matmul(g, part, for_text)
    for j in range(columns):
        for d in range(width):
            d_text[left + j, d] += for_text[j, d]
