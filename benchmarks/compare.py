"""Cases of one workload: each checked against float64, then all timed in turns."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure import Times, peak_extra_bytes, take_turns
from benchmarks.rows import Row


class Wrong(Exception):
    """A kernel with more than twice plain torch's error; it is not timed."""


@dataclass(frozen=True)
class Fault:
    """A case that produced no row, and why; the others still run."""

    benchmark: str
    case: str
    why: str


@dataclass(frozen=True)
class Work:
    """A workload, and the least that one unit of it requires, whatever a case actually does."""

    benchmark: str
    shape: str
    unit: str
    flops: float
    moved: float | None = None  # bytes
    bound: str = "gemm"  # or "copy": the machine ceiling that limits it


@dataclass(frozen=True)
class Case:
    """One implementation: a call, the units of work in it, and its error against float64.

    ours  whether more than twice plain torch's error is a Fault
    """

    call: Callable[[], object]
    units: int = 1
    error: Callable[[], float] | float | None = None
    ours: bool = False


def guarded(
    benchmark: str, case: str, call: Callable[[], Iterable[Row | Fault]]
) -> Iterator[Row | Fault]:
    """What `call` yields, with a Fault in place of any exception."""
    try:
        yield from call()
    except Exception as error:  # a kernel, its compiler or driver may raise anything
        yield Fault(benchmark, case, f"{type(error).__name__}: {error}")


def compare(
    work: Work, cases: dict[str, Case], plain_error: float, ceilings: dict[str, float],
    repeats: int, device: torch.device,
) -> list[Row | Fault]:  # fmt: skip
    """A row for each case; the first is the baseline for the others' speed-ups.

    A case that fails or is inaccurate is a Fault, and the others are measured without it. A
    speed-up is the median over the turns of baseline / case in the same turn: a slowdown of the
    machine that lasts longer than a turn affects both.
    """
    peaks: dict[str, int | None] = {}
    errors: dict[str, float | None] = {}
    faults: list[Row | Fault] = []
    for name, case in cases.items():
        try:
            if repeats > 1:  # a case timed once is too slow for a warm-up call
                case.call()
            peak = peak_extra_bytes(case.call, device)
            error = case.error() if callable(case.error) else case.error
            if case.ours:
                checked(f"{work.benchmark} {name}, {work.shape}", error, plain_error)
            peaks[name], errors[name] = peak, error
        except Exception as error:  # a kernel, its compiler or driver may raise anything
            why = str(error) if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
            faults.append(Fault(work.benchmark, f"{name}, {work.shape}", why))
    sound = {name: cases[name] for name in errors}
    times = take_turns(
        {n: case.call for n, case in sound.items()}, repeats=repeats, device=device,
        warm=repeats == 1,
    )  # fmt: skip
    each = {n: [s / case.units for s in times[n].seconds] for n, case in sound.items()}
    baseline = each.get(next(iter(cases)))
    return [
        *(_row(work, name, case.units, times[name], errors[name], peaks[name], plain_error,
               ceilings, _speed_up(baseline, each[name])) for name, case in sound.items()),
        *faults,
    ]  # fmt: skip


def _speed_up(baseline: list[float] | None, own: list[float]) -> float | None:
    if baseline is None:
        return None
    return statistics.median(base / mine for base, mine in zip(baseline, own, strict=True))


def _row(
    work: Work, name: str, units: int, times: Times, error: float | None, peak: int | None,
    plain_error: float, ceilings: dict[str, float], times_baseline: float | None,
) -> Row:  # fmt: skip
    found = times.quantiles(units)
    speed = work.flops / found["p50"]
    traffic = work.moved / found["p50"] if work.moved else None
    of_ceiling = (
        speed / ceilings["gemm_flops_per_second"]
        if work.bound == "gemm"
        else traffic / ceilings["copy_bytes_per_second"]
    )
    return Row(
        work.benchmark,
        name,
        work.shape,
        work.unit,
        **found,
        times_baseline=times_baseline,
        flops_per_second=speed,
        bytes_per_second=traffic,
        of_ceiling=of_ceiling,
        peak_extra_bytes=peak,
        error=error,
        plain_error=plain_error,
    )


def distance(found: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """The 99th percentile of the absolute difference; the maximum over the arrays.

    Not the largest difference: Adam divides a gradient by its own magnitude, so an element with a
    gradient near 0 is off by up to lr in any float32 code, and which element that is is chance.
    """
    pairs = zip(found, truth, strict=True)
    gaps = [(f.double() - t.double()).abs().flatten() for f, t in pairs]
    return max(float(gap.kthvalue(math.ceil(0.99 * len(gap))).values) for gap in gaps)


def checked(name: str, error: float, plain_error: float) -> float:
    """The error; raises Wrong if it exceeds twice plain torch's."""
    if not error <= 2 * plain_error + 1e-12:
        raise Wrong(
            f"{name}: the error against float64 is {error:.2e}, plain float32 torch's is "
            f"{plain_error:.2e}; inaccurate code is not timed"
        )
    return error
