"""Predictions of trained adapters of any head, and their confidences."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from kernels.answers.top1 import adapter_top1
from kernels.heads import attention
from kernels.heads.plain import Kind, attention_state, named, unit_images, unit_texts

BLOCK = 2048  # rows at a time: 2048 x 512 float32 is 4 MiB, so temporaries stay in a CPU's L3


def top1(
    kind: Kind,
    adapters: Tensor,
    features: Tensor,
    text: Tensor,
    unit_text: Tensor,
    rows: Sequence[Tensor],
    *,
    backend: str = "auto",
) -> list[Tensor]:
    """argmax_c <u, t_c> for chosen rows of each adapter, u and t as in kernels/heads/plain.py.

    adapters   (A, P) float32, laid out by kernels/heads/plain.py
    features   (N, D) float32, raw;  text (C, D) float32 raw, unit_text the same at length 1
    rows       A tensors (n_a,) int64: the rows for each adapter
    backend    of the released adapter: see adapter_top1; other heads have plain torch
    returns    A tensors (n_a,) int64: a class each; the first of equals
    """
    if kind.released:
        state = attention_state(kind, adapters)
        return adapter_top1(state, features, unit_text, rows, backend=backend)
    return [
        _of_logits(kind, adapters[a], features, text, asked, lambda z, _: z.argmax(dim=1))
        for a, asked in enumerate(rows)
    ]


def confidences(
    kind: Kind, adapter: Tensor, features: Tensor, text: Tensor, rows: Tensor, scale: float
) -> tuple[Tensor, list[float] | None]:
    """Confidences of one adapter (P,) on rows (n,), and how far its gate is from the uniform one.

    returns  max_c softmax(scale * <u, t_c>), (n,) float32, and for each 2 * BLOCK rows the sum of
             their total variations sum_d |gate_d - 1 / D| / 2; None without the released gate
    """
    if not kind.released:
        sure = _of_logits(kind, adapter, features, text, rows, lambda z, _: _surest(z * scale))
        return sure, None
    parts, columns, moved = named(kind, adapter[None]), normalize(text, dim=1), []

    def of_block(here: slice) -> Tensor:
        x = features[rows[here]]
        scores = attention.scores(parts, x[None])[0]
        unit = normalize(attention.gated(scores, x), dim=-1)
        gate = scores.softmax(dim=1)
        moved.append(float((gate - 1 / gate.shape[1]).abs().sum() / 2))
        return by_blocks(len(unit), lambda some: _surest((unit[some] @ columns.mT) * scale))

    return by_blocks(len(rows), of_block, 2 * BLOCK), moved


def _surest(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1).amax(dim=1)


def cross_entropies(
    kind: Kind,
    adapter: Tensor,
    features: Tensor,
    labels: Tensor,
    text: Tensor,
    rows: Tensor,
    scale: float,
) -> Tensor:
    """log sum_c exp(scale <u, t_c>) - scale <u, t_y> of an adapter (P,) on rows (n,): (n,) float32.

    features (N, D) float32 raw, labels (N,) int64, text (C, D) float32 raw; BLOCK rows at a time.
    """
    return _of_logits(
        kind, adapter, features, text, rows,
        lambda z, part: cross_entropy(z * scale, labels[part], reduction="none"),
    )  # fmt: skip


def unit_features(kind: Kind, adapter: Tensor, features: Tensor, rows: Tensor) -> Tensor:
    """The outputs of one adapter (P,) for rows (n,) of features: (n, D) float32 of length 1."""
    parts = named(kind, adapter[None])

    def of_block(here: slice) -> Tensor:  # without the 1 that carries classifier's bias
        return unit_images(kind, parts, features[rows[here]][None])[0, :, : kind.width]

    return by_blocks(len(rows), of_block)


def _of_logits(
    kind: Kind,
    adapter: Tensor,
    features: Tensor,
    text: Tensor,
    rows: Tensor,
    then: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """then(<u, t_c>, rows) of an adapter (P,) for blocks of rows (n,)."""
    parts = named(kind, adapter[None])
    every = torch.arange(len(text), device=text.device)[None]
    columns = unit_texts(kind, parts, text, every)[0]

    def of_block(here: slice) -> Tensor:
        part = rows[here]
        return then(unit_images(kind, parts, features[part][None])[0] @ columns.mT, part)

    return by_blocks(len(rows), of_block)


def by_blocks(count: int, computed: Callable[[slice], Tensor], block: int = BLOCK) -> Tensor:
    """computed(rows) of slices of at most `block` of `count` rows, in turn: (count, ...).

    The result is allocated first: small results between the blocks' temporaries left holes that
    glibc filled with new memory, up to 640 MB at 600,000 rows and 345 classes.
    """
    first = computed(slice(0, min(block, count)))
    if count <= block:
        return first
    found = first.new_empty((count, *first.shape[1:]))
    found[:block] = first
    for start in range(block, count, block):
        here = slice(start, min(start + block, count))
        found[here] = computed(here)
    return found
