"""The released FedCLIP adapter: softmax(W2 tanh(W1 x + b1) + b2) * x, on raw features x.

Source: arXiv:2302.13485; PersonalizedFL fedclip/nets/models.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.heads.head import Head, Named

if TYPE_CHECKING:
    from torch import Tensor


def apply(parts: Named, x: Tensor) -> Tensor:
    """exp(s - max s) * x, where s = W2 tanh(W1 x + b1) + b2.

    The softmax's denominator is one number per row, and normalization cancels it.
    """
    return gated(scores(parts, x), x)


def scores(parts: Named, x: Tensor) -> Tensor:
    """The scores s of `apply`, for rows x (L, B, D)."""
    hidden = parts["b1"][:, None].baddbmm(x, parts["w1"].mT).tanh()
    return parts["b2"][:, None].baddbmm(hidden, parts["w2"].mT)


def gated(scores: Tensor, x: Tensor) -> Tensor:
    """exp(s - max s) * x."""
    return (scores - scores.detach().amax(dim=-1, keepdim=True)).exp() * x


HEAD = Head(
    "attention",
    about="FedCLIP's adapter: a softmax gate times the feature.",
    shapes=lambda d, classes, rank: {"w1": (d, d), "b1": (d,), "w2": (d, d), "b2": (d,)},
    apply=apply,
    start=lambda part, start, drawn, text: (
        drawn.zero_() if start == "identity" and part in ("w2", "b2") else drawn
    ),
    last=("w2", "b2"),
    raw=True,
    identity=True,
    fused=True,
    numba=0,
)
