"""The GPU check's stage of other tile sizes and overlapping launches, against what is shipped."""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks import kernels, kernels_cuda
from benchmarks.compare import distance
from benchmarks.gpu_check.sizes import CUDA, Lines, Size
from benchmarks.measure import take_turns
from benchmarks.rows import time as in_words
from kernels.adapter import AdamSettings, AdapterState

Call = Callable[[], tuple[Tensor, ...]]
Made = TypeVar("Made")
SHIPPED = "shipped"
OVERLAP = "overlapping launches"


def variants(size: Size) -> Lines:
    """Training steps, in graphs, and contrastive with other tile sizes, against those shipped.

    Last, steps whose launches overlap (kernels/step/gpu.py: take_steps): the bytes must be equal.
    """
    from kernels.contrastive import gpu as contrastive_gpu
    from kernels.gpu.round_graph import capture
    from kernels.step import gpu as step_gpu

    lanes, steps, batch, classes = size.steps
    adapters, *data = kernels.problem(lanes, size.width, classes, 200, CUDA)
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(200, (steps, lanes, batch), generator=draw, dtype=torch.int32)
    settings = AdamSettings(
        *(torch.full((lanes,), kernels.RELEASED[n], dtype=torch.float64)
          for n in AdamSettings._fields)
    )  # fmt: skip
    state = AdapterState(*(w.clone() for w in adapters))
    work = step_gpu.workspace(steps, lanes, batch, data[0])
    step_gpu.set_rows(work, rows)
    step_gpu.set_settings(work, settings)

    def steps_in_graph(overlap: bool = False) -> Call:
        def train() -> None:
            for weight, start in zip(state, adapters, strict=True):
                weight.copy_(start)
            step_gpu.take_steps(state, *data, work, [lanes] * steps, 100.0, overlap)

        graph = capture(train)

        def replay() -> tuple[Tensor, ...]:
            graph.replay()
            return state

        return replay

    ways = {SHIPPED: steps_in_graph}
    for name, change in (
        ("UPDATE", {"BM": 32, "BN": 32}),
        ("UPDATE", {"BM": 16, "BN": 64}),
        ("LAYER", {"BK": 64, "num_stages": 3}),
        ("HIDDEN", {"BK": 32, "num_stages": 4}),
        ("SCORES", {"BN": 32, "num_warps": 4}),
    ):
        ways[f"{name} {change}"] = partial(_with, step_gpu, name, change, steps_in_graph)
    case = f"{lanes} lanes, {steps} steps"
    yield from _variants(case, ways)
    image, other = kernels_cuda.pairs(size.pairs[0], CUDA)

    def gradients() -> tuple[Tensor, ...]:
        _, *sums = contrastive_gpu.forward(image, other, 100.0, "fast")
        return contrastive_gpu.backward(image, other, 100.0, *sums, "fast")

    wide = contrastive_gpu.WIDE["fast"]
    ways = {SHIPPED: lambda: gradients}
    for name, change in (
        ("WIDE", {"fast": wide | {"BN": 256}}),
        ("WIDE", {"fast": wide | {"BN": 64, "num_warps": 4}}),
        ("WIDE", {"fast": wide | {"num_stages": 4}}),
        ("CHUNK", 8192),
    ):
        changed = partial(_with, contrastive_gpu, name, change, gradients)
        ways[f"{name} {change}"] = lambda changed=changed: changed
    yield from _variants(f"contrastive fast, N {size.pairs[0]}", ways)
    if torch.cuda.get_device_capability()[0] >= 9:
        ways = {SHIPPED: steps_in_graph, OVERLAP: partial(steps_in_graph, overlap=True)}
        yield from _variants(case, ways)


def _variants(case: str, ways: dict[str, Callable[[], Call]]) -> Lines:
    """Make each way's call, check its results against the shipped one's, and time them in turn."""
    shipped: list[Tensor] = []
    calls: dict[str, Call] = {}
    for name, make in ways.items():
        try:
            call = make()
            found = [value.clone() for value in call()]
        except Exception as error:  # the compiler or driver may raise anything
            if name == SHIPPED:
                raise
            yield {"case": name, "summary": f"{name}: {type(error).__name__}"}
            continue
        shipped = shipped or found
        error = distance(tuple(found), tuple(shipped))
        equal = all(map(torch.equal, found, shipped))
        if not (equal if name == OVERLAP else error < 1e-3):
            yield {"case": name, "error": f"differs by {error:.1e} from what is shipped"}
            continue
        calls[name] = call
    times = {n: t.quantiles()["p50"] for n, t in
             take_turns(calls, repeats=5, device=CUDA).items()}  # fmt: skip
    for name, seconds in times.items():
        yield {
            "case": name, "seconds": seconds,
            "summary": f"{case}, {name}: {in_words(seconds)}, "
                       f"{times[SHIPPED] / seconds:.2f} times as fast",
        }  # fmt: skip


def _with(module: ModuleType, name: str, change: Any, call: Callable[[], Made]) -> Made:
    """What `call` returns while the module's constant is changed."""
    before = getattr(module, name)
    setattr(module, name, before | change if isinstance(before, dict) else change)
    try:
        return call()
    finally:
        setattr(module, name, before)
