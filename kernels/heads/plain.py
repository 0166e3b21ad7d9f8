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
from kernels.heads import HEADS
from kernels.heads.head import Head, Named


@dataclass(frozen=True)
class Kind:
    """What all adapters of one call have in common."""

    mode: str
    head: str
    width: int
    classes: int
    rank: int = 8
    whitened: bool = False
    """A classifier with bias trains on features that are whitened: not put to length 1."""

    @property
    def does(self) -> Head:
        """What its head computes."""
        return HEADS[self.head]

    @property
    def released(self) -> bool:
        """Whether this is the released FedCLIP adapter, which has fused kernels."""
        return self.mode == "FedAtImg" and self.does.fused


def shapes(kind: Kind) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each part of an adapter, in the order in which they lie in a row.

    The adapter on the images comes first; the names of the one on the text begin with "text_".
    """
    own = kind.does.shapes(kind.width, kind.classes, kind.rank)
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

    Every part is drawn uniform in +-1/sqrt(fan in), PyTorch's default for Linear, in the order of
    `shapes` from numpy's RandomState(seed), whose stream never changes; the head's `start` makes
    its first numbers of that. With start "identity" answers begin exactly at zero-shot CLIP's.

    Raises ValueError for a mode or a start that the head cannot go with.
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
    """What images become: raw features x (L, B, D) -> (L, B, D), rows of length 1.

    For a classifier with bias (x', 1), (L, B, D + 1), or (x, 1) where kind.whitened.
    """
    if _biased(kind):
        x = x if kind.whitened else normalize(x, dim=-1)
        return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)
    if kind.mode == "FedAtTxt":
        return normalize(x, dim=-1)
    return normalize(_apply(kind.does, parts, x), dim=-1)


def unit_texts(kind: Kind, parts: Named, text: Tensor, classes: Tensor) -> Tensor:
    """What class prompts become: classes (L, K) of text (C, D) raw -> (L, K, D), length 1.

    For a classifier with bias (w, b), (L, K, D + 1), of any length.
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
    """What a head makes of rows x (L, B, D), raw; not normalised."""
    assert head.apply is not None  # a classifier has no rows to change
    return head.apply(parts, x if head.raw else normalize(x, dim=-1))
