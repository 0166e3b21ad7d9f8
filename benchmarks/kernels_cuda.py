"""contrastive on a GPU against plain torch in three precisions, compiled torch, and other projects.

All run in one process, in turns, and are checked against float64 first. A project that is not
installed is reported on stderr as not measured; nothing is estimated.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import eager
from benchmarks.compare import Case, Fault, Work, compare, distance, guarded
from benchmarks.measure import take_turns
from benchmarks.rows import Row
from kernels.contrastive import contrastive

SCALE = 100.0
WIDTH = 512
COUNTS = (1024, 4096, 8192, 32768)
QUICK = (1024, 4096)
BLOCK = 2048  # rows of the float64 logits computed at a time

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""image, text (N, D) and scale () -> loss ()."""


def run(
    device: torch.device,
    ceilings: dict[str, float],
    quick: bool,
    counts: Sequence[int] = (),
    *,
    others: bool = True,
    side: int = 8192,
) -> Iterator[Row | Fault]:
    """Rows of `bench kernels` measured only on CUDA.

    others  also time torch.compile, which takes a minute to compile, and other projects' losses
    side    size of the square product that gives the ceiling
    """
    ceilings = {**ceilings, "gemm_flops_per_second": _bfloat16_rate(device, quick, side)}
    for count in counts or (QUICK if quick else COUNTS):
        yield from guarded(
            "contrastive", f"N {count}", lambda n=count: _both(n, ceilings, quick, device, others)
        )
        torch.cuda.empty_cache()


def _both(
    count: int, ceilings: dict[str, float], quick: bool, device: torch.device, others: bool
) -> Iterator[Row | Fault]:
    image, text = pairs(count, device)
    exact = truth(image, text)
    for precision, losses in (("fast", _fast(others)), ("exact", _exact(others))):
        yield from _rows(precision, losses, image, text, exact, ceilings, quick)


def pairs(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Unit rows with cosines of 0.15 with the right text and at most that with wrong ones."""
    draw = torch.Generator().manual_seed(2)
    image = normalize(torch.randn(count, WIDTH, generator=draw), dim=1)
    noise = torch.randn(count, WIDTH, generator=draw) / WIDTH**0.5
    return image.to(device), normalize(0.15 * image + noise, dim=1).to(device)


def truth(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Both gradients in float64, by blocks of rows, without an N x N matrix."""
    x, y = image.double(), text.double()
    starts = range(0, len(x), BLOCK)
    by_row = torch.cat([(SCALE * x[s : s + BLOCK] @ y.T).logsumexp(dim=1) for s in starts])
    by_column = torch.cat([(SCALE * y[s : s + BLOCK] @ x.T).logsumexp(dim=1) for s in starts])
    d_x, d_y = torch.empty_like(x), torch.zeros_like(y)
    for s in starts:
        part = slice(s, s + BLOCK)
        z = SCALE * x[part] @ y.T
        g = (z - by_row[part, None]).exp() + (z - by_column).exp()
        g[:, part].diagonal().sub_(2)
        g *= SCALE / (2 * len(x))
        d_x[part] = g @ y
        d_y += g.T @ x[part]
    return d_x, d_y


Losses = dict[str, tuple[Loss, torch.dtype]]


def _fast(others: bool) -> Losses:
    half = torch.bfloat16
    losses: Losses = {"torch eager, bfloat16": (eager.contrastive, half)}
    if others:
        losses["torch.compile, bfloat16"] = torch.compile(eager.contrastive), half
        losses |= {f"{name}, bfloat16": (loss, half) for name, loss in _others()}
    losses["triton, fast"] = (
        lambda x, y, s: contrastive(x, y, s, precision="fast", backend="triton"),
        torch.float32,
    )
    return losses


def _exact(others: bool) -> Losses:
    full = torch.float32
    losses: Losses = {
        "torch eager, float32": (eager.contrastive, full),
        "torch eager, tf32": (eager.contrastive, full),
        "triton, exact": (lambda x, y, s: contrastive(x, y, s, backend="triton"), full),
    }
    if others:
        losses["torch.compile, float32"] = torch.compile(eager.contrastive), full
        losses |= {f"{name}, float32": (loss, full) for name, loss in _others()}
    return losses


def _rows(
    precision: str, losses: Losses, image: Tensor, text: Tensor,
    exact: tuple[Tensor, Tensor], ceilings: dict, quick: bool,
) -> list[Row | Fault]:  # fmt: skip
    """The first loss is the baseline; our error may be at most twice its error."""
    count = len(image)
    cases: dict[str, Case] = {}
    for name, (loss, dtype) in losses.items():

        def both(loss: Loss = loss, dtype: torch.dtype = dtype, name: str = name) -> tuple:
            x, y = (v.to(dtype, copy=True).requires_grad_() for v in (image, text))
            scale = torch.tensor(SCALE, dtype=dtype, device=x.device)
            with _matmul_precision("high" if "tf32" in name else "highest"):
                loss(x, y, scale).backward()
            return x.grad, y.grad

        cases[name] = Case(
            both, 1, lambda both=both: distance(both(), exact), ours=name.startswith("triton")
        )
    first = next(iter(cases))
    plain_error = cases[first].error()
    cases[first] = replace(cases[first], error=plain_error)
    work = Work(
        "contrastive", f"N {count}, D {WIDTH}, {precision}", "loss+backward",
        flops=6 * count * count * WIDTH,
    )  # fmt: skip
    return compare(work, cases, plain_error, ceilings, 3 if quick else 15, image.device)


def _others() -> Iterator[tuple[str, Loss]]:
    """Losses of other projects as released; reports those not installed."""
    for name, module, make in (
        ("OpenCLIP ClipLoss", "open_clip.loss", _open_clip),
        ("Liger, two calls", "liger_kernel.transformers", _liger),
        ("cut-cross-entropy, two calls", "cut_cross_entropy", _cut_cross_entropy),
    ):
        try:
            yield name, make(importlib.import_module(module))
        except ImportError as error:
            print(f"contrastive: {name} not measured: {error}", file=sys.stderr)


def _open_clip(module) -> Loss:
    loss = module.ClipLoss()
    return lambda x, y, s: loss(x, y, s)


def _liger(module) -> Loss:
    # Its arguments are weight, input, target: the other side is the "vocabulary".
    one_way = module.LigerFusedLinearCrossEntropyLoss()
    return lambda x, y, s: (one_way(y, s * x, _places(x)) + one_way(x, s * y, _places(x))) / 2


def _cut_cross_entropy(module) -> Loss:
    one_way = module.linear_cross_entropy
    return lambda x, y, s: (one_way(s * x, y, _places(x)) + one_way(s * y, x, _places(x))) / 2


def _places(x: Tensor) -> Tensor:
    return torch.arange(len(x), device=x.device)


@contextmanager
def _matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _bfloat16_rate(device: torch.device, quick: bool, side: int) -> float:
    """Measured flop/s of a large bfloat16 product; of random numbers, as zeros run faster."""
    a, b = torch.randn(2, side, side, device=device).bfloat16().unbind()
    times = take_turns({"gemm": lambda: a @ b}, repeats=3 if quick else 9, device=device)
    return 2 * side**3 / times["gemm"].quantiles()["p20"]
