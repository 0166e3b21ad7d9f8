"""Cases of one piece of work: each checked against float64, then all timed in turns."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.measure import Times, peak_extra_bytes, take_turns
from benchmarks.rows import Row


class Wrong(Exception):
    """A kernel whose error is larger than twice plain torch's: it is not timed."""


@dataclass(frozen=True)
class Fault:
    """A case that gave no row, and why; the others go on."""

    benchmark: str
    case: str
    why: str


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
    """One way to do it: a call, how many units that is, and its error against float64.

    ours  whether an error above twice plain torch's is a Fault
    """

    call: Callable[[], object]
    units: int = 1
    error: Callable[[], float] | float | None = None
    ours: bool = False


def guarded(
    benchmark: str, case: str, call: Callable[[], Iterable[Row | Fault]]
) -> Iterator[Row | Fault]:
    """What `call` gives, and a Fault in place of what it raises."""
    try:
        yield from call()
    except Exception as error:  # of a kernel, its compiler or its driver: anything
        yield Fault(benchmark, case, f"{type(error).__name__}: {error}")


def compare(
    work: Work, cases: dict[str, Case], plain_error: float, ceilings: dict[str, float],
    repeats: int, device: torch.device,
) -> list[Row | Fault]:  # fmt: skip
    """A row for each case; the first is the baseline that the others' speed-ups refer to.

    A case that fails or is wrong is a Fault, and the others are measured without it. A speed-up is
    the median over the turns of baseline / case in that turn: what slows the machine for longer
    than a turn falls on both.
    """
    peaks: dict[str, int | None] = {}
    errors: dict[str, float | None] = {}
    faults: list[Row | Fault] = []
    for name, case in cases.items():
        try:
            if repeats > 1:  # what is timed once is too slow to be called for nothing
                case.call()
            peak = peak_extra_bytes(case.call, device)
            error = case.error() if callable(case.error) else case.error
            if case.ours:
                checked(f"{work.benchmark} {name}, {work.shape}", error, plain_error)
            peaks[name], errors[name] = peak, error
        except Exception as error:  # of a kernel, its compiler or its driver: anything
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
