"""A head: one frozen description of what an adapter computes.

--help imports the heads' files too, so they import torch only inside functions, if at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
Named = dict[str, "Tensor"]
"""An adapter's parts by name, each with the leading axes of the rows they are sliced from."""
Refusal = tuple[Callable[[str, str], bool], str]
"""(mode, start) -> whether that is invalid, and the message: why, and what to pass instead."""


def as_drawn(part: str, start: str, drawn: Tensor, unit_text: Tensor) -> Tensor:
    """The default start of a head: the drawn weights."""
    return drawn


@dataclass(frozen=True)
class Head:
    """A head: everything kernels and settings need. L lanes, B batch, D width, C classes.

    name        the value of --head
    about       a sentence for --help
    shapes      (D, C, rank) -> shape of each part, in their order within a row
    apply       (parts, x (L, B, D)) -> (L, B, D), not normalized; x has unit length unless `raw`.
                None: its part w (C, D) replaces the text features, one row per class
    start       (part, --start, drawn, text (C, D) of unit length) -> that part's initial values;
                drawn is uniform in +-1/sqrt(fan in), PyTorch's default for Linear, and may be
                modified in place
    last        parts of the last layer, which fedper keeps on the client; (): a single layer
    raw         whether apply takes features as encoded, not scaled to unit length
    identity    whether --start identity differs from default
    closed_form  whether --start closed-form can compute its initial values
    uses_rank   whether shapes depend on --rank
    fused       whether kernels/step/ and kernels/answers/ have dedicated code for it on images
    numba       its number in kernels/heads/cpu.py; None: no compiled code, so torch computes it
    refusals    modes and starts that it does not support
    """

    name: str
    about: str
    shapes: Callable[[int, int, int], Shapes]
    apply: Callable[[Named, Tensor], Tensor] | None
    start: Callable[[str, str, Tensor, Tensor], Tensor] = as_drawn
    last: tuple[str, ...] = ()
    raw: bool = False
    identity: bool = False
    closed_form: bool = False
    uses_rank: bool = False
    fused: bool = False
    numba: int | None = None
    refusals: tuple[Refusal, ...] = ()

    @property
    def classifier(self) -> bool:
        """Whether it replaces the text features."""
        return self.apply is None

    def refuse(self, mode: str, start: str) -> str | None:
        """Why it does not support a mode and start, and what to pass; None if it does."""
        return next((why for wrong, why in self.refusals if wrong(mode, start)), None)
