"""A linear layer: W x' + b."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.heads.head import Head, Named, Shapes

if TYPE_CHECKING:
    from torch import Tensor


def shapes(width: int, classes: int, rank: int) -> Shapes:
    """One square layer with a bias."""
    return {"w": (width, width), "b": (width,)}


def apply(parts: Named, x: Tensor) -> Tensor:
    """W x' + b."""
    return parts["b"][:, None].baddbmm(x, parts["w"].mT)


def start(part: str, start: str, drawn: Tensor, unit_text: Tensor) -> Tensor:
    """With identity w is the identity matrix and b 0."""
    if start == "identity":
        drawn.zero_()
        if part == "w":
            drawn.fill_diagonal_(1)
    return drawn


HEAD = Head("linear", shapes, apply, start, identity=True, numba=2)
