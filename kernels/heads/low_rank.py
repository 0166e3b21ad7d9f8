"""A residual of low rank: x' + B A x'; arXiv:2106.09685."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.heads.head import Head, Named, Shapes

if TYPE_CHECKING:
    from torch import Tensor


def shapes(width: int, classes: int, rank: int) -> Shapes:
    """Down to the rank and up again."""
    return {"a": (rank, width), "b": (width, rank)}


def apply(parts: Named, x: Tensor) -> Tensor:
    """x' + B A x'."""
    return x + x.bmm(parts["a"].mT).bmm(parts["b"].mT)


def start(part: str, start: str, drawn: Tensor, unit_text: Tensor) -> Tensor:
    """Always b is 0."""
    return drawn.zero_() if part == "b" else drawn


HEAD = Head("low-rank", shapes, apply, start, last=("b",), uses_rank=True, numba=3)
