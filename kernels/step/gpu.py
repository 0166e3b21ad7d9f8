"""adapter_steps on a GPU: six launches per step for any number of lanes, Adam in the last one.

All memory of a call is a Workspace, allocated before its first step, so that the steps of a whole
round can be captured as one CUDA graph (kernels/gpu/round_graph.py). A step launches programs only
for the lanes that have rows in it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from kernels.adapter import AdamSettings, AdapterState
from kernels.backends import INTERPRETED
from kernels.gpu.layer import layer
from kernels.step.gpu_kernels import (
    hidden_gradients,
    logits,
    score_gradients,
    update,
)

# Tiles, warps and stages: docs/kernels-gpu.md lists registers and shared memory for each.
TALL = 32
"""Maximum batch rows per program; a larger batch takes more programs."""
LAYER = {"BN": 64, "BK": 32, "num_warps": 4, "num_stages": 4}
HIDDEN = {"BN": 64, "BK": 64, "num_warps": 4, "num_stages": 3}  # BK 32 spills on sm_100
LOGITS = {"BM": 16, "BK": 64, "num_warps": 4, "num_stages": 2}
SCORES = {"BN": 64, "num_warps": 8, "num_stages": 1}
UPDATE = {"BM": 32, "BN": 64, "num_warps": 4, "num_stages": 1}
MOST_ROWS = 4096


class Workspace(NamedTuple):
    """Buffers of T steps of L lanes with BATCH rows, besides adapters and data."""

    rows: Tensor  # (T, L, BATCH) int32, padded with -1
    optimizer: Tensor  # (T, L, 8) float32: see kernels.step.gpu_kernels.update
    hidden: Tensor  # (L, BATCH, D) float32
    scores: Tensor  # (L, BATCH, D) float32; overwritten by their gradients
    d_hidden: Tensor  # (L, BATCH, D) float32
    tops: Tensor  # (L, BATCH, D / BN) float32
    z: Tensor  # (L, BATCH, BATCH) float32
    by_row: Tensor  # (2, L, BATCH / BC, BATCH) float32: maxima, sums
    by_column: Tensor  # (2, L, BATCH / 16, BATCH) float32
    inverses: Tensor  # (L, BATCH) float32
    moments: Tensor  # (2, L, 2 D (D + 1)) float32: m, v
    losses: Tensor  # (T, L, BATCH / BM) float32


def adapter_steps(
    adapters: AdapterState,
    features: Tensor,
    labels: Tensor,
    unit_text: Tensor,
    rows: Tensor,
    settings: AdamSettings,
    logit_scale: float,
    overlap: bool = False,
) -> Tensor:
    """See kernels.step.adapter_steps; arguments are checked there. overlap: see take_steps."""
    steps, lanes, batch = rows.shape
    features, unit_text = features.contiguous(), unit_text.contiguous()
    live = live_lanes(rows)
    work = workspace(steps, lanes, batch, features)
    set_rows(work, rows)
    set_settings(work, settings)
    work.losses.zero_()
    labels = labels.contiguous()
    with torch.cuda.device_of(features):  # Triton launches on the current device, not the tensors'
        take_steps(adapters, features, labels, unit_text, work, live, logit_scale, overlap)
    return work.losses.sum(dim=2)


def live_lanes(rows: Tensor) -> list[int]:
    """How many lanes have rows in each step; those come first."""
    return (rows[:, :, 0] >= 0).sum(dim=1).tolist()


def workspace(steps: int, lanes: int, batch: int, features: Tensor) -> Workspace:
    """Uninitialized memory for `steps` steps.

    Raises ValueError for a batch of more than 4,096 rows: one program holds the whole list of them,
    padded to a power of two.
    """
    if batch > MOST_ROWS:
        raise ValueError(
            f"adapter_steps: backend 'triton' takes batches of at most {MOST_ROWS} rows, got "
            f"{batch}; choose a smaller batch, or backend='torch'"
        )
    width = features.shape[1]
    size = max(16, triton.next_power_of_2(batch))
    tall = min(size, TALL)

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, device=features.device)

    columns = triton.cdiv(width, LAYER["BN"])
    return Workspace(
        rows=torch.empty(steps, lanes, size, dtype=torch.int32, device=features.device),
        optimizer=empty(steps, lanes, 8),
        hidden=empty(lanes, size, width),
        scores=empty(lanes, size, width),
        d_hidden=empty(lanes, size, width),
        tops=empty(lanes, size, columns),
        z=empty(lanes, size, size),
        by_row=empty(2, lanes, size // tall, size),
        by_column=empty(2, lanes, size // LOGITS["BM"], size),
        inverses=empty(lanes, size),
        moments=empty(2, lanes, 2 * width * (width + 1)),
        losses=empty(steps, lanes, size // tall),
    )


def set_rows(work: Workspace, rows: Tensor) -> None:
    """Copy a round's rows (T, L, B) int32 to the device, padded with -1."""
    work.rows.copy_(pad(rows, (0, work.rows.shape[2] - rows.shape[2]), value=-1))


def set_settings(work: Workspace, settings: AdamSettings) -> None:
    """Copy the lanes' settings to the device, with Adam's bias corrections precomputed.

    Adam starts afresh, so they depend on the step alone.
    """
    lr, decay, beta1, beta2, eps = settings
    step = torch.arange(1, len(work.optimizer) + 1, dtype=torch.float64)[:, None]
    rate = lr / (1 - beta1**step)
    shrink = (1 - beta2**step).rsqrt()
    rest = [v.expand_as(rate) for v in (decay, beta1, 1 - beta1, beta2, 1 - beta2, eps)]
    work.optimizer.copy_(torch.stack([rate, shrink, *rest], dim=2))


def take_steps(
    adapters: AdapterState,
    features: Tensor,
    labels: Tensor,
    unit_text: Tensor,
    work: Workspace,
    live: Sequence[int],
    logit_scale: float,
    overlap: bool = False,
) -> None:
    """Launch the steps, without allocating or synchronizing.

    live     for each step, the number of lanes that have rows; the losses of others are not written
    overlap  start each launch's programs before the previous launch has ended (programmatic
             dependent launch; compute capability 9 or newer); the interpreter ignores it
    """
    overlap = overlap and not INTERPRETED
    for step, lanes in enumerate(live):
        if lanes:
            _take_step(
                adapters, features, labels, unit_text, work, step, lanes, logit_scale, overlap
            )


def _take_step(
    adapters: AdapterState, features: Tensor, labels: Tensor, unit_text: Tensor, work: Workspace,
    step: int, lanes: int, logit_scale: float, overlap: bool,
) -> None:  # fmt: skip
    early = {"OVERLAP": overlap, "launch_pdl": overlap}
    # What precedes the first launch is not ours: it may be a copy, or still be writing the rows.
    first = early | {"launch_pdl": overlap and step > 0}
    w1, b1, w2, b2 = adapters
    for name, weight in zip(AdapterState._fields, adapters, strict=True):
        assert weight[0].is_contiguous(), f"{name}: each lane must be contiguous"
    rows, optimizer, losses = work.rows[step], work.optimizer[step], work.losses[step]
    width, size, columns = features.shape[1], rows.shape[1], work.tops.shape[2]
    tall = min(size, TALL)
    parts, wide = size // tall, triton.cdiv(width, SCORES["BN"])
    layer[(lanes * parts * columns,)](
        features, rows, None, w1, b1, work.hidden, None,
        w1.stride(0), b1.stride(0), width, parts, tall, **LAYER, **first,
    )  # fmt: skip
    layer[(lanes * parts * columns,)](
        work.hidden, None, None, w2, b2, work.scores, work.tops,
        w2.stride(0), b2.stride(0), width, parts, tall, **LAYER, **early,
    )  # fmt: skip
    of_logits = (work.z, *work.by_row, *work.by_column, work.inverses)
    padded = triton.next_power_of_2(columns)
    logits[(lanes * (size // LOGITS["BM"]) * parts,)](
        features, rows, labels, unit_text, work.scores, work.tops, *of_logits, logit_scale,
        width, size, columns, padded, BC=tall, **LOGITS, **early,
    )  # fmt: skip
    score_gradients[(lanes * parts * wide,)](
        features, rows, labels, unit_text, work.scores, work.tops, *of_logits, losses, logit_scale,
        width, size, columns, padded, size // LOGITS["BM"], BM=tall, BC=tall, **SCORES, **early,
    )  # fmt: skip
    hidden_gradients[(lanes * parts * columns,)](
        work.scores, w2, work.hidden, work.d_hidden,
        w2.stride(0), width, parts, tall, **HIDDEN, **early,
    )  # fmt: skip
    tiles = triton.cdiv(width, UPDATE["BM"]) * triton.cdiv(width, UPDATE["BN"])
    update[(lanes * 2 * tiles,)](
        work.scores, work.hidden, work.d_hidden, features, rows, optimizer,
        *adapters, *work.moments, *(weight.stride(0) for weight in (w1, b1, w2, b2)),
        width, size, step == 0, BB=tall, **UPDATE, **early,
    )  # fmt: skip
