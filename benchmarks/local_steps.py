"""Training steps of every head, each backend beside plain torch, checked against float64 first."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.kernels import SCALE, Wrong, problem
from benchmarks.measure import quantiles, take_turns
from benchmarks.rows import Row
from kernels.backends import BACKENDS
from kernels.heads import Kind, first_row
from kernels.local_steps import Moments, Settings, Work, local_steps
from kernels.local_steps_torch import losses_of

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


def run(device: torch.device, quick: bool) -> list[Row]:
    """All rows of `bench local`; on a CPU each lane has a thread to itself."""
    return [row for work in WORKS for row in _rows(work, device, quick)]


def _rows(work: Work, device: torch.device, quick: bool) -> list[Row]:
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
        local_steps(work, adapters.clone(), *given, normalize(text, dim=1), rows,
                    _settings(lanes), logit_scale=SCALE, backend=backend)  # fmt: skip

    cases = {name: lambda name=name: train(name) for name in errors}
    seconds = take_turns(cases, repeats=3 if quick else 11, device=device)
    each = {name: [s / (STEPS * lanes) for s in taken] for name, taken in seconds.items()}
    middle = quantiles(each["torch"])["p50"]
    shape = (f"{kind.mode}, {kind.head}, {work.loss}, B {BATCH}, D {WIDTH}, C {kind.classes}, "
             f"{lanes} lanes")  # fmt: skip
    return [
        Row(
            "local-step", name, shape, "lane-step", **quantiles(taken), samples=len(taken),
            times_baseline=middle / quantiles(taken)["p50"], error=errors[name],
            plain_error=plain_error,
        )
        for name, taken in each.items()
    ]  # fmt: skip


def _errors(
    work: Work, adapters: Tensor, features: Tensor, labels: Tensor, text: Tensor, rows: Tensor,
    device: torch.device,
) -> tuple[dict[str, float], float]:  # fmt: skip
    """Each backend's root mean square error of the gradient, and that of plain float32 torch.

    Raises Wrong for one that errs more than twice as much. After one step of SGD its momentum
    buffer is the gradient.
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
    for backend in [name for name in BACKENDS[device.type] if name in ("numba", "torch")]:
        zeros = torch.zeros_like(adapters)
        moments = Moments(zeros, zeros.clone(), torch.zeros(len(adapters), dtype=torch.int64))
        local_steps(sgd, adapters.clone(), features, labels, text, normalize(text, dim=1), rows,
                    _settings(len(adapters), weight_decay=0.0), logit_scale=SCALE,
                    moments=moments, backend=backend)  # fmt: skip
        errors[backend] = error(moments.first.double())
        if not errors[backend] <= 2 * plain_error + 1e-12:
            raise Wrong(
                f"local_steps {backend}, {work}: its gradient's error against float64 is "
                f"{errors[backend]:.2e}, plain float32 torch's is {plain_error:.2e}; wrong code is "
                "not timed"
            )
    return errors, plain_error


def _settings(lanes: int, **changed: float) -> Settings:
    values = ADAM | changed
    return Settings(*(torch.full((lanes,), values[n], dtype=torch.float64)
                      for n in Settings._fields))  # fmt: skip
