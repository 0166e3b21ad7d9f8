"""adapter_top1 on the CPU, compiled by numba: threads take blocks of rows."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.adapter import AdapterState
from kernels.cpu.math import LEAST, OPTIONS, exp
from kernels.cpu.threads import run_all
from kernels.cpu.tile import LANES, gather, matmul, matrix, padded, transpose
from kernels.step.cpu import scores

BLOCK = 256  # rows at a time: at D = 512 the two activations are 1 MiB, one core's L2


def adapter_top1(
    adapters: AdapterState, features: Tensor, unit_text: Tensor, rows: Sequence[Tensor]
) -> list[Tensor]:
    """See kernels.answers.top1.adapter_top1; arguments are checked there."""
    answers = [torch.empty(len(asked), dtype=torch.int64) for asked in rows]
    weights = [weight.numpy() for weight in adapters]
    table, text = features.contiguous().numpy(), unit_text.contiguous().numpy()
    width, classes = table.shape[1], len(text)
    blocks = [
        (a, rows[a][start : start + BLOCK].numpy(), answers[a][start : start + BLOCK].numpy())
        for a in range(len(rows))
        for start in range(0, len(rows[a]), BLOCK)
    ]

    def answer(block: tuple, scratch: tuple) -> None:
        a, asked, found = block
        _answer_block(*(weight[a] for weight in weights), table, text, asked, *scratch, found)

    columns = padded(min(BLOCK, max(map(len, rows), default=0)))

    def scratch() -> tuple:
        return np.zeros((4, width * columns), np.float32), np.empty(classes * columns, np.float32)

    run_all(answer, blocks, scratch, _spare(width, columns, classes))
    return answers


@functools.lru_cache(maxsize=1)
def _spare(width: int, columns: int, classes: int) -> list:
    """Scratch of earlier calls of this size."""
    return []


@njit(**OPTIONS)
def _answer_block(w1, b1, w2, b2, features, text, rows, activations, logits, answers):
    size, width, classes = len(rows), features.shape[1], len(text)
    p = (size + LANES - 1) // LANES * LANES
    by_row = matrix(activations[0], 0, size, width)
    x = matrix(activations[1], 0, width, p)
    h = matrix(activations[2], 0, width, p)
    z = matrix(activations[3], 0, width, p)
    gather(features, rows, by_row)
    transpose(by_row, x)
    scores(x, w1, b1, w2, b2, h, z)
    top = np.full(p, LEAST)
    for d in range(width):
        for i in range(p):
            top[i] = max(top[i], z[d, i])
    for d in range(width):
        for i in range(p):
            x[d, i] *= exp(z[d, i] - top[i])
    by_class = matrix(logits, 0, classes, p)
    matmul(text, x, by_class)
    for i in range(size):  # by hand: assigning a row costs 4 s of compiling, for its error message
        top[i] = by_class[0, i]
        answers[i] = 0
    for c in range(1, classes):
        for i in range(size):
            if by_class[c, i] > top[i]:
                top[i] = by_class[c, i]
                answers[i] = c
