"""A linear layer: W x' + b; with --start identity, W = I and b = 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.heads.head import Head

if TYPE_CHECKING:
    from torch import Tensor


def start(part: str, start: str, drawn: Tensor, text: Tensor) -> Tensor:
    """The part's initial values; see Head."""
    if start != "identity":
        return drawn
    drawn.zero_()
    return drawn.fill_diagonal_(1) if part == "w" else drawn


HEAD = Head(
    "linear",
    about="One linear layer.",
    shapes=lambda d, classes, rank: {"w": (d, d), "b": (d,)},
    apply=lambda parts, x: parts["b"][:, None].baddbmm(x, parts["w"].mT),
    start=start,
    identity=True,
    numba=2,
)
