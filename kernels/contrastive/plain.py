"""contrastive in plain torch with N x N matrices; read this backend first."""

import torch
from torch import Tensor


def forward(
    image: Tensor, text: Tensor, scale: Tensor | float, precision: str, memory: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (), and the log-sum-exps of Z's rows (N,) and columns (N,)."""
    logits = _product(image, text.mT, precision).mul_(scale)
    by_row, by_column = logits.logsumexp(dim=1), logits.logsumexp(dim=0)
    return (by_row + by_column - 2 * logits.diagonal()).mean() / 2, by_row, by_column


def backward(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    by_row: Tensor,
    by_column: Tensor,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """d loss / d image and d loss / d text, from G = d loss / d Z."""
    logits = _product(image, text.mT, precision).mul_(scale)
    gradient = (logits - by_row[:, None]).exp_()
    gradient += logits.sub_(by_column).exp_()
    gradient.diagonal().sub_(2)
    gradient.mul_(scale / (2 * len(image)))
    return _product(gradient, text, precision), _product(gradient.mT, image, precision)


def _product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """a @ b, accumulated and returned in float32 (float64 for float64 inputs)."""
    if a.dtype == b.dtype == torch.float64:
        return a @ b
    if precision == "fast" and a.is_cuda:
        return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
    return a.float() @ b.float()
