"""Training steps to compare: problems of any shape, and how exact a backend must be."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from kernels.adapter import AdamSettings, AdapterState
from kernels.backends import BACKENDS as BY_DEVICE
from kernels.step import adapter_steps
from tests.naive import steps as naive

BACKENDS = BY_DEVICE["cpu"]  # with triton where its interpreter runs: tests/test_triton_interpreter
SHAPES = [  # lanes, steps, batch, width, classes
    (1, 1, 2, 8, 1),
    (2, 2, 21, 64, 7),
    (3, 3, 32, 33, 65),
    (2, 2, 5, 48, 345),
]


def draw(lanes, steps, batch, width, classes, *, seed=0, rows=200):
    """Adapters, features, labels, unit text and ragged rows; some classes are never drawn."""
    rng = np.random.default_rng(seed)
    bound = width**-0.5

    def uniform(*shape):
        return torch.from_numpy(rng.uniform(-bound, bound, (lanes, *shape)).astype(np.float32))

    adapters = AdapterState(
        uniform(width, width), uniform(width), uniform(width, width), uniform(width)
    )
    features = torch.from_numpy(
        (rng.normal(size=(rows, width)) * 10 / width**0.5).astype(np.float32)
    )
    labels = torch.from_numpy(rng.integers(0, max(1, classes - classes // 3), rows))
    text = normalize(torch.from_numpy(rng.normal(size=(classes, width)).astype(np.float32)), dim=1)
    table = torch.full((steps, lanes, batch), -1, dtype=torch.int32)
    for lane in range(lanes):
        for step in range(steps - lane % 2 if steps > 1 else steps):
            last = step == steps - 1 - lane % 2
            size = max(min(2, batch), batch - 3 * lane) if last else batch
            table[step, lane, :size] = torch.from_numpy(rng.integers(0, rows, size))
    order = (table[:, :, 0] >= 0).sum(dim=0).argsort(descending=True, stable=True)
    return adapters, features, labels, text, table[:, order]


def on(device, adapters, *others):
    """The same on a device: adapters and tensors."""
    return AdapterState(*(w.to(device) for w in adapters)), *(v.to(device) for v in others)


def settings(lanes):
    """Each lane another optimizer."""

    def values(start, step):
        return torch.tensor([start + step * lane for lane in range(lanes)], dtype=torch.float64)

    return AdamSettings(
        lr=values(1e-3, 5e-4),
        weight_decay=values(0.2, -0.05),
        beta1=values(0.9, -0.1),
        beta2=values(0.98, 0.005),
        eps=values(1e-6, 1e-6),
    )


def batches_of(rows, lane):
    return [part[part >= 0].numpy() for part in rows[:, lane] if part[0] >= 0]


def plain_torch(adapters, lane, batches, features, labels, text, options, scale):
    """What the released loop does: autograd, B x B logits, torch.optim.Adam."""
    weights = [w[lane].clone().requires_grad_() for w in adapters]
    lr, decay, beta1, beta2, eps = (float(v[lane]) for v in options)
    adam = torch.optim.Adam(weights, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    for rows in batches:
        x, t = features[rows], text[labels[rows]]
        w1, b1, w2, b2 = weights
        scores = torch.tanh(x @ w1.T + b1) @ w2.T + b2
        logits = scale * normalize(scores.softmax(dim=1) * x, dim=1) @ t.T
        here = torch.arange(len(x), device=x.device)
        loss = (cross_entropy(logits, here) + cross_entropy(logits.T, here)) / 2
        adam.zero_grad()
        loss.backward()
        adam.step()
    return [w.detach().cpu().numpy() for w in weights]


def assert_as_near(mine, theirs, truth, path):
    """Errors at most twice `theirs`, and a thousandth of `path`, lr by steps; lists of arrays.

    This holds for 99.9 % of the elements together. Adam divides a gradient by its own size, so one
    that is near 0 turns any rounding into a part of lr: the largest error is chance, and it may be
    a tenth of `path`. A wrong gradient moves its element by more than that.
    """
    errors, budgets = (
        np.concatenate([abs(a - b).ravel() for a, b in zip(found, truth, strict=True)])
        for found in (mine, theirs)
    )
    for share, room in ((0.999, 1e-3), (1.0, 0.1)):
        error, budget = (np.quantile(v, share) for v in (errors, budgets))
        assert error <= 2 * budget + room * path + np.finfo(np.float32).eps


def assert_as_exact_as_plain_torch(shape, scale, backend, device="cpu"):
    *drawn, rows = draw(*shape)
    adapters, features, labels, text = on(device, *drawn)
    options = settings(shape[0])
    ours = AdapterState(*(w.clone() for w in adapters))
    losses = adapter_steps(
        ours, features, labels, text, rows, options, logit_scale=scale, backend=backend
    )
    for lane in range(shape[0]):
        batches = batches_of(rows, lane)
        lr, decay, beta1, beta2, eps = (float(v[lane]) for v in options)
        start = [w[lane].cpu().numpy().astype(float) for w in adapters]
        truth, truth_losses = naive.train(
            start, batches, features.cpu().numpy().astype(float), labels.cpu().numpy(),
            text.cpu().numpy().astype(float), scale, lr, decay, beta1, beta2, eps,
        )  # fmt: skip
        plain = plain_torch(adapters, lane, batches, features, labels, text, options, scale)
        mine = [w[lane].cpu().numpy() for w in ours]
        assert_as_near(mine, plain, truth, lr * len(batches))
        found = losses[: len(batches), lane].cpu()
        np.testing.assert_allclose(found, truth_losses, rtol=2e-4, atol=2e-5)
        assert not losses[len(batches) :, lane].any()
