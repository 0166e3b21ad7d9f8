"""adapter_top1 on a GPU: three launches for all adapters; logits stay in registers.

Blocks of rows carry the number of their adapter, so that however unlike the adapters' numbers of
rows are, only the last block of each is partly empty.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.adapter import AdapterState
from kernels.gpu.layer import LEAST, PRECISION, layer, row_tops

BM = 64
"""Rows of one block."""
AT_ONCE = 1024
"""Blocks whose activations are held: 65,536 rows, 2 x 128 MiB at D = 512."""
LAYER = {"BN": 64, "BK": 32, "num_warps": 4, "num_stages": 3}
NEAREST = {"BM": 32, "BC": 64, "BK": 32, "num_warps": 4, "num_stages": 2}


class Questions(NamedTuple):
    """Rows by block, and room for what is computed of them."""

    rows: Tensor  # (blocks * BM,) int32, -1 for none
    owners: Tensor  # (blocks,) int32: which adapter
    places: Tensor  # (n,) int64: where all adapters' rows are in `rows`, one after another's
    counts: list[int]  # of each adapter's
    hidden: Tensor  # (AT_ONCE * BM, D) float32 or fewer
    scores: Tensor  # as hidden
    tops: Tensor  # (AT_ONCE * BM, D / BN) float32
    answers: Tensor  # (blocks * BM,) int64


def adapter_top1(
    adapters: AdapterState, features: Tensor, unit_text: Tensor, rows: Sequence[Tensor]
) -> list[Tensor]:
    """See kernels.answers.top1.adapter_top1; arguments are checked there."""
    asked = questions(rows, features)
    with torch.cuda.device_of(features):  # Triton launches on the current one, whatever it is given
        answer(adapters, features.contiguous(), unit_text.contiguous(), asked)
    return answers_by_adapter(asked)


def answers_by_adapter(asked: Questions) -> list[Tensor]:
    """What `answer` found: for each adapter (n_a,) int64, in memory of their own."""
    return list(asked.answers[asked.places].split(asked.counts))


def questions(rows: Sequence[Tensor], features: Tensor) -> Questions:
    """Memory for asking each adapter about its rows; `answer` fills it."""
    device, width = features.device, features.shape[1]
    counts = torch.tensor([len(asked) for asked in rows])
    blocks = (counts + BM - 1) // BM
    # Place of an adapter's first row in whole blocks, less its place without gaps.
    gaps = BM * (blocks.cumsum(0) - blocks) - (counts.cumsum(0) - counts)
    places = torch.arange(int(counts.sum())) + gaps.repeat_interleave(counts)
    places = places.to(device)
    padded = torch.full((BM * int(blocks.sum()),), -1, dtype=torch.int32, device=device)
    padded[places] = torch.cat([places[:0], *rows]).int()
    owners = torch.arange(len(blocks), dtype=torch.int32).repeat_interleave(blocks)
    held = BM * min(len(owners), AT_ONCE)
    return Questions(
        rows=padded,
        owners=owners.to(device),
        places=places,
        counts=counts.tolist(),
        hidden=torch.empty(held, width, device=device),
        scores=torch.empty(held, width, device=device),
        tops=torch.empty(held, triton.cdiv(width, LAYER["BN"]), device=device),
        answers=torch.empty(len(padded), dtype=torch.int64, device=device),
    )


def answer(adapters: AdapterState, features: Tensor, unit_text: Tensor, asked: Questions) -> None:
    """Fills asked.answers; nothing is allocated and nothing waits for the device."""
    w1, b1, w2, b2 = adapters
    width, columns = features.shape[1], asked.tops.shape[1]
    for start in range(0, len(asked.owners), AT_ONCE):
        owners = asked.owners[start : start + AT_ONCE]
        part = slice(start * BM, (start + len(owners)) * BM)
        rows, answers = asked.rows[part], asked.answers[part]
        grid = (len(owners) * columns,)
        layer[grid](
            features, rows, owners, w1, b1, asked.hidden, None,
            w1.stride(0), b1.stride(0), width, 1, BM, **LAYER,
        )  # fmt: skip
        layer[grid](
            asked.hidden, None, owners, w2, b2, asked.scores, asked.tops,
            w2.stride(0), b2.stride(0), width, 1, BM, **LAYER,
        )  # fmt: skip
        nearest[(len(rows) // NEAREST["BM"],)](
            features, rows, unit_text, asked.scores, asked.tops, answers, len(unit_text),
            width, columns, triton.next_power_of_2(columns), **NEAREST,
        )  # fmt: skip


@triton.jit(do_not_specialize=["classes"])
def nearest(
    features, rows, text, scores, tops, answers, classes,
    D: tl.constexpr, COLUMNS: tl.constexpr, PADDED: tl.constexpr,
    BM: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """answers = argmax_c sum_d exp(scores_d - top) x_d text[c, d], the first of equals."""
    block = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BM)
    row = tl.load(rows + block * BM + i)
    x_rows = features + tl.maximum(row, 0).to(tl.int64)[:, None] * D
    s_rows = scores + block * BM * D + i[:, None] * D
    top = row_tops(tops, block * BM, COLUMNS, BM, PADDED)
    best = tl.full((BM,), LEAST, tl.float32)
    found = tl.zeros((BM,), tl.int64)
    for first in range(0, classes, BC):
        c = first + tl.arange(0, BC)
        products = tl.zeros((BM, BC), tl.float32)
        for start in range(0, D, BK):
            k = start + tl.arange(0, BK)
            s = tl.load(s_rows + k[None, :], mask=(k < D)[None, :], other=LEAST)
            x = tl.load(x_rows + k[None, :], mask=(row >= 0)[:, None] & (k < D)[None, :], other=0.0)
            t = tl.load(
                text + c[None, :].to(tl.int64) * D + k[:, None],
                mask=(c < classes)[None, :] & (k < D)[:, None], other=0.0,
            )  # fmt: skip
            u = tl.exp(s - top[:, None]) * x
            products = tl.dot(u, t, products, input_precision=PRECISION)
        products = tl.where((c < classes)[None, :], products, LEAST)
        peak = tl.max(products, 1)
        at_peak = products == peak[:, None]
        here = tl.min(tl.where(at_peak, c[None, :], classes), 1).to(tl.int64)
        found = tl.where(peak > best, here, found)
        best = tl.maximum(best, peak)
    tl.store(answers + block * BM + i, found)
