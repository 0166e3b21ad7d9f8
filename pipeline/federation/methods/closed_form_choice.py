"""Chooses a closed-form head from a grid, scored on rows that were not used to compute it.

For every head of the grid a client sends its number of correct rows and the summed cross-entropy at
each of TEMPERATURES; the sums over clients decide (`best_of`). Train rows are scored by heads
without that row, or without its domain; validation rows by the head itself.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.federation.methods.closed_form import Added, Sums, gda, prototype, ridge

SHAPES: dict[str, tuple[float, ...]] = {
    "gda": tuple(2.0**n for n in range(-3, 7)),  # eps, of tr(A) / D
    "ridge": tuple(10 ** (n / 2) for n in range(-6, 3)),  # reg, of tr(G) / D
    "prototype": tuple(4.0**n for n in range(-1, 4)),  # kappa, rows
}
"""The values tried for each solver's shape."""
STRENGTHS: dict[str, tuple[float, ...]] = {
    "gda": (0.0, *(0.01 * 1.5**n for n in range(18))),  # to 9.9
    "ridge": (0.0, *(0.02 * 1.5**n for n in range(16))),  # to 8.8
    "prototype": (0.0, *(0.02 * 1.5**n for n in range(14))),  # to 3.9
}
"""Factors of the added logits; 0 is zero-shot CLIP."""
SOLVERS = {"gda": ("gda",), "ridge": ("ridge",), "prototype": ("prototype",),
           "auto": ("gda", "ridge")}  # fmt: skip
TEMPERATURES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Each is twice the one before: one exponential and four squarings give all."""
BLOCK = 2**17  # logits at a time: 0.5 MB of float32, which fits a CPU's L2 cache


@dataclass(frozen=True)
class Tried:
    """One head of the grid and its scores on rows that were not used to compute it."""

    solver: str
    shape: float
    strength: float
    rows: int
    right: float
    losses: tuple[float, ...]  # summed over the rows, one for each of TEMPERATURES

    @property
    def temperature(self) -> float:
        """The minimum of a parabola over log2 through the least loss and its neighbours; 1 without
        rows."""
        if not self.rows:
            return 1.0
        at = min(range(len(self.losses)), key=self.losses.__getitem__)
        moved = 0.0
        if 0 < at < len(self.losses) - 1:
            below, here, above = self.losses[at - 1 : at + 2]
            bend = below - 2 * here + above
            moved = (below - above) / (2 * bend) if bend > 0 else 0.0
        return float(TEMPERATURES[at] * 2.0**moved)

    @property
    def loss(self) -> float:
        """Mean cross-entropy at the best of TEMPERATURES, natural logarithm."""
        return min(self.losses) / self.rows if self.rows else math.nan

    @property
    def accuracy(self) -> float:
        """The share of correct rows."""
        return self.right / self.rows if self.rows else math.nan


def heads_of(
    solver: str, sums: Sums, logit_scale: float, shape: float
) -> Iterator[tuple[str, float, Added]]:
    """(solver, shape, head) of the grid; shape: the only one tried, 0 for all of SHAPES."""
    at: dict[str, Callable[[], Callable[[float], Added]]] = {
        "gda": lambda: gda(sums),
        "ridge": lambda: ridge(sums, logit_scale),
        "prototype": lambda: prototype(sums, logit_scale),
    }
    for name in SOLVERS[solver]:
        make = at[name]()
        for each in (shape,) if shape else SHAPES[name]:
            yield name, each, make(each)


def scored(
    zero_shot: Tensor, added: Tensor, labels: Tensor, strengths: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Scores heads zero_shot + strength * added: correct rows (G,) and losses (G, T), float64.

    zero_shot  (n, C) float32, logits of plain CLIP;  added (n, C), converted to float32
    labels     (n,) int64
    losses     sum over rows of log sum_c exp(t z_c) - t z_y at each t of TEMPERATURES
    A row is correct if no class has a larger logit than its own.
    """
    device, classes = labels.device, zero_shot.shape[1]
    right = torch.zeros(len(strengths), dtype=torch.int64, device=device)
    losses = torch.zeros(len(strengths), len(TEMPERATURES), dtype=torch.float64, device=device)
    times = torch.tensor(TEMPERATURES, device=device)[:, None]
    added, block = added.float(), max(1, BLOCK // max(1, classes))
    parts = zip(zero_shot.split(block), added.split(block), labels.split(block), strict=True)
    for plain, more, y in parts:
        sums = plain.new_empty(len(strengths), len(TEMPERATURES), len(y))
        own, z = plain.new_empty(len(strengths), len(y)), torch.empty_like(plain)
        for g, strength in enumerate(strengths):
            torch.add(plain, more, alpha=strength, out=z)
            z.sub_(z.amax(dim=1, keepdim=True))
            own[g] = z.gather(1, y[:, None])[:, 0]
            z.mul_(TEMPERATURES[0]).exp_()
            torch.sum(z, dim=1, out=sums[g, 0])
            for t in range(1, len(TEMPERATURES)):
                torch.sum(z.square_(), dim=1, out=sums[g, t])
        right += (own == 0).sum(dim=1)
        losses += (sums.log_() - times * own[:, None]).sum(dim=2, dtype=torch.float64)
    return right.double(), losses


def best_of(tried: Sequence[Tried]) -> Tried:
    """The head of least cross-entropy, of equals the earliest; ValueError if none was scored."""
    known = [each for each in tried if math.isfinite(each.loss)]
    if not known and len(tried) == 1:  # given, not chosen
        return tried[0]
    if not known:
        raise ValueError("no row to choose a closed-form head by")
    return min(known, key=lambda each: each.loss)
