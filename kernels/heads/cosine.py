"""A cosine classifier: a row of weights for each class, in the place of the text features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.heads.head import Head, Shapes

if TYPE_CHECKING:
    from torch import Tensor


def shapes(width: int, classes: int, rank: int) -> Shapes:
    """A row a class."""
    return {"w": (classes, width)}


def start(part: str, start: str, drawn: Tensor, unit_text: Tensor) -> Tensor:
    """Always the text features at length 1."""
    return drawn.copy_(unit_text)


HEAD = Head(
    "cosine",
    shapes,
    None,
    start,
    numba=4,
    refusals=(
        (
            lambda mode, start: mode != "FedAtTxt",
            "head cosine is a classifier in the place of the text features: pass --mode FedAtTxt",
        ),
    ),
)
