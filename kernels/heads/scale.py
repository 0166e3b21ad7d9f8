"""A scale for each channel: (1 + s) * x'; (IA)^3's l * x, arXiv:2205.05638, with l = 1 + s.

There l starts at 1. Written as 1 + s weight decay pulls towards zero-shot and not towards 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.heads.head import Head, Named, Shapes

if TYPE_CHECKING:
    from torch import Tensor


def shapes(width: int, classes: int, rank: int) -> Shapes:
    """A number a channel."""
    return {"s": (width,)}


def apply(parts: Named, x: Tensor) -> Tensor:
    """(1 + s) * x'."""
    return (1 + parts["s"][:, None]) * x


def start(part: str, start: str, drawn: Tensor, unit_text: Tensor) -> Tensor:
    """Always s is 0."""
    return drawn.zero_()


HEAD = Head("scale", shapes, apply, start)
