"""local_steps on the CPU, compiled by numba: one thread runs all steps of a lane."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kernels.cpu.math import F
from kernels.cpu.scratch import staggered
from kernels.cpu.threads import run_all
from kernels.cpu.tile import padded
from kernels.heads.plain import shapes, size
from kernels.local import Moments, Pull, Settings, Work
from kernels.local.cpu_lane import Buffers, train_lane
from kernels.names import LOSSES, OPTIMIZERS

NOTHING = np.empty(0, np.float32)


def local_steps(
    work: Work,
    adapters: Tensor,
    features: Tensor,
    labels: Tensor,
    text: Tensor,
    rows: Tensor,
    settings: Settings,
    logit_scale: float,
    moments: Moments | None,
    pull: Pull,
) -> Tensor:
    """See kernels.local.local_steps; arguments are checked there."""
    steps, lanes, batch = rows.shape
    kind = work.kind
    codes = kind.does.numba, LOSSES.index(work.loss), OPTIMIZERS.index(work.optimizer)
    own = size(kind) // (2 if kind.mode == "FedAtBoth" else 1)
    parts = tuple(own * (kind.mode != other) for other in ("FedAtTxt", "FedAtImg"))
    raw = kind.mode != "FedAtImg" and kind.does.raw
    table = (
        features.contiguous().numpy(),
        labels.contiguous().numpy(),
        (text if raw else normalize(text, dim=1)).contiguous().numpy(),
    )
    by_lane = np.ascontiguousarray(rows.numpy().transpose(1, 0, 2))
    options = np.stack([value.numpy() for value in settings], axis=1)
    weights, losses = adapters.numpy(), np.zeros((lanes, steps), np.float32)
    anchors, shifts = ([NOTHING] * lanes if v is None else v.numpy() for v in pull)
    kept = moments and [v.numpy() for v in moments]

    def train(lane: int, scratch: tuple) -> None:
        gradient, first, second, buffers = scratch
        done = 0
        if kept:
            first, second, done = (value[lane] for value in kept)
        else:
            first[:] = second[:] = 0
        made = train_lane(
            codes, parts, weights[lane], *table, by_lane[lane], options[lane], F(logit_scale),
            anchors[lane], shifts[lane], int(done), gradient, first, second, buffers, losses[lane],
        )  # fmt: skip
        if kept:
            kept[2][lane] += made

    run_all(train, range(lanes), lambda: _scratch(work, batch, kept is not None))
    return torch.from_numpy(losses.T.copy())


def _scratch(work: Work, batch: int, kept: bool) -> tuple:
    """Scratch for one thread: gradient, first and second moments, and a step's buffers.

    Zeroed, so that padding columns hold no denormals, which are slow.
    """
    kind = work.kind
    columns = kind.classes if work.loss == "class" else min(batch, kind.classes)
    hidden = 0 if kind.does.classifier else next(iter(shapes(kind).values()))[0]
    wide = max(kind.width, hidden)
    batch_p, columns_p = padded(batch), padded(columns)
    moments = 0 if kept else 1 if work.optimizer == "sgd" else 2
    lines = staggered(size(kind), 1 + moments) + [NOTHING] * (2 - moments)
    buffers = Buffers(
        images=np.zeros((5, batch_p * wide), np.float32),
        texts=np.zeros((5, columns_p * wide), np.float32),
        across=np.zeros((2, max(batch, columns) * padded(max(wide, columns))), np.float32),
        columns=np.empty((columns, kind.width), np.float32),
        pairs=np.zeros((2, columns * batch_p), np.float32),
        by_row=np.zeros((2, batch_p), np.float32),
        by_column=np.zeros((3, columns_p), np.float32),
        place=np.empty(batch, np.int32),
        classes=np.empty(columns, np.int32),
        column_of=np.full(kind.classes, -1, np.int32),
        lines=np.empty((7, max(batch_p, columns_p)), np.float32),
        widened=np.empty(max(wide, columns) * padded(max(wide, columns)), np.float32),
        hidden=hidden,
    )
    return (*lines, buffers)
