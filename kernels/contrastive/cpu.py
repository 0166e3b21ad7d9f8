"""contrastive on the CPU in blocks of logits: products by torch.mm, the rest in compiled passes.

Forward and backward multiply 6 N^2 D where the blocks are kept between them, and 8 N^2 D where they
take more than `memory` and are made again: the same blocks by the same calls, so the same bytes.
Blocks lie transposed, texts down and images across. All sums have one order whatever the threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.cpu.math import LEAST, OPTIONS, F, exp
from kernels.cpu.threads import kernels_alone

BLOCK = 512  # rows and columns of Z at a time, at most
LEAST_BLOCK = 128  # and at least
RUN = 32  # terms summed in sequence: thousands would err 3 times as much as torch's sums


def forward(
    image: Tensor, text: Tensor, scale: float, precision: str, memory: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss (), the log-sum-exps of Z's rows (N,) and columns (N,), and Z's blocks.

    Z is (blocks, blocks, block * block), its rows' block first; empty above `memory` bytes.
    """
    x, y = _rows(image), _rows(text)
    count, block = len(x), _block(len(x))
    blocks = -(-count // block)
    kept = torch.empty(
        (blocks, blocks, block * block) if 4 * (blocks * block) ** 2 <= memory else 0
    )
    tops = np.full((2, count), LEAST)  # of rows and of columns so far
    sums = np.zeros((2, count), np.float32)
    at_pair = np.empty(count, np.float32)

    def work(r: int, c: int, scratch: Tensor) -> None:
        of_r, of_c = _slice(r, block), _slice(c, block)
        z = _logits(x[of_r], y[of_c], scale, kept[r, c] if len(kept) else scratch).numpy()
        _add_exponentials(z, tops[0, of_r], sums[0, of_r], tops[1, of_c], sums[1, of_c])
        if r == c:
            at_pair[of_r] = z.diagonal()

    _each_pair(blocks, block, work)
    by_row, by_column = tops + np.log(sums)
    loss = np.mean(by_row.astype(float) + by_column - 2 * at_pair.astype(float)) / 2
    return (
        torch.tensor(loss, dtype=torch.float32),
        *map(torch.from_numpy, (by_row, by_column)),
        kept,
    )


def backward(
    image: Tensor,
    text: Tensor,
    scale: float,
    by_row: Tensor,
    by_column: Tensor,
    kept: Tensor,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """d loss / d image and d loss / d text; Z's blocks are read only, for another backward."""
    x, y = _rows(image), _rows(text)
    count, block = len(x), _block(len(x))
    rows, columns = by_row.numpy(), by_column.numpy()
    d_image, d_text = torch.empty_like(x), torch.empty_like(y)
    factor = F(scale / (2 * count))

    def work(r: int, c: int, scratch: Tensor) -> None:
        of_r, of_c = _slice(r, block), _slice(c, block)
        part, other = x[of_r], y[of_c]
        g = _matrix(scratch, other, part)
        z = _matrix(kept[r, c], other, part) if len(kept) else _logits(part, other, scale, scratch)
        _gradient(z.numpy(), rows[of_r], columns[of_c], factor, r == c, g.numpy())
        more = int(r != c)  # the first block of either
        torch.addmm(d_image[of_r], g.T, other, beta=more, out=d_image[of_r])
        torch.addmm(d_text[of_c], g, part, beta=more, out=d_text[of_c])

    _each_pair(-(-count // block), block, work)
    return d_image, d_text


def _block(count: int) -> int:
    """An even number of blocks, so that two threads have equal work.

    Of N alone: sums must not depend on the number of threads.
    """
    pairs = -(-count // (2 * BLOCK))
    return min(count, max(LEAST_BLOCK, -(-count // (2 * pairs))))


def _each_pair(blocks: int, block: int, work: Callable[[int, int, Tensor], None]) -> None:
    """work(r, c, scratch) for all blocks of rows and columns, the diagonal's first.

    Blocks that run at a time share neither rows nor columns, so that each adds to sums that no
    other touches, and every sum has one order. torch's products take one thread each: on more they
    are other bytes.
    """

    pairs = [[(r, (r + turn) % blocks) for r in range(blocks)] for turn in range(blocks)]
    with kernels_alone() as threads:
        count = min(threads, blocks)
        scratch = [torch.empty(block * block) for _ in range(count)]
        if count == 1:
            for r, c in sum(pairs, []):
                work(r, c, scratch[0])
            return

        def one(r: int, c: int) -> None:
            own = scratch.pop()  # no more than `count` of them run at a time
            work(r, c, own)
            scratch.append(own)

        with ThreadPoolExecutor(count) as pool:
            for turn in pairs:
                for future in [pool.submit(one, *pair) for pair in turn]:
                    future.result()


def _slice(k: int, block: int) -> slice:
    return slice(k * block, (k + 1) * block)


def _matrix(numbers: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return numbers[: len(down) * len(across)].view(len(down), len(across))


def _logits(image: Tensor, text: Tensor, scale: float, numbers: Tensor) -> Tensor:
    """scale * text @ image.T, written to numbers."""
    z = _matrix(numbers, text, image)
    return torch.addmm(z, text, image.T, beta=0, alpha=scale, out=z)


def _rows(values: Tensor) -> Tensor:
    if values.dtype == torch.float64:
        raise ValueError(
            "contrastive: backend 'numba' computes in float32; pass .float(), or backend='torch'"
        )
    return values.detach().float().contiguous()


@njit(**OPTIONS)
def _add_exponentials(z, row_top, row_sum, column_top, column_sum):
    """Tops and sums of exp(z - top) so far, of rows (across) and columns (down), with z's."""
    columns, rows = z.shape
    old, run = row_top.copy(), np.empty(rows, np.float32)
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
        peak = column_top[j]
        for i in range(rows):
            peak = max(peak, z[j, i])
        share = F(0)
        for i in range(rows):
            share += exp(z[j, i] - peak)
        column_sum[j] = column_sum[j] * exp(column_top[j] - peak) + share
        column_top[j] = peak


@njit(**OPTIONS)
def _gradient(z, by_row, by_column, factor, diagonal, g):
    """g = factor * (exp(z - by_row) + exp(z - by_column) - 2 on Z's diagonal); g may be z."""
    columns, rows = z.shape
    for j in range(columns):
        by_j = by_column[j]
        for i in range(rows):
            g[j, i] = factor * (exp(z[j, i] - by_row[i]) + exp(z[j, i] - by_j))
    if diagonal:
        for i in range(rows):
            g[i, i] -= F(2) * factor
