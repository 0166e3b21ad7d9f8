"""The adapters there are: where one sits, how its numbers lie in a row, and what it computes.

Letters: L lanes, B batch, D width, C classes, P numbers of one adapter. x' is x at length 1.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kernels.adapter import AdapterState

REDUCTION = 4  # CLIP-Adapter's bottleneck is D / 4 wide
RATIO = 0.2  # the share of CLIP-Adapter's answer that is new; both: arXiv:2110.04544, section 4.1
CLASSIFIERS = ("cosine", "classifier")
"""Heads in the place of the text features: they answer with the classes they were trained on."""

Named = dict[str, Tensor]
"""An adapter's numbers by name, each with the leading axes of the rows they were cut from."""


@dataclass(frozen=True)
class Kind:
    """What all adapters of one call have in common."""

    mode: str
    head: str
    width: int
    classes: int
    rank: int = 8
    whitened: bool = False
    """Head classifier trains on features that are whitened: they are not put to length 1."""

    @property
    def released(self) -> bool:
        """Whether this is the released FedCLIP adapter, which has fused kernels."""
        return (self.mode, self.head) == ("FedAtImg", "attention")


def shapes(kind: Kind) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each part of an adapter, in the order in which they lie in a row.

    The adapter on the images comes first; the names of the one on the text begin with "text_".
    """
    own = _shapes(kind)
    on_images = own if kind.mode != "FedAtTxt" else {}
    on_text = own if kind.mode != "FedAtImg" else {}
    return {**on_images, **{f"text_{name}": shape for name, shape in on_text.items()}}


def size(kind: Kind) -> int:
    """P, the numbers of one adapter."""
    return sum(math.prod(shape) for shape in shapes(kind).values())


def named(kind: Kind, rows: Tensor) -> Named:
    """Views of rows (..., P) by name, in the shapes of `shapes` behind the leading axes."""
    parts = shapes(kind)
    cut = rows.split([math.prod(shape) for shape in parts.values()], dim=-1)
    return {
        name: part.unflatten(-1, shape) if len(shape) > 1 else part
        for (name, shape), part in zip(parts.items(), cut, strict=True)
    }


def as_rows(kind: Kind, parts: Named) -> Tensor:
    """The inverse of `named`: (..., P) float32; parts may hold others besides.

    Raises ValueError for a part that is missing or of another shape.
    """
    found = []
    for name, shape in shapes(kind).items():
        part = parts.get(name)
        if part is None or tuple(part.shape)[-len(shape) :] != shape:
            got = "nothing" if part is None else tuple(part.shape)
            raise ValueError(f"head {kind.head} needs {name} of shape {shape}; got {got}")
        found.append(part.to(torch.float32).flatten(part.ndim - len(shape)))
    return torch.cat(found, dim=-1)


def attention_state(kind: Kind, rows: Tensor) -> AdapterState:
    """Views of rows (L, P) as the fused kernels of the released adapter take them."""
    return AdapterState(**named(kind, rows))


def first_row(kind: Kind, start: str, seed: int, text: Tensor) -> Tensor:
    """Where training starts: (P,) float32.

    Every part is uniform in +-1/sqrt(fan in), PyTorch's default for Linear, drawn in the order of
    `shapes` from numpy's RandomState(seed), whose stream never changes. Instead of that,
    low-rank's b is 0, cosine's and classifier's w the text (C, D) at length 1 and classifier's b
    0; and with start "identity" answers begin exactly at zero-shot CLIP's: attention's w2 and b2
    are 0, linear's w is the identity matrix and its b 0.

    Raises ValueError for "identity" with clip-adapter: its outer ReLU passes no gradient at 0.
    """
    if start == "identity" and kind.head == "clip-adapter":
        raise ValueError(
            "start identity: clip-adapter ends in a ReLU, which passes no gradient at 0, so it "
            "would never train; take start default, or head low-rank"
        )
    draw = np.random.RandomState(seed)
    parts: Named = {}
    for name, shape in shapes(kind).items():
        own = name.removeprefix("text_")
        bound = _fan_in(kind, own) ** -0.5
        drawn = torch.from_numpy(draw.uniform(-bound, bound, shape).astype(np.float32))
        match kind.head, own, start:
            case ("low-rank", "b", _) | ("attention", "w2" | "b2", "identity"):
                drawn.zero_()
            case ("linear", "b", "identity"):
                drawn.zero_()
            case ("linear", "w", "identity"):
                drawn.copy_(torch.eye(kind.width))
            case ("classifier", "b", _):
                drawn.zero_()
            case ("cosine" | "classifier", "w", _):
                drawn.copy_(normalize(text.cpu().float(), dim=1))
        parts[name] = drawn
    return as_rows(kind, parts)


def unit_images(kind: Kind, parts: Named, x: Tensor) -> Tensor:
    """What images become: raw features x (L, B, D) -> (L, B, D), rows of length 1.

    For head classifier (x', 1), (L, B, D + 1), or (x, 1) where kind.whitened.
    """
    if kind.head == "classifier":
        x = x if kind.whitened else normalize(x, dim=-1)
        return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)
    if kind.mode == "FedAtTxt":
        return normalize(x, dim=-1)
    return normalize(_apply(kind.head, parts, x), dim=-1)


def unit_texts(kind: Kind, parts: Named, text: Tensor, classes: Tensor) -> Tensor:
    """What class prompts become: classes (L, K) of text (C, D) raw -> (L, K, D), length 1.

    For head classifier (w, b), (L, K, D + 1), of any length: its logits are s (<x', w_c> + b_c).
    """
    if kind.mode == "FedAtImg":
        return normalize(text, dim=1)[classes]
    own = {n.removeprefix("text_"): p for n, p in parts.items() if n.startswith("text_")}
    if kind.head in CLASSIFIERS:
        lane = torch.arange(len(classes), device=classes.device)[:, None]
        weight = own["w"][lane, classes]
        if kind.head == "cosine":
            return normalize(weight, dim=-1)
        return torch.cat([weight, own["b"][lane, classes][..., None]], dim=-1)
    return normalize(_apply(kind.head, own, text[classes]), dim=-1)


def _shapes(kind: Kind) -> dict[str, tuple[int, ...]]:
    d, hidden = kind.width, max(1, kind.width // REDUCTION)
    by_head: dict[str, dict[str, tuple[int, ...]]] = {
        "attention": {"w1": (d, d), "b1": (d,), "w2": (d, d), "b2": (d,)},
        "clip-adapter": {"w1": (hidden, d), "w2": (d, hidden)},
        "linear": {"w": (d, d), "b": (d,)},
        "low-rank": {"a": (kind.rank, d), "b": (d, kind.rank)},
        "cosine": {"w": (kind.classes, d)},
        "classifier": {"w": (kind.classes, d), "b": (kind.classes,)},
    }
    return by_head[kind.head]


def _fan_in(kind: Kind, name: str) -> int:
    shape = _shapes(kind)[name]
    return shape[1] if len(shape) == 2 else kind.width


def _apply(head: str, parts: Named, x: Tensor) -> Tensor:
    """What a head makes of rows x (L, B, D), not normalised.

    attention     exp(s - max s) * x with s = W2 tanh(W1 x + b1) + b2: the softmax's denominator is
                  one number a row, which normalising divides out
    clip-adapter  0.2 relu(W2 relu(W1 x')) + 0.8 x'
    linear        W x' + b
    low-rank      x' + B A x'
    """
    if head == "attention":
        hidden = torch.baddbmm(parts["b1"][:, None], x, parts["w1"].mT).tanh()
        scores = torch.baddbmm(parts["b2"][:, None], hidden, parts["w2"].mT)
        return (scores - scores.detach().amax(dim=-1, keepdim=True)).exp() * x
    x = normalize(x, dim=-1)
    if head == "clip-adapter":
        new = torch.bmm(torch.bmm(x, parts["w1"].mT).relu(), parts["w2"].mT).relu()
        return RATIO * new + (1 - RATIO) * x
    if head == "linear":
        return torch.baddbmm(parts["b"][:, None], x, parts["w"].mT)
    return x + torch.bmm(torch.bmm(x, parts["a"].mT), parts["b"].mT)
