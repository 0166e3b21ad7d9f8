"""adapter_top1 on the CPU, compiled by numba: threads take blocks of rows."""

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.adapter import AdapterState
from kernels.adapter_step_numba import gather, scores, transpose
from kernels.cpu_threads import run_all
from kernels.numba_math import LEAST, OPTIONS, exp

BLOCK = 256  # rows at a time: at D = 512 the two activations are 1 MiB, one core's L2


def adapter_top1(
    adapters: AdapterState, features: Tensor, unit_text: Tensor, rows: Sequence[Tensor]
) -> list[Tensor]:
    """See kernels.adapter_top1.adapter_top1; arguments are checked there."""
    answers = [torch.empty(len(asked), dtype=torch.int64) for asked in rows]
    weights = [weight.contiguous().numpy() for weight in adapters]
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

    def scratch() -> tuple:
        return np.empty((3, width * BLOCK), np.float32), np.empty(classes * BLOCK, np.float32)

    run_all(answer, blocks, scratch)
    return answers


@njit(**OPTIONS)
def _answer_block(w1, b1, w2, b2, features, text, rows, activations, logits, answers):
    size, width, classes = len(rows), features.shape[1], len(text)
    x = activations[0, : size * width].reshape(size, width)
    h = activations[1, : size * width].reshape(width, size)
    z = activations[2, : size * width].reshape(width, size)
    gather(features, rows, x)
    scores(x, w1, b1, w2, b2, h, z)
    top = np.full(size, LEAST)
    for d in range(width):
        for i in range(size):
            top[i] = max(top[i], z[d, i])
    transpose(x, h)
    for d in range(width):
        for i in range(size):
            h[d, i] *= exp(z[d, i] - top[i])
    by_class = logits[: classes * size].reshape(classes, size)
    np.dot(text, h, by_class)
    top[:] = by_class[0]
    answers[:] = 0
    for c in range(1, classes):
        for i in range(size):
            if by_class[c, i] > top[i]:
                top[i] = by_class[c, i]
                answers[i] = c
