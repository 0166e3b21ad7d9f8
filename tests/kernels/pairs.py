"""Pairs of features to compare by the contrastive loss, and how exact a backend must be."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from kernels.contrastive import contrastive

COUNTS = [1, 2, 31, 33, 127, 129, 1000]


def pairs(count, width, *, seed=0, likeness=0.5):
    """Unit rows of N images and texts; texts resemble their images."""
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.normal(size=(count, width)))
    noise = torch.from_numpy(rng.normal(size=(count, width)))
    return normalize(image, dim=1), normalize(likeness * image + noise, dim=1)


def plain(image, text, scale, dtype):
    """Loss and gradients as anybody would write them, by autograd."""
    x, y = (v.detach().clone().to(dtype).requires_grad_() for v in (image, text))
    s = torch.tensor(scale, dtype=dtype, requires_grad=True)
    logits = s * x @ y.T
    here = torch.arange(len(x), device=x.device)
    loss = (cross_entropy(logits, here) + cross_entropy(logits.T, here)) / 2
    loss.backward()
    return [v.detach().double() for v in (loss, x.grad, y.grad, s.grad)]


def ours(image, text, scale, backend, dtype=torch.float32):
    x, y = (v.detach().clone().to(dtype).requires_grad_() for v in (image, text))
    s = torch.tensor(scale, dtype=dtype, requires_grad=True)
    loss = contrastive(x, y, s, backend=backend)
    loss.backward()
    return [v.detach().double() for v in (loss, x.grad, y.grad, s.grad)]


def assert_as_exact_as_torch(found, plain_float32, truth, scale):
    """At most twice float32 torch's error, and what rounding the logits alone may do."""
    for mine, theirs, true in zip(found, plain_float32, truth, strict=True):
        rounding = 4 * scale * np.finfo(np.float32).eps * max(float(true.abs().max()), 1 / scale)
        assert (mine - true).abs().max() <= 2 * (theirs - true).abs().max() + rounding


def assert_exact(image, text, scale, backend):
    """As assert_as_exact_as_torch, of float64 pairs; returns the truth."""
    truth = plain(image, text, scale, torch.float64)
    found = ours(image, text, scale, backend)
    assert_as_exact_as_torch(found, plain(image, text, scale, torch.float32), truth, scale)
    return truth


def assert_fast_as_exact_as_bfloat16(image, text, scale, backend, truth):
    """At most twice the error of operands and G rounded to bfloat16, all else in float32."""
    x, y = (v.detach().clone().requires_grad_() for v in (image, text))
    contrastive(x, y, scale, precision="fast", backend=backend).backward()
    a, b = (v.bfloat16().float() for v in (image, text))
    logits = scale * a @ b.T
    g = logits.softmax(dim=1) + logits.softmax(dim=0) - 2 * torch.eye(len(a), device=a.device)
    g = (g * (scale / (2 * len(a)))).bfloat16().float()
    for mine, theirs, true in ((x.grad, g @ b, truth[1]), (y.grad, g.T @ a, truth[2])):
        error, budget = ((v.double() - true).abs().max() for v in (mine, theirs))
        assert error <= 2 * budget + torch.finfo(torch.float32).eps
