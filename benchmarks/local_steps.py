"""Training steps of every head, each backend against plain torch, checked against float64 first."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import compare
from benchmarks.kernels import SCALE, problem
from benchmarks.rows import Row
from kernels.heads.plain import Kind, first_row, shapes
from kernels.local import Moments, Settings, Work, local_steps
from kernels.local.plain import losses_of
from pipeline.machine import threads

WIDTH, BATCH, STEPS = 512, 32, 20
WORKS = (
    Work(Kind("FedAtImg", "attention", WIDTH, 7), "class"),
    Work(Kind("FedAtBoth", "attention", WIDTH, 7), "contrastive"),
    Work(Kind("FedAtTxt", "cosine", WIDTH, 196), "class"),
    Work(Kind("FedAtImg", "low-rank", WIDTH, 7, rank=8), "class"),
    Work(Kind("FedAtImg", "linear", WIDTH, 7), "class"),
    Work(Kind("FedAtImg", "clip-adapter", WIDTH, 7), "class"),
)
ADAM = {"lr": 5e-5, "weight_decay": 0.2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6,
        "momentum": 0.0, "mu": 0.0}  # fmt: skip


def run(
    device: torch.device, ceilings: dict[str, float], quick: bool
) -> Iterator[Row | compare.Fault]:
    """All rows of `bench local`; on a CPU each thread trains one lane."""
    for work in WORKS:
        yield from compare.guarded(
            "local-step", str(work), lambda work=work: _rows(work, device, ceilings, quick)
        )


def _rows(
    work: Work, device: torch.device, ceilings: dict[str, float], quick: bool
) -> list[Row | compare.Fault]:
    lanes = 4 if device.type == "cpu" else 96
    kind = work.kind
    _, features, labels, text = problem(1, WIDTH, kind.classes, 2000, device)
    adapters = torch.stack(
        [first_row(kind, "default", lane, text.cpu()) for lane in range(lanes)]
    ).to(device)
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(2000, (STEPS, lanes, BATCH), generator=draw, dtype=torch.int32)
    given = features, labels, text
    errors, plain_error = _errors(work, adapters, *given, rows[:1], device)

    def train(backend: str) -> None:
        with threads(device, WIDTH, backend):
            local_steps(work, adapters.clone(), *given, normalize(text, dim=1), rows,
                        _settings(lanes), logit_scale=SCALE, backend=backend)  # fmt: skip

    cases = {
        name: compare.Case(
            lambda name=name: train(name), units=STEPS * lanes, error=error, ours=True
        )
        for name, error in errors.items()
    }
    shape = f"{kind.mode}, {kind.head}, {work.loss}, B {BATCH}, D {WIDTH}, C {kind.classes}"
    described = compare.Work("local-step", f"{shape}, {lanes} lanes", "lane-step", _flops(work))
    return compare.compare(described, cases, plain_error, ceilings, 3 if quick else 11, device)


def _flops(work: Work) -> int:
    """Flops of a step's products: per matrix one forward, two backward (the first: one); logits."""
    kind = work.kind
    columns = kind.classes if work.loss == "class" else min(BATCH, kind.classes)
    sides = {"FedAtImg": [BATCH], "FedAtTxt": [columns], "FedAtBoth": [BATCH, columns]}[kind.mode]
    own = [m for n, m in shapes(kind).items() if n.startswith("text_") == (kind.mode == "FedAtTxt")]
    first, *rest = [math.prod(shape) for shape in own if len(shape) > 1]
    head = 0 if kind.does.classifier else 2 * first + 3 * sum(rest)
    return 2 * (head * sum(sides) + (1 + len(sides)) * BATCH * columns * WIDTH)


def _errors(
    work: Work, adapters: Tensor, features: Tensor, labels: Tensor, text: Tensor, rows: Tensor,
    device: torch.device,
) -> tuple[dict[str, float], float]:  # fmt: skip
    """The gradient's root mean square error for each backend and for plain float32 torch.

    After one step of SGD, the momentum buffer is the gradient.
    """

    def differentiated(dtype: torch.dtype) -> Tensor:
        weights = adapters.to(dtype, copy=True).requires_grad_()
        found = losses_of(work, weights, features.to(dtype), labels, text.to(dtype),
                          rows[0].long().to(device), SCALE)  # fmt: skip
        return torch.autograd.grad(found.sum(), weights)[0].double()

    truth = differentiated(torch.float64)

    def error(gradient: Tensor) -> float:
        return float((gradient - truth).square().mean().sqrt())

    plain_error, errors = error(differentiated(torch.float32)), {}
    sgd = Work(work.kind, work.loss, "sgd")
    for backend in ("torch", "numba") if device.type == "cpu" else ("torch",):
        zeros = torch.zeros_like(adapters)
        moments = Moments(zeros, zeros.clone(), torch.zeros(len(adapters), dtype=torch.int64))
        local_steps(sgd, adapters.clone(), features, labels, text, normalize(text, dim=1), rows,
                    _settings(len(adapters), weight_decay=0.0), logit_scale=SCALE,
                    moments=moments, backend=backend)  # fmt: skip
        errors[backend] = error(moments.first.double())
    return errors, plain_error


def _settings(lanes: int, **changed: float) -> Settings:
    values = ADAM | changed
    return Settings(*(torch.full((lanes,), values[n], dtype=torch.float64)
                      for n in Settings._fields))  # fmt: skip
