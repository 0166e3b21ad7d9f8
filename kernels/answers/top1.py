"""What trained adapters predict: the nearest class of each row, logits never stored."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.adapter import AdapterState
from kernels.backends import load


def adapter_top1(
    adapters: AdapterState,
    features: Tensor,
    unit_text: Tensor,
    rows: Sequence[Tensor],
    *,
    backend: str = "auto",
) -> list[Tensor]:
    """argmax_c <normalize(softmax(scores) * x), unit_text[c]> for chosen rows of each adapter.

    Neither the softmax's denominator nor the length changes the argmax, so none is computed:
    argmax_c sum_d exp(scores_d - max scores) x_d unit_text[c, d].

    adapters   A adapters, float32
    features   (N, D) float32, raw as cached
    unit_text  (C, D) float32, rows of length 1
    rows       A tensors (n_a,) int64: the rows for each adapter
    backend    "auto" or a name of kernels/backends.py; a named one is never swapped
    returns    A tensors (n_a,) int64: a class each; the first of equals

    Raises ValueError for arguments that do not fit each other, BackendUnavailable for a named
    backend that cannot run here.
    """
    width = features.shape[1]
    if adapters.w1.shape != (len(rows), width, width) or unit_text.shape[1] != width:
        raise ValueError(
            f"adapter_top1: features are {width} wide and rows are for {len(rows)} adapters; got "
            f"w1 {tuple(adapters.w1.shape)} and unit_text {tuple(unit_text.shape)}"
        )
    asked = [one.to(torch.int64) for one in rows]
    _check(asked, len(features))
    module = load("answers", backend, features.device)
    answers: list[Tensor] = module.adapter_top1(adapters, features, unit_text, asked)
    return answers


def _check(rows: Sequence[Tensor], count: int) -> None:
    """Raises ValueError for rows out of range; waits for their device once."""
    every = torch.cat(list(rows)) if rows else torch.empty(0)
    if not len(every):
        return
    least, most = torch.stack(torch.aminmax(every)).tolist()
    if 0 <= least and most < count:
        return
    for a, asked in enumerate(rows):
        if len(asked) and not (0 <= int(asked.min()) and int(asked.max()) < count):
            raise ValueError(
                f"adapter_top1: rows of adapter {a} reach from {int(asked.min())} to "
                f"{int(asked.max())}; there are {count}"
            )
