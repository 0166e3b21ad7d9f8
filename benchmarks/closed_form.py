"""Closed-form heads: sums over a large table in one pass, and a grid of heads by leave-one-out."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.compare import Case, Work, checked, compare, distance
from benchmarks.rows import Row
from pipeline.federation.methods.closed_form import BLOCK, gda, summed
from pipeline.federation.methods.closed_form_choice import scored

WIDTH, POOL = 512, 16
"""Blocks that are drawn once and reused repeatedly: 64 MB, more than a CPU's cache."""
CARS = (2980, 196)  # Stanford Cars' train rows, a twentieth held out, and classes
CONFIGURATIONS = (50, 20)  # shapes, strengths


def run(device: torch.device, ceilings: dict[str, float], quick: bool) -> list[Row]:
    """Sums over 1.28 M synthetic rows of 1,000 classes, as in ImageNet; 1,000 Cars-shaped heads."""
    return [*_sums(device, ceilings, quick), *_heads(device, ceilings, quick)]


def _sums(device: torch.device, ceilings: dict[str, float], quick: bool) -> list[Row]:
    rows, classes = (BLOCK * 16 if quick else 1_280_000), 1000
    pool = _pool(device, classes)

    def blocks(count: int) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, count, BLOCK):
            x, y = pool[first // BLOCK % POOL]
            yield x[: count - first], y[: count - first]

    some = list(blocks(BLOCK * 2))
    x = normalize(torch.cat([own for own, _ in some]).double(), dim=1)
    comp = summed(iter(some), classes, WIDTH, device)
    plain = normalize(torch.cat([own for own, _ in some]).float(), dim=1)
    plain_error = distance((plain.T @ plain,), (x.T @ x,))
    error = checked("sums", distance((comp.gram,), (x.T @ x,)), plain_error)
    work = Work("sums", f"{rows:,} x {WIDTH} float16, C {classes}", "pass",
                2.0 * rows * WIDTH**2, 2.0 * rows * WIDTH)  # fmt: skip
    cases = {"one pass": Case(lambda: summed(blocks(rows), classes, WIDTH, device), 1, error)}
    return compare(work, cases, plain_error, ceilings, 1 if quick else 3, device)


def _heads(device: torch.device, ceilings: dict[str, float], quick: bool) -> list[Row]:
    rows, classes = CARS
    shapes, strengths = (5, 20) if quick else CONFIGURATIONS
    draw = np.random.RandomState(0)
    y = torch.from_numpy(draw.randint(0, classes, rows)).to(device)
    centres = torch.from_numpy(draw.normal(size=(classes, WIDTH))).to(device)
    x = normalize(centres[y] + 2 * torch.from_numpy(draw.normal(size=(rows, WIDTH))).to(device))
    zero_shot = (100 * x @ normalize(centres).T).float()
    sums = summed([(x, y)], classes, WIDTH, device)

    def grid() -> Tensor:
        at = gda(sums)
        reached = [
            scored(zero_shot, at(float(eps)).left_out(x, y), y, np.geomspace(0.01, 4, strengths))[1]
            for eps in np.geomspace(0.1, 60, shapes)
        ]
        return torch.stack(reached)

    shape = f"gda, {rows:,} rows left out, C {classes}, D {WIDTH}, {shapes * strengths:,} heads"
    work = Work("heads", shape, "grid", 2.0 * shapes * rows * WIDTH * classes)
    return compare(work, {"leave-one-out": Case(grid)}, 0.0, ceilings, 1 if quick else 3, device)


def _pool(device: torch.device, classes: int) -> list[tuple[Tensor, Tensor]]:
    draw = np.random.RandomState(0)
    return [
        (
            torch.from_numpy(draw.normal(size=(BLOCK, WIDTH)).astype(np.float16)).to(device),
            torch.from_numpy(draw.randint(0, classes, BLOCK)).to(device),
        )
        for _ in range(POOL)
    ]
