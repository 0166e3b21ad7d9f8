"""CLIP-Adapter: a bottleneck whose answer is a share of the feature; arXiv:2110.04544."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.heads.head import Head, Named, Shapes

if TYPE_CHECKING:
    from torch import Tensor

REDUCTION = 4  # the bottleneck is D / 4 wide
RATIO = 0.2  # the share of the answer that is new; both: arXiv:2110.04544, section 4.1


def shapes(width: int, classes: int, rank: int) -> Shapes:
    """Into the bottleneck and out of it, without biases."""
    hidden = max(1, width // REDUCTION)
    return {"w1": (hidden, width), "w2": (width, hidden)}


def apply(parts: Named, x: Tensor) -> Tensor:
    """0.2 relu(W2 relu(W1 x')) + 0.8 x'."""
    new = x.bmm(parts["w1"].mT).relu().bmm(parts["w2"].mT).relu()
    return RATIO * new + (1 - RATIO) * x


HEAD = Head(
    "clip-adapter",
    shapes,
    apply,
    last=("w2",),
    numba=1,
    refusals=(
        (
            lambda mode, start: start == "identity",
            "start identity: head clip-adapter ends in a ReLU, which passes no gradient at 0, so "
            "it would never train; pass --start default or --head low-rank",
        ),
    ),
)
