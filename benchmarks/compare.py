"""Cases of one piece of work: each checked against float64, then all timed in turns."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure import peak_extra_bytes, take_turns
from benchmarks.rows import Row


class Wrong(Exception):
    """A kernel whose error is larger than twice plain torch's: nothing of it is timed."""


@dataclass(frozen=True)
class Work:
    """What is computed, and what one unit of it needs at least, whatever a case really does."""

    benchmark: str
    shape: str
    unit: str
    flops: float
    moved: float | None = None  # bytes
    bound: str = "gemm"  # or "copy": which ceiling of the machine it meets first


@dataclass(frozen=True)
class Case:
    """One way to do it: a call, how many units that is, and its error against float64."""

    call: Callable[[], object]
    units: int = 1
    error: float | None = None


def compare(
    work: Work, cases: dict[str, Case], plain_error: float, ceilings: dict[str, float],
    repeats: int, device: torch.device,
) -> list[Row]:  # fmt: skip
    """A row for each case; the first is the baseline that the others' speed-ups refer to.

    A speed-up is the median over the turns of baseline / case in that turn: what slows the machine
    for longer than a turn falls on both.
    """
    peaks = {name: peak_extra_bytes(case.call, device) for name, case in cases.items()}
    times = take_turns({n: case.call for n, case in cases.items()}, repeats=repeats, device=device)
    each = {n: [s / case.units for s in times[n].seconds] for n, case in cases.items()}
    baseline = next(iter(each.values()))
    rows = []
    for name, case in cases.items():
        found = times[name].quantiles(case.units)
        speed = work.flops / found["p50"]
        traffic = work.moved / found["p50"] if work.moved else None
        of_ceiling = (
            speed / ceilings["gemm_flops_per_second"]
            if work.bound == "gemm"
            else traffic / ceilings["copy_bytes_per_second"]
        )
        ratios = [base / own for base, own in zip(baseline, each[name], strict=True)]
        rows.append(
            Row(
                work.benchmark,
                name,
                work.shape,
                work.unit,
                **found,
                times_baseline=statistics.median(ratios),
                flops_per_second=speed,
                bytes_per_second=traffic,
                of_ceiling=of_ceiling,
                peak_extra_bytes=peaks[name],
                error=case.error,
                plain_error=plain_error,
            )
        )
    return rows


def distance(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """The 99th percentile of the absolute difference, the largest over the arrays.

    Not the largest difference: Adam divides a gradient by its own size, so an element whose
    gradient is near 0 is off by up to lr in any float32 code, and which one that is is chance.
    """
    pairs = zip(found, truth, strict=True)
    gaps = [(f.double() - t.double()).abs().flatten() for f, t in pairs]
    return max(float(gap.kthvalue(math.ceil(0.99 * len(gap))).values) for gap in gaps)


def checked(name: str, error: float, plain_error: float) -> float:
    """The error, which may be twice plain torch's; raises Wrong for a larger one."""
    if not error <= 2 * plain_error + 1e-12:
        raise Wrong(
            f"{name}: its error against float64 is {error:.2e}, plain float32 torch's is "
            f"{plain_error:.2e}; wrong code is not timed"
        )
    return error
