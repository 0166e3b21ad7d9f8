"""Three kernels against plain torch, each checked against float64 before it is timed."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import eager
from benchmarks.compare import Case, Fault, Work, compare, distance, guarded
from benchmarks.cores import one_core
from benchmarks.rows import Row
from kernels.adapter import AdamSettings, AdapterState
from kernels.answers.top1 import adapter_top1
from kernels.backends import BACKENDS
from kernels.contrastive import contrastive
from kernels.step import adapter_steps
from pipeline.machine import threads

SCALE = 100.0
COUNTS = (64, 100, 256, 512, 1024, 2048, 4096, 8192, 16384)  # of `bench contrastive`
TRUE = 8192  # up to this many pairs, errors are against float64
SLOW = 4096  # above this many pairs a call takes seconds and is timed once
RELEASED = {"lr": 5e-5, "weight_decay": 0.2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6}
LANES = {"cpu": 4, "cuda": 1200}  # of a training step; 1,200 is a hundred times the blog's twelve


def run(device: torch.device, ceilings: dict[str, float], quick: bool) -> Iterator[Row | Fault]:
    """All rows of `bench kernels`."""
    yield from guarded("lane-step", "", lambda: _lane_steps(device, ceilings, quick))
    yield from guarded("top1", "", lambda: _top1(device, ceilings, quick))
    for count in (1024,) if quick else (1024, 8192):
        name = f"N {count}"
        yield from guarded(
            "contrastive", name, lambda n=count: _contrastive(device, ceilings, n, quick)
        )


def contrastive_by_count(
    device: torch.device, ceilings: dict[str, float], quick: bool
) -> Iterator[Row | Fault]:
    """All rows of `bench contrastive`; on a CPU, on one core and with torch.compile."""
    with one_core() if device.type == "cpu" else contextlib.nullcontext():
        for count in COUNTS[:5] if quick else COUNTS:
            if count > TRUE and (_free_bytes() or 0) < 6 * 4 * count**2:
                yield Fault("contrastive-by-n", f"N {count}", "needs more memory than is available")
                continue
            yield from guarded(
                "contrastive-by-n", f"N {count}",
                lambda n=count: _contrastive(device, ceilings, n, quick, "contrastive-by-n"),
            )  # fmt: skip


def problem(
    lanes: int, width: int, classes: int, count: int, device: torch.device
) -> tuple[AdapterState, Tensor, Tensor, Tensor]:
    """Adapters at PyTorch's default start, features near their class's text, labels, unit text."""
    draw = torch.Generator().manual_seed(0)
    bound = width**-0.5

    def uniform(*shape: int) -> Tensor:
        return torch.empty(lanes, *shape).uniform_(-bound, bound, generator=draw).to(device)

    adapters = AdapterState(
        uniform(width, width), uniform(width), uniform(width, width), uniform(width)
    )
    text = normalize(torch.randn(classes, width, generator=draw), dim=1)
    labels = torch.randint(classes, (count,), generator=draw)
    features = 3 * text[labels] + torch.randn(count, width, generator=draw) * 10 * bound
    return adapters, features.to(device), labels.to(device), text.to(device)


def _lane_steps(device: torch.device, ceilings: dict, quick: bool) -> list[Row | Fault]:
    lanes = LANES[device.type]
    steps, batch, width, classes = 20, 32, 512, 7
    adapters, features, labels, text = problem(lanes, width, classes, 2000, device)
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(2000, (steps, lanes, batch), generator=draw, dtype=torch.int32)
    settings = AdamSettings(
        *(torch.full((lanes,), RELEASED[n], dtype=torch.float64) for n in AdamSettings._fields)
    )
    one = AdapterState(*(w[0] for w in adapters))
    batches = [rows[s, 0].long().to(device) for s in range(steps)]

    def plain(fused: bool) -> AdapterState:
        return eager.train(one, features, labels, text, batches, SCALE, fused=fused)

    def ours(backend: str) -> AdapterState:
        with threads(device, width, backend):
            state = AdapterState(*(w.clone() for w in adapters))
            adapter_steps(
                state, features, labels, text, rows, settings, logit_scale=SCALE, backend=backend
            )
        return state

    truth = eager.train(
        AdapterState(*(w.double() for w in one)), features.double(), labels, text.double(),
        batches, SCALE,
    )  # fmt: skip
    plain_error = distance(plain(False), truth)
    cases = {
        "torch eager, Adam": Case(lambda: plain(False), steps, plain_error),
        "torch eager, Adam(fused=True)": Case(
            lambda: plain(True), steps, distance(plain(True), truth)
        ),
    }
    for backend in BACKENDS[device.type]:
        cases[backend] = Case(
            lambda backend=backend: ours(backend), steps * lanes,
            lambda backend=backend: distance([w[0] for w in ours(backend)], truth), ours=True,
        )  # fmt: skip
    work = Work(
        "lane-step", f"B {batch}, D {width}, C {classes}, {lanes} lanes", "lane-step",
        flops=5 * 2 * batch * width * width,  # 5 products of size B x D x D
        moved=6 * 4 * 2 * width * (width + 1),  # Adam reads and writes p, m, v of 2 D (D + 1)
        bound="gemm" if device.type == "cpu" else "copy",
    )  # fmt: skip
    return compare(work, cases, plain_error, ceilings, 3 if quick else 21, device)


def _top1(device: torch.device, ceilings: dict, quick: bool) -> list[Row | Fault]:
    lanes, width, classes, count = 4, 512, 7, 4096
    adapters, features, _, text = problem(lanes, width, classes, count, device)
    rows = [torch.arange(count, device=device)] * lanes
    ones = [AdapterState(*(w[a] for w in adapters)) for a in range(lanes)]
    truth = eager.top1(AdapterState(*(w.double() for w in ones[0])), features.double(),
                       text.double())  # fmt: skip

    def plain() -> list[Tensor]:
        with torch.no_grad():
            return [eager.top1(one, features, text) for one in ones]

    plain_error = float((plain()[0] != truth).float().mean())
    cases = {"torch eager": Case(plain, count * lanes, plain_error)}
    for backend in BACKENDS[device.type]:

        def ours(backend: str = backend) -> list[Tensor]:
            with threads(device, width, backend):
                return adapter_top1(adapters, features, text, rows, backend=backend)

        def wrong(ours: Callable[[], list[Tensor]] = ours) -> float:
            return float((ours()[0] != truth).float().mean())

        cases[backend] = Case(ours, count * lanes, wrong, ours=True)
    shape = f"N {count}, D {width}, C {classes}, {lanes} adapters"
    work = Work("top1", shape, "row", flops=2 * width * (2 * width + classes))
    # Allow for one tie in 4,096 rows.
    return compare(work, cases, plain_error + 1 / count, ceilings, 3 if quick else 15, device)


def _contrastive(
    device: torch.device, ceilings: dict, count: int, quick: bool, benchmark: str = "contrastive"
) -> list[Row | Fault]:
    width = 512
    draw = torch.Generator().manual_seed(2)
    image = normalize(torch.randn(count, width, generator=draw), dim=1)
    # Cosines of 0.15 with the right text and at most that with wrong ones: nothing saturates.
    noise = torch.randn(count, width, generator=draw) / width**0.5
    text = normalize(0.15 * image + noise, dim=1)
    pair = image.to(device), text.to(device)

    def both(loss, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        x, y = (v.detach().to(dtype, copy=True).requires_grad_() for v in pair)
        scale = torch.tensor(SCALE, dtype=dtype, device=device, requires_grad=True)
        loss(x, y, scale).backward()
        return x.grad, y.grad

    by_count = benchmark != "contrastive"
    # A single call after a pause mostly measures code that has dropped out of the caches.
    calls = max(1, 2**18 // count**2) if by_count else 1
    # Above TRUE, float64 needs more memory than machines have: errors are against float32.
    truth = both(eager.contrastive, torch.float64 if count <= TRUE else torch.float32)
    plain_error = distance(both(eager.contrastive), truth) if count <= TRUE else 1e-6

    def case(loss: Callable[..., Tensor], **how: Any) -> Case:
        found: list[tuple[Tensor, ...]] = []  # by the call whose memory was measured

        def again() -> None:
            for _ in range(calls - 1):
                both(loss)
            found[:] = [both(loss)]

        return Case(again, calls, lambda: distance(found.pop(), truth), **how)

    cases = {"torch eager": case(eager.contrastive)}
    if by_count and device.type == "cpu":
        cases["torch.compile"] = case(torch.compile(eager.contrastive))
    for backend in ("numba",) if by_count and device.type == "cpu" else BACKENDS[device.type]:
        cases[backend] = case(functools.partial(contrastive, backend=backend), ours=True)
    work = Work(
        benchmark, f"N {count}, D {width}, fp32" + ", one core" * by_count, "loss+backward",
        flops=6 * count * count * width,
    )  # fmt: skip
    repeats = 3 if quick else 9 if count > 512 else 21
    if by_count:
        repeats = 1 if count > SLOW else 3 if quick or count > 1024 else 11
    return compare(work, cases, plain_error, ceilings, repeats, device)


def _free_bytes() -> int | None:
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.exists() else []
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
