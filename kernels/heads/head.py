"""What a head is: one frozen description of what an adapter computes.

Files of heads are read for --help as well: torch is imported inside their functions, if at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
Named = dict[str, "Tensor"]
"""An adapter's numbers by name, each with the leading axes of the rows they were cut from."""
Refusal = tuple[Callable[[str, str], bool], str]
"""(mode, start) -> whether that cannot be, and the sentence that says so and what to pass."""


def as_drawn(part: str, start: str, drawn: Tensor, unit_text: Tensor) -> Tensor:
    """The start of heads without one of their own: what was drawn."""
    return drawn


@dataclass(frozen=True)
class Head:
    """A head: all that kernels and settings ask of it. L lanes, B batch, D width, C classes.

    name        as --head spells it
    about       a sentence for --help
    shapes      (D, C, rank) -> shape of each part, in the order in which they lie in a row
    apply       (parts, x (L, B, D)) -> (L, B, D), not normalised; x is at length 1, or `raw`.
                None: its part w (C, D) stands in the place of the text features, a row a class
    start       (part, --start, drawn, text (C, D) at length 1) -> that part's first numbers;
                drawn is uniform in +-1/sqrt(fan in), PyTorch's default for Linear; it may be
                changed
    last        parts of the last layer, which fedper keeps at the client; (): there is one layer
    raw         whether apply takes features as the encoder gave them, not at length 1
    identity    whether --start identity is another start than default
    closed_form  whether --start closed-form can give its first numbers
    uses_rank   whether shapes depend on --rank
    fused       whether kernels/step/ and kernels/answers/ have code of their own for it on images
    numba       its number in kernels/heads/cpu.py; None: no compiled code, so torch computes it
    refusals    modes and starts that it cannot go with
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
        """Whether it stands in the place of the text features."""
        return self.apply is None

    def refuse(self, mode: str, start: str) -> str | None:
        """Why it cannot go with a mode and a start, and what to pass; None: it can."""
        return next((why for wrong, why in self.refusals if wrong(mode, start)), None)
