"""The three kernels beside plain torch, each checked against float64 before it is timed."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import eager
from benchmarks.measure import peak_extra_bytes, quantiles, take_turns
from benchmarks.rows import Row
from kernels.adapter import AdamSettings, AdapterState
from kernels.adapter_step import adapter_steps
from kernels.adapter_top1 import adapter_top1
from kernels.backends import BACKENDS
from kernels.contrastive import contrastive

SCALE = 100.0
RELEASED = {"lr": 5e-5, "weight_decay": 0.2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6}


class Wrong(Exception):
    """A kernel whose error is larger than twice plain torch's: nothing of it is timed."""


def run(device: torch.device, ceilings: dict[str, float], quick: bool) -> list[Row]:
    """All rows of `bench kernels`."""
    rows = _lane_steps(device, ceilings, quick)
    rows += _top1(device, ceilings, quick)
    for count in (1024, 2048) if quick else (1024, 8192):
        rows += _contrastive(device, ceilings, count, quick)
    return rows


def problem(
    lanes: int, width: int, classes: int, count: int, device: torch.device
) -> tuple[AdapterState, Tensor, Tensor, Tensor]:
    """Adapters at PyTorch's start, features near their class's text, labels, unit text."""
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


def _lane_steps(device: torch.device, ceilings: dict, quick: bool) -> list[Row]:
    lanes = 4 if device.type == "cpu" else 1200
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
        state = AdapterState(*(w.clone() for w in adapters))
        adapter_steps(
            state, features, labels, text, rows, settings, logit_scale=SCALE, backend=backend
        )
        return state

    truth = eager.train(
        AdapterState(*(w.double() for w in one)), features.double(), labels, text.double(),
        batches, SCALE,
    )  # fmt: skip
    plain_error = _distance(plain(False), truth)
    cases: dict[str, Callable] = {
        "torch eager, Adam": lambda: plain(False),
        "torch eager, Adam(fused=True)": lambda: plain(True),
    }
    errors = {"torch eager, Adam": plain_error}
    for backend in BACKENDS[device.type]:
        found = AdapterState(*(w[0] for w in ours(backend)))
        errors[backend] = _checked(f"adapter_step {backend}", _distance(found, truth), plain_error)
        cases[backend] = lambda backend=backend: ours(backend)
    done = {name: steps * (1 if name.startswith("torch eager") else lanes) for name in cases}
    # 5 products of B x D x D; Adam reads and writes p, m, v of 2 D (D + 1) numbers
    flops = 5 * 2 * batch * width * width
    moved = 6 * 4 * 2 * width * (width + 1)
    seconds = take_turns(cases, repeats=3 if quick else 15, device=device)
    return _rows(
        "lane-step", f"B {batch}, D {width}, C {classes}, {lanes} lanes", "lane-step", seconds,
        done, "torch eager, Adam", errors, plain_error, flops=flops, moved=moved, ceilings=ceilings,
        bound="gemm" if device.type == "cpu" else "copy",
    )  # fmt: skip


def _top1(device: torch.device, ceilings: dict, quick: bool) -> list[Row]:
    lanes, width, classes, count = 4, 512, 7, 4096
    adapters, features, _, text = problem(lanes, width, classes, count, device)
    rows = [torch.arange(count, device=device)] * lanes
    ones = [AdapterState(*(w[a] for w in adapters)) for a in range(lanes)]
    truth = eager.top1(AdapterState(*(w.double() for w in ones[0])), features.double(),
                       text.double())  # fmt: skip

    def plain() -> list[Tensor]:
        with torch.no_grad():
            return [eager.top1(one, features, text) for one in ones]

    cases: dict[str, Callable] = {"torch eager": plain}
    plain_error = float((plain()[0] != truth).float().mean())
    errors = {"torch eager": plain_error}
    for backend in BACKENDS[device.type]:

        def ours(backend: str = backend) -> list[Tensor]:
            return adapter_top1(adapters, features, text, rows, backend=backend)

        wrong = float((ours()[0] != truth).float().mean())
        errors[backend] = _checked(f"adapter_top1 {backend}", wrong, plain_error + 1 / count)
        cases[backend] = ours
    seconds = take_turns(cases, repeats=3 if quick else 15, device=device)
    flops = 2 * width * (2 * width + classes)
    return _rows(
        "top1", f"N {count}, D {width}, C {classes}, {lanes} adapters", "row", seconds,
        dict.fromkeys(cases, count * lanes), "torch eager", errors, plain_error, flops=flops,
        moved=None, ceilings=ceilings, bound="gemm",
    )  # fmt: skip


def _contrastive(device: torch.device, ceilings: dict, count: int, quick: bool) -> list[Row]:
    width = 512
    draw = torch.Generator().manual_seed(2)
    image = normalize(torch.randn(count, width, generator=draw), dim=1)
    # Cosines of 0.15 with the right text and at most that with a wrong one: nothing saturates.
    noise = torch.randn(count, width, generator=draw) / width**0.5
    text = normalize(0.15 * image + noise, dim=1)
    pair = image.to(device), text.to(device)

    def both(loss: Callable, dtype: torch.dtype = torch.float32) -> AdapterState:
        x, y = (v.detach().to(dtype, copy=True).requires_grad_() for v in pair)
        scale = torch.tensor(SCALE, dtype=dtype, device=device, requires_grad=True)
        loss(x, y, scale).backward()
        return x.grad, y.grad

    plain_gradients = both(eager.contrastive)
    truth = both(eager.contrastive, torch.float64)
    plain_error = _distance(plain_gradients, truth)
    del plain_gradients
    cases: dict[str, Callable] = {"torch eager": lambda: both(eager.contrastive)}
    errors, peaks = {"torch eager": plain_error}, {}
    for backend in BACKENDS[device.type]:

        def ours(backend: str = backend) -> object:
            return both(lambda x, y, s: contrastive(x, y, s, backend=backend))

        name = f"contrastive {backend}, N {count}"
        errors[backend] = _checked(name, _distance(ours(), truth), plain_error)
        cases[backend] = ours
    del truth
    for name, call in cases.items():
        peaks[name] = peak_extra_bytes(call, device)
    seconds = take_turns(cases, repeats=3 if quick else 7, device=device)
    return _rows(
        "contrastive", f"N {count}, D {width}, fp32", "loss+backward", seconds,
        dict.fromkeys(cases, 1), "torch eager", errors, plain_error,
        flops=6 * count * count * width, moved=None, ceilings=ceilings, bound="gemm", peaks=peaks,
    )  # fmt: skip


def _rows(
    benchmark: str, shape: str, unit: str, seconds: dict[str, list[float]], done: dict[str, int],
    baseline: str, errors: dict[str, float], plain_error: float, *, flops: float,
    moved: float | None, ceilings: dict[str, float], bound: str, peaks: dict | None = None,
) -> list[Row]:  # fmt: skip
    """One row a case; flops and bytes are what the work needs, whatever a case really does."""
    each = {name: [s / done[name] for s in values] for name, values in seconds.items()}
    middle = {name: quantiles(values)["p50"] for name, values in each.items()}
    found = []
    for name, values in each.items():
        speed = flops / middle[name]
        traffic = moved / middle[name] if moved else None
        top = ceilings["gemm_flops_per_second" if bound == "gemm" else "copy_bytes_per_second"]
        found.append(
            Row(
                benchmark, name, shape, unit, **quantiles(values), samples=len(values),
                times_baseline=middle[baseline] / middle[name], flops_per_second=speed,
                bytes_per_second=traffic,
                of_ceiling=(speed if bound == "gemm" else traffic) / top,
                peak_extra_bytes=(peaks or {}).get(name), error=errors.get(name),
                plain_error=plain_error,
            )
        )  # fmt: skip
    return found


def _distance(found: tuple, truth: tuple) -> float:
    """The 99th percentile of the absolute difference, the largest over the arrays.

    Not the largest difference: Adam divides a gradient by its own size, so an element whose
    gradient is near 0 is off by up to lr in any float32 code, and which one that is is chance.
    """
    pairs = zip(found, truth, strict=True)
    gaps = [(f.double() - t.double()).abs().flatten() for f, t in pairs]
    return max(float(gap.kthvalue(math.ceil(0.99 * len(gap))).values) for gap in gaps)


def _checked(name: str, error: float, plain_error: float) -> float:
    if not error <= 2 * plain_error + 1e-12:
        raise Wrong(
            f"{name}: its error against float64 is {error:.2e}, plain float32 torch's is "
            f"{plain_error:.2e}; wrong code is not timed"
        )
    return error
