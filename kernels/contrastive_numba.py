"""contrastive on the CPU without an N x N matrix: blocks of logits, made twice.

Forward and backward together multiply 8 N^2 D instead of the 6 N^2 D that keeping Z needs; in turn
the N x N matrices are neither written nor read. All sums have one order whatever the threads.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.cpu_threads import run_all
from kernels.numba_math import LEAST, OPTIONS, F, exp

BLOCK = 512  # rows and columns of Z at a time: 1 MiB, one core's L2
STRIPES = 16  # of row blocks in the forward pass, each with column sums of its own


def forward(
    image: Tensor, text: Tensor, scale: float, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (), and the log-sum-exps of Z's rows (N,) and of its columns (N,)."""
    x, y = _array(image), _array(text)
    count = len(x)
    stripes = min(STRIPES, -(-count // BLOCK))
    by_row, at_pair = np.empty(count, np.float32), np.empty(count, np.float32)
    tops = np.full((stripes, count), LEAST)
    sums = np.zeros((stripes, count), np.float32)

    def work(stripe: int, logits: np.ndarray) -> None:
        for start in range(stripe * BLOCK, count, stripes * BLOCK):
            _forward_rows(x, y, F(scale), start, BLOCK, logits, by_row, at_pair, tops[stripe],
                          sums[stripe])  # fmt: skip

    run_all(work, range(stripes), lambda: np.empty(BLOCK * BLOCK, np.float32))
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
    shares = np.empty((-(-count // BLOCK), min(BLOCK, count) * width), np.float32)
    factor = F(scale / (2 * count))

    def scratch() -> tuple[np.ndarray, np.ndarray]:
        return np.empty(BLOCK * BLOCK, np.float32), np.empty(BLOCK * width, np.float32)

    for start in range(0, count, BLOCK):

        def work(k: int, own: tuple, start: int = start) -> None:
            _backward_block(x, y, F(scale), factor, start, k * BLOCK, BLOCK, rows, columns, *own,
                            shares[k], d_text)  # fmt: skip

        run_all(work, range(len(shares)), scratch)
        part = d_image[start : start + BLOCK]
        np.sum(shares[:, : part.size], axis=0, out=part.reshape(-1))
    return torch.from_numpy(d_image), torch.from_numpy(d_text)


def _array(values: Tensor) -> np.ndarray:
    if values.dtype == torch.float64:
        raise ValueError(
            "contrastive: backend 'numba' computes in float32; pass .float(), or backend='torch'"
        )
    return values.detach().float().contiguous().numpy()


@njit(**OPTIONS)
def _forward_rows(x, y, scale, start, block, logits, by_row, at_pair, tops, sums):
    """Rows start..start+block against all columns: row sums finished, column sums continued."""
    count = len(x)
    part = x[start : min(count, start + block)]
    rows = len(part)
    top = np.full(rows, LEAST)
    total = np.zeros(rows, np.float32)
    for left in range(0, count, block):
        columns = min(block, count - left)
        z = logits[: rows * columns].reshape(rows, columns)
        np.dot(part, y[left : left + columns].T, z)
        old = tops[left : left + columns].copy()
        for i in range(rows):
            peak = top[i]
            for j in range(columns):
                z[i, j] *= scale
                peak = max(peak, z[i, j])
            share = F(0)
            for j in range(columns):
                share += exp(z[i, j] - peak)
            total[i] = total[i] * exp(top[i] - peak) + share
            top[i] = peak
        new, sum_here = tops[left : left + columns], sums[left : left + columns]
        for i in range(rows):
            for j in range(columns):
                new[j] = max(new[j], z[i, j])
        for j in range(columns):
            sum_here[j] *= exp(old[j] - new[j])
        for i in range(rows):
            for j in range(columns):
                sum_here[j] += exp(z[i, j] - new[j])
        if left == start:
            for i in range(rows):
                at_pair[start + i] = z[i, i]
    for i in range(rows):
        by_row[start + i] = top[i] + np.log(total[i])


@njit(**OPTIONS)
def _backward_block(x, y, scale, factor, start, left, block, by_row, by_column, logits, product,
                    share, d_text):  # fmt: skip
    """G of one block, its share of d_image, and its part of d_text."""
    count, width = x.shape
    part = x[start : min(count, start + block)]
    other = y[left : min(count, left + block)]
    rows, columns = len(part), len(other)
    g = logits[: rows * columns].reshape(rows, columns)
    np.dot(part, other.T, g)
    by_j = by_column[left : left + columns]
    for i in range(rows):
        by_i = by_row[start + i]
        for j in range(columns):
            z = g[i, j] * scale
            g[i, j] = factor * (exp(z - by_i) + exp(z - by_j[j]))
    if left == start:
        for i in range(rows):
            g[i, i] -= F(2) * factor
    np.dot(g, other, share[: rows * width].reshape(rows, width))
    for_text = product[: columns * width].reshape(columns, width)
    np.dot(g.T, part, for_text)
    for j in range(columns):
        d_text[left + j] += for_text[j]
