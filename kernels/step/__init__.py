"""Training steps of many attention adapters in parallel, on cached features."""

import torch
from torch import Tensor

from kernels.adapter import AdamSettings, AdapterState
from kernels.backends import load


def adapter_steps(
    adapters: AdapterState,
    features: Tensor,
    labels: Tensor,
    unit_text: Tensor,
    rows: Tensor,
    settings: AdamSettings,
    *,
    logit_scale: float,
    backend: str = "auto",
) -> Tensor:
    """T training steps of L independent adapters (lanes), each from a fresh Adam.

    One step of one lane, on the B rows x (B, D) with labels y that `rows` indexes:

        u = normalize(softmax(W2 tanh(W1 x + b1) + b2) * x)
        Z = logit_scale * u @ unit_text[y].T                       (B, B)
        loss = (cross_entropy(Z, arange(B)) + cross_entropy(Z.T, arange(B))) / 2
        Adam(lr, (beta1, beta2), eps) on (w1, b1, w2, b2), weight_decay * w added to the gradient

    The moments start at zero in step 0 of this call and are discarded at its end: FedCLIP creates a
    new optimizer every round. Rows of one class are negatives of each other, like rows of different
    classes; that is what the released code computes.

    adapters   L lanes, float32; **modified in place**
    features   (N, D) float32, raw as cached
    labels     (N,) int64, a class of 0..C-1 for each row
    unit_text  (C, D) float32, rows of unit length
    rows       (T, L, B) int32 on the CPU; shorter batches are padded with -1. A lane without rows
               in a step is skipped in it; lanes must be sorted so that in every step those with
               rows come first
    settings   (L,) values of the optimizer
    logit_scale  the multiplier, near 100
    backend    "auto" or a name from kernels/backends.py; a named one is never swapped
    returns    (T, L) float32 on the adapters' device: each step's loss; 0 where a lane had no rows

    Raises ValueError for inconsistent arguments, BackendUnavailable if the named backend cannot
    run here.
    Source: arXiv:2302.13485; PersonalizedFL fedclip/methods/fed_at_clip.py, fedclip/nets/models.py.
    """
    _check(adapters, features, labels, unit_text, rows, settings)
    module = load("step", backend, features.device)
    losses: Tensor = module.adapter_steps(
        adapters, features, labels, unit_text, rows, settings, float(logit_scale)
    )
    return losses


def _check(
    adapters: AdapterState,
    features: Tensor,
    labels: Tensor,
    unit_text: Tensor,
    rows: Tensor,
    settings: AdamSettings,
) -> None:
    count, width = features.shape
    steps, lanes, _ = rows.shape
    wanted = {
        "w1": (lanes, width, width),
        "b1": (lanes, width),
        "w2": (lanes, width, width),
        "b2": (lanes, width),
    }
    for name, shape in wanted.items():
        found = getattr(adapters, name)
        if tuple(found.shape) != shape or found.dtype != torch.float32:
            raise ValueError(
                f"adapter_steps: {name} must be {shape} float32 for {lanes} lanes of width {width};"
                f" got {tuple(found.shape)} {found.dtype}"
            )
    if unit_text.shape[1] != width or labels.shape != (count,):
        raise ValueError(
            f"adapter_steps: features are {tuple(features.shape)}, but unit_text is "
            f"{tuple(unit_text.shape)} and labels {tuple(labels.shape)}"
        )
    if any(tuple(value.shape) != (lanes,) for value in settings):
        raise ValueError(f"adapter_steps: settings must hold one value for each of {lanes} lanes")
    check_rows("adapter_steps", rows, count)


def check_rows(who: str, rows: Tensor, count: int) -> None:
    """Raise ValueError if rows (T, L, B) are out of range for `count`, or lanes are not sorted."""
    if rows.numel() and (int(rows.max()) >= count or int(rows.min()) < -1):
        raise ValueError(
            f"{who}: rows are {int(rows.min())} to {int(rows.max())}; there are {count}"
        )
    live = rows[:, :, 0] >= 0
    if bool((live[:, 1:] & ~live[:, :-1]).any()) or bool((live[1:] & ~live[:-1]).any()):
        raise ValueError(f"{who}: in every step the lanes that have rows must come first")
