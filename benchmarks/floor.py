"""The least time of a training step on one core, from the rates measured in the same run.

A step's five products are fused multiply-adds; Adam takes a square root and a division per weight,
which some processors overlap with multiply-adds and some do not, and reads and writes each weight
and its two moments once. The costs that cannot be hidden add up.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numba import njit

from benchmarks.measure import Times
from kernels.cpu.tile import DEPTH, ROWS, WIDE, register_tile

COUNT = 2048  # float32 numbers in an array that fits L1
CHAIN = 16  # multiply-adds per number, next to one square root and one division
TIMES = 4000
PASSES = 10
MOVED = 3 * 525_312  # float32 numbers: the weights of width 512 and both moments


class Core(NamedTuple):
    """Rates of one core; hidden is the fraction of the divider's time that multiply-adds hide."""

    flops: float  # per second
    divider: float  # seconds for a square root and a division
    hidden: float
    moved: float  # bytes of a step's weights and moments read and written per second


def cases() -> dict[str, Callable[[], object]]:
    """Calls to time along with the steps; core_of turns their times into rates."""
    draw = np.random.default_rng(0)
    x, y, out = (_aligned(draw.uniform(1, 2, COUNT)) for _ in range(3))
    left, right = (_aligned(draw.normal(size=DEPTH * n)) for n in (ROWS, WIDE))
    sums, state = (_aligned(np.zeros(count)) for count in (ROWS * WIDE, MOVED))
    return {
        "multiply-adds": lambda: _tiles(left, right, sums),
        "divider": lambda: _divided(x, y, out),
        "chain": lambda: _chained(x, out),
        "chain and divider": lambda: _both(x, y, out),
        "weights and moments": lambda: _moved(state),
    }


def _aligned(values: np.ndarray) -> np.ndarray:
    """float32, aligned to a cache line, as torch allocates arrays."""
    return torch.from_numpy(values).float().numpy()


def core_of(times: dict[str, Times]) -> Core:
    """The rates, from the 20 % quantiles of the CPU seconds."""
    least = {name: float(np.quantile(times[name].cpu, 0.2)) for name in cases()}
    alone = least["chain"], least["divider"]
    hidden = (sum(alone) - least["chain and divider"]) / min(alone)
    return Core(
        2 * ROWS * WIDE * DEPTH * TIMES / least["multiply-adds"],
        least["divider"] / (TIMES * COUNT),
        min(1.0, max(0.0, hidden)),
        PASSES * 2 * 4 * MOVED / least["weights and moments"],
    )


def step_floor(core: Core, width: int, batch: int) -> float:
    """Least seconds of a lane-step: products plus unhidden divider time, or memory traffic."""
    weights = 2 * width * (width + 1)
    products = 5 * 2 * batch * width * width / core.flops
    return max(products + weights * core.divider * (1 - core.hidden), 6 * 4 * weights / core.moved)


def said(core: Core) -> str:
    """The rates in words."""
    return (
        f"one core: {core.flops / 1e9:.0f} GFLOP/s, a square root and a division in "
        f"{core.divider * 1e9:.2f} ns ({core.hidden:.0%} hidden by multiply-adds), "
        f"{core.moved / 1e9:.1f} GB/s of weights and moments"
    )


@njit
def _tiles(left, right, sums):
    for _ in range(TIMES):
        register_tile(left.ctypes.data, 1, ROWS, right.ctypes.data, WIDE, sums.ctypes.data, WIDE,
                      DEPTH, 0)  # fmt: skip


@njit(error_model="numpy", fastmath={"contract"})
def _divided(x, y, out):
    for _ in range(TIMES):
        for i in range(COUNT):
            out[i] = x[i] / np.sqrt(y[i])


@njit(error_model="numpy", fastmath={"contract"})
def _chained(x, out):
    for _ in range(TIMES):
        for i in range(COUNT):
            value = x[i]
            for _ in range(CHAIN):
                value = value * np.float32(0.5) + np.float32(1)
            out[i] = value


@njit(error_model="numpy", fastmath={"contract"})
def _both(x, y, out):
    for _ in range(TIMES):
        for i in range(COUNT):
            value = x[i]
            for _ in range(CHAIN):
                value = value * np.float32(0.5) + np.float32(1)
            out[i] = value + x[i] / np.sqrt(y[i])


@njit
def _moved(state):
    for _ in range(PASSES):
        for i in range(len(state)):
            state[i] = state[i] * np.float32(0.5) + np.float32(1)
