"""Gradients of every head and loss in float32 against float64's, and hostile inputs."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from kernels.heads.plain import Kind, first_row, size
from kernels.local import Moments, Pull, Settings, Work, local_steps
from kernels.local.plain import losses_of
from kernels.names import LOSSES
from tests.kernels.test_local_steps import KINDS, RUNS, settings

LANES = 3
EPS = float(np.finfo(np.float32).eps)
CASES = [  # width, classes, batch, scale, draws: the error of one is that of a length or two
    (5, 1, 2, 14.3, 6),
    (5, 40, 21, 1.0, 6),
    (33, 4, 32, 100.0, 24),
    (500, 40, 21, 1.0, 1),
    (512, 196, 32, 100.0, 1),
]
ONE_STEP = settings(LANES, lr=1.0, weight_decay=0.0, momentum=0.0)


def draw(mode, head, width, classes, batch, *, rows=200, seed=0):
    """Adapters near training's start, features near their class's text, all float32.

    Lane 1's batch is ragged, lane 2's of one class.
    """
    rng = np.random.default_rng(seed)
    kind = Kind(mode, head, width, classes, rank=3)
    text = torch.from_numpy(rng.normal(size=(classes, width)).astype(np.float32))
    start = first_row(kind, "default", 1, text)
    noise = rng.normal(size=(LANES, size(kind))).astype(np.float32) * 0.3 / width**0.5
    features = torch.from_numpy(rng.normal(size=(rows, width)) * 10 / width**0.5)
    labels = torch.from_numpy(rng.integers(0, classes, rows))
    asked = torch.from_numpy(rng.integers(0, rows, (1, LANES, batch)).astype(np.int32))
    asked[0, 1, max(2, batch - 3) :] = -1
    labels[asked[0, 2].long()] = classes - 1
    features += 3 * normalize(text, dim=1)[labels]  # else no answer is sure, and no gradient small
    return kind, start + torch.from_numpy(noise), features.float(), labels, text, asked


def one_step(work, adapters, features, labels, text, rows, scale, backend):
    """The losses and the gradients: an SGD's momentum buffer after one step is the gradient."""
    zeros = torch.zeros_like(adapters)
    moments = Moments(zeros, zeros.clone(), torch.zeros(len(adapters), dtype=torch.int64))
    moved = adapters.clone()
    losses = local_steps(
        work, moved, features, labels, text, normalize(text, dim=1), rows,
        Settings(*(v[: len(adapters)] for v in ONE_STEP)), logit_scale=scale, moments=moments,
        backend=backend,
    )  # fmt: skip
    assert torch.equal(moved, adapters - moments.first)
    return losses[0].double(), moments.first.double()


def differentiated(work, adapters, features, labels, text, rows, scale, dtype):
    weights = adapters.to(dtype, copy=True).requires_grad_()
    losses = losses_of(
        work, weights, features.to(dtype), labels, text.to(dtype), rows[0].long(), scale
    )
    (gradients,) = torch.autograd.grad(losses.sum(), weights)
    return losses.detach().double(), gradients.double()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("mode", "head"), KINDS)
def test_gradients_are_as_exact_as_torch_s_own(mode, head, loss, one_thread):
    backends = [backend for *kind, backend in RUNS if kind == [mode, head]]
    for width, classes, batch, scale, draws in CASES:
        squares = {name: np.zeros(2) for name in ("plain", *backends)}
        for seed in range(draws):
            kind, *given, rows = draw(mode, head, width, classes, batch, seed=seed)
            work = Work(kind, loss, "sgd")
            truth = differentiated(work, *given, rows, scale, torch.float64)
            found = {"plain": differentiated(work, *given, rows, scale, torch.float32)}
            for backend in backends:
                found[backend] = one_step(work, *given, rows, scale, backend)
            for name, pair in found.items():
                gaps = (mine - true for mine, true in zip(pair, truth, strict=True))
                squares[name] += [gap.square().mean().item() for gap in gaps]
        errors = {name: np.sqrt(sums / draws) for name, sums in squares.items()}
        # Where plain torch is exact by chance (one class: its logits cancel bit for bit). A
        # probability may be off by eps, and the gradient is scale / B times that.
        slack = EPS * np.array([scale, 0.1 * scale / batch])
        for backend in backends:
            budget = 2 * errors["plain"] + slack
            assert (errors[backend] <= budget).all(), (backend, width, errors[backend], budget)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("mode", "head", "backend"), RUNS)
def test_zero_features_stay_finite_and_nan_stays_where_it_is(mode, head, loss, backend, one_thread):
    kind, adapters, features, labels, text, rows = draw(mode, head, 33, 4, 21)
    features[rows[0, 0].long()] = 0
    features[rows[0, 1, :4].long()] = 0
    runs = []
    for poison in (False, True):
        moved = adapters.clone()
        if poison:
            moved[1] = float("nan")
        losses = local_steps(
            Work(kind, loss), moved, features, labels, text, normalize(text, dim=1),
            rows.repeat(3, 1, 1), settings(LANES), logit_scale=100.0, backend=backend,
            pull=Pull(shift=torch.zeros_like(moved)),
        )  # fmt: skip
        runs.append((losses, moved))
    (losses, moved), (poisoned_losses, poisoned) = runs
    assert losses.isfinite().all() and moved.isfinite().all()
    assert poisoned_losses[:, 1].isnan().all() and poisoned[1].isnan().all()
    others = [0, 2]
    assert torch.equal(poisoned[others], moved[others])
    assert torch.equal(poisoned_losses[:, others], losses[:, others])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("mode", "head"), [run[:2] for run in RUNS if run[2] == "numba"])
def test_nothing_is_read_before_it_is_written(mode, head, loss, monkeypatch):
    kind, adapters, features, labels, text, rows = draw(mode, head, 33, 40, 21)
    found = []
    for poison in (0, 1e30, float("nan")):
        empty = lambda shape, dtype, value=poison: np.full(  # noqa: E731
            shape, value if np.dtype(dtype).kind == "f" else 0, dtype
        )
        monkeypatch.setattr(np, "empty", empty)
        moved = adapters.clone()
        local_steps(
            Work(kind, loss), moved, features, labels, text, normalize(text, dim=1), rows,
            settings(LANES), logit_scale=14.3, backend="numba",
            pull=Pull(shift=torch.zeros_like(moved)),
        )  # fmt: skip
        monkeypatch.undo()
        found.append(moved)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
