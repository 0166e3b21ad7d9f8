"""The plain code that kernels are compared with: autograd, B x B logits, torch.optim.Adam."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize

from kernels.adapter import AdapterState


def train(
    adapter: AdapterState,
    features: Tensor,
    labels: Tensor,
    unit_text: Tensor,
    batches: list[Tensor],
    scale: float,
    *,
    fused: bool = False,
    lr: float = 5e-5,
    loss: Callable[..., Tensor] | None = None,
) -> AdapterState:
    """Train one adapter on all batches with the released settings and a fresh Adam; returns it.

    loss  the loss of a batch; None: batch_loss
    """
    weights = [w.detach().clone().requires_grad_() for w in adapter]
    adam = torch.optim.Adam(
        weights, lr=lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=fused or None
    )
    of_batch = loss or batch_loss
    for rows in batches:
        found = of_batch(*weights, features[rows], unit_text[labels[rows]], scale)
        adam.zero_grad()
        found.backward()
        adam.step()
    return AdapterState(*(w.detach() for w in weights))


def batch_loss(
    w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, x: Tensor, text: Tensor, scale: float
) -> Tensor:
    """The released loss of rows x (B, D) and their unit texts (B, D)."""
    gate = linear(torch.tanh(linear(x, w1, b1)), w2, b2).softmax(dim=1)
    return contrastive(normalize(gate * x, dim=1), text, scale)


def contrastive(image: Tensor, text: Tensor, scale: float | Tensor) -> Tensor:
    """The symmetric loss of N pairs, with an N x N matrix."""
    logits = scale * image @ text.T
    target = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def top1(adapter: AdapterState, x: Tensor, unit_text: Tensor) -> Tensor:
    """The class of each row, as the released evaluation computes it."""
    w1, b1, w2, b2 = adapter
    gate = linear(torch.tanh(linear(x, w1, b1)), w2, b2).softmax(dim=1)
    return (normalize(gate * x, dim=1) @ unit_text.T).argmax(dim=1)
