"""Adapters in plain torch: their layout within a row, initial weights, and what they compute.

Letters: L lanes, B batch, D width, C classes, P numbers per adapter. x' is x scaled to unit length.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kernels.adapter import AdapterState
from kernels.heads import HEADS
from kernels.heads.head import Head, Named


@dataclass(frozen=True)
class Kind:
    """What all adapters in one call share."""

    mode: str
    head: str
    width: int
    classes: int
    rank: int = 8
    whitened: bool = False
    """Whether a classifier with bias trains on whitened features, not scaled to unit length."""

    @property
    def does(self) -> Head:
        """The description of its head."""
        return HEADS[self.head]

    @property
    def released(self) -> bool:
        """Whether this is the released FedCLIP adapter, which has fused kernels."""
        return self.mode == "FedAtImg" and self.does.fused


def shapes(kind: Kind) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each part of an adapter, in their order within a row.

    The image adapter comes first; names of the text adapter's parts start with "text_".
    """
    own = kind.does.shapes(kind.width, kind.classes, kind.rank)
    on_images = own if kind.mode != "FedAtTxt" else {}
    on_text = own if kind.mode != "FedAtImg" else {}
    return {**on_images, **{f"text_{name}": shape for name, shape in on_text.items()}}


def size(kind: Kind) -> int:
    """P, the number of values in one adapter."""
    return sum(math.prod(shape) for shape in shapes(kind).values())


def named(kind: Kind, rows: Tensor) -> Named:
    """Views of rows (..., P) by name, of the leading axes followed by the shapes of `shapes`."""
    parts = shapes(kind)
    cut = rows.split([math.prod(shape) for shape in parts.values()], dim=-1)
    return {
        name: part.unflatten(-1, shape) if len(shape) > 1 else part
        for (name, shape), part in zip(parts.items(), cut, strict=True)
    }


def as_rows(kind: Kind, parts: Named) -> Tensor:
    """The inverse of `named`: (..., P) float32; other keys in parts are ignored.

    Raises ValueError for a part that is missing or has the wrong shape.
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
    """Views of rows (L, P) in the form the released adapter's fused kernels take."""
    return AdapterState(**named(kind, rows))


def first_row(kind: Kind, start: str, seed: int, text: Tensor) -> Tensor:
    """The initial adapter: (P,) float32.

    Every part is drawn uniformly from +-1/sqrt(fan in), PyTorch's default for Linear, in the order
    of `shapes`, from numpy's RandomState(seed), whose stream never changes; the head's `start`
    turns that into initial values. With start "identity", predictions start exactly at zero-shot
    CLIP's.

    Raises ValueError for a mode or start that the head does not support.
    """
    if why := kind.does.refuse(kind.mode, start):
        raise ValueError(why)
    draw = np.random.RandomState(seed)
    unit_text = normalize(text.cpu().float(), dim=1)
    parts: Named = {}
    for name, shape in shapes(kind).items():
        bound = (shape[1] if len(shape) == 2 else kind.width) ** -0.5
        drawn = torch.from_numpy(draw.uniform(-bound, bound, shape).astype(np.float32))
        parts[name] = kind.does.start(name.removeprefix("text_"), start, drawn, unit_text)
    return as_rows(kind, parts)


def unit_images(kind: Kind, parts: Named, x: Tensor) -> Tensor:
    """Adapted image features: raw x (L, B, D) -> (L, B, D), rows of unit length.

    For a classifier with bias: (x', 1), (L, B, D + 1), or (x, 1) if kind.whitened.
    """
    if _biased(kind):
        x = x if kind.whitened else normalize(x, dim=-1)
        return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)
    if kind.mode == "FedAtTxt":
        return normalize(x, dim=-1)
    return normalize(_apply(kind.does, parts, x), dim=-1)


def unit_texts(kind: Kind, parts: Named, text: Tensor, classes: Tensor) -> Tensor:
    """Adapted text features of classes (L, K) from raw text (C, D) -> (L, K, D), of unit length.

    For a classifier with bias: (w, b), (L, K, D + 1), of any length.
    """
    if kind.mode == "FedAtImg":
        return normalize(text, dim=1)[classes]
    own = {n.removeprefix("text_"): p for n, p in parts.items() if n.startswith("text_")}
    if kind.does.classifier:
        lane = torch.arange(len(classes), device=classes.device)[:, None]
        weight = own["w"][lane, classes]
        if not _biased(kind):
            return normalize(weight, dim=-1)
        return torch.cat([weight, own["b"][lane, classes][..., None]], dim=-1)
    return normalize(_apply(kind.does, own, text[classes]), dim=-1)


def _biased(kind: Kind) -> bool:
    return kind.does.classifier and any(name.endswith("b") for name in shapes(kind))


def _apply(head: Head, parts: Named, x: Tensor) -> Tensor:
    """The head's output for raw rows x (L, B, D); not normalized."""
    assert head.apply is not None  # a classifier has no rows to change
    return head.apply(parts, x if head.raw else normalize(x, dim=-1))
