"""adapter_top1 on the CPU, compiled by numba: threads take blocks of rows."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from kernels.adapter import AdapterState
from kernels.cpu.math import LEAST, OPTIONS, PART, exp
from kernels.cpu.threads import run_all
from kernels.cpu.tile import gather, matmul, matrix, padded, transpose
from kernels.step.cpu import activate, add_bias

BLOCK = 256  # rows at a time, so that each weight is read from memory once for all of them
PANEL = 32
"""Rows of one product. As contiguous columns, 128 bytes a row, they reach 150 to 160 GFLOP/s on one
core with 512 x 512 weights; 256 columns, which share a few sets of the L1 cache, reach 132."""


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

    def scratch() -> tuple:
        shape = -(-BLOCK // PANEL), width * PANEL
        activations = np.zeros((2, *shape), np.float32)
        return (
            activations,
            np.zeros((2, shape[1]), np.float32),
            np.empty(classes * PANEL, np.float32),
        )

    run_all(answer, blocks, scratch, _spare(width, classes))
    return answers


@functools.lru_cache(maxsize=1)
def _spare(width: int, classes: int) -> list:
    """Scratch of earlier calls of this size."""
    return []


@njit(**OPTIONS)
def _answer_block(w1, b1, w2, b2, features, text, rows, activations, panel, logits, answers):
    """Layer by layer over panels of rows: a layer's weights stay in the L2 cache."""
    size, width = len(rows), features.shape[1]
    for number in range((size + PANEL - 1) // PANEL):
        some = rows[number * PANEL : (number + 1) * PANEL]
        p = padded(len(some))
        x = matrix(activations[0, number], 0, width, p)
        h = matrix(activations[1, number], 0, width, p)
        by_row = matrix(panel[0], 0, len(some), width)
        gather(features, some, by_row)
        transpose(by_row, x)
        matmul(w1, x, h)
        activate(h, b1)
    for number in range((size + PANEL - 1) // PANEL):
        found = answers[number * PANEL : (number + 1) * PANEL]
        p = padded(len(found))
        x = matrix(activations[0, number], 0, width, p)
        z = matrix(panel[1], 0, width, p)
        matmul(w2, matrix(activations[1, number], 0, width, p), z)
        add_bias(z, b2)
        _gate(x, z)
        by_class = matrix(logits, 0, len(text), p)
        matmul(text, x, by_class)
        _first_of_most(by_class, found)


@njit(**PART)
def _gate(x, z):
    """x *= exp(z - max z), by columns of x and z (D, P): gated features, up to their length."""
    width, p = z.shape
    top = np.full(p, LEAST)
    for d in range(width):
        for i in range(p):
            top[i] = max(top[i], z[d, i])
    for d in range(width):
        for i in range(p):
            x[d, i] *= exp(z[d, i] - top[i])


@njit(**PART)
def _first_of_most(by_class, answers):
    """answers[i] = argmax_c by_class[c, i], the first of equals."""
    size = len(answers)
    top = np.empty(size, np.float32)
    for i in range(size):  # by hand: assigning a row costs 4 s of compiling, for its error message
        top[i] = by_class[0, i]
        answers[i] = 0
    for c in range(1, len(by_class)):
        for i in range(size):
            if by_class[c, i] > top[i]:
                top[i] = by_class[c, i]
                answers[i] = c
