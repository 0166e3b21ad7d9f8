"""The symmetric softmax-contrastive loss of N image-text pairs, as a function for autograd.

from kernels.contrastive import contrastive
loss = contrastive(normalize(image, dim=1), normalize(text, dim=1), logit_scale.exp())
loss.backward()
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.backends import load

PRECISIONS = ("exact", "fast")
KEPT = 2**30
"""Bytes of logits kept on a CPU between forward and backward, at most: those of 16,384 pairs, whose
gradients take 6.7 s of CPU with them and 9.9 without, where torch.compile's take 9.5."""


def contrastive(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    *,
    precision: str = "exact",
    backend: str = "auto",
    memory: int = KEPT,
) -> Tensor:
    """CLIP's loss of N pairs, differentiable by image, text and logit_scale.

        Z = logit_scale * image @ text.T                                     (N, N)
        loss = (cross_entropy(Z, arange(N)) + cross_entropy(Z.T, arange(N))) / 2

    image, text  (N, D) float32, bfloat16, float16 or float64, one device and dtype. Rows are taken
                 as they are: CLIP makes them of length 1 first
    logit_scale  the multiplier (not its logarithm): a number or a tensor of one. A tensor on the
                 images' GPU is never read by the CPU, so that training steps can be captured as
                 CUDA graphs: if it is not finite the loss is NaN, at 0 its own gradient is NaN
    precision    "exact": products as exact as float32's. "fast": operands rounded to bfloat16,
                 products summed and logits kept in float32; on a CPU it is the same as "exact",
                 as nothing there is faster
    backend      "auto" or a name of kernels/backends.py; a named one is never swapped
    memory       bytes: backend "numba" keeps the N x N logits for the backward pass where they fit,
                 and makes them again where they do not: a third more products, the same bytes
    returns      () float32; float64 for float64 inputs, which backend "torch" alone takes

    Gradients have the dtype of their inputs and are the same bytes each time; there are no second
    derivatives. Backend "triton" never holds an N x N matrix; "numba" one up to `memory` bytes.
    Raises ValueError for arguments that do not fit each other, BackendUnavailable for a named
    backend that cannot run here.
    Source: arXiv:2103.00020, figure 3.
    """
    if image.ndim != 2 or image.shape != text.shape or not image.numel():
        raise ValueError(
            "contrastive: image and text must be (N, D) and of one shape, N and D at least 1; got "
            f"{tuple(image.shape)} and {tuple(text.shape)}"
        )
    if image.dtype != text.dtype or image.device != text.device:
        raise ValueError(
            f"contrastive: image is {image.dtype} on {image.device}, text is {text.dtype} on "
            f"{text.device}; give both one dtype and one device"
        )
    if not image.is_floating_point() or precision not in PRECISIONS:
        raise ValueError(
            f"contrastive: got dtype {image.dtype} and precision {precision!r}; needs floating "
            f"numbers and one of {', '.join(PRECISIONS)}"
        )
    scale = torch.as_tensor(logit_scale)
    if scale.numel() != 1:
        raise ValueError(f"contrastive: logit_scale has {scale.numel()} values; give one")
    loss: Tensor = _Contrastive.apply(  # type: ignore[no-untyped-call]  # torch gives apply no types
        image, text, scale, precision, backend, memory if torch.is_grad_enabled() else 0
    )
    return loss


class _Contrastive(torch.autograd.Function):
    """The backend's forward and backward; what forward returns behind the loss is kept for it."""

    @staticmethod
    def forward(
        context: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        precision: str,
        backend: str,
        memory: int,
    ) -> Tensor:
        """The loss; saves the log-sum-exps of rows and of columns, and logits that fit memory."""
        context.module = load("contrastive", backend, image.device)
        context.precision = precision
        context.factor = factor = _factor(scale, image)
        if isinstance(factor, float) and not math.isfinite(factor):
            raise ValueError(f"contrastive: logit_scale is {factor}; needs a finite number")
        loss: Tensor
        loss, *kept = context.module.forward(image, text, factor, precision, memory)
        context.save_for_backward(image, text, scale, *kept)
        return loss

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by image, text and scale."""
        image, text, scale, *kept = context.saved_tensors
        factor, module = context.factor, context.module
        d_image, d_text = module.backward(image, text, factor, *kept, context.precision)
        of_loss = upstream if upstream.is_cuda else float(upstream)  # what a GPU holds is not read
        by_scale = None
        if context.needs_input_grad[2]:
            if isinstance(factor, float) and not factor:
                raise ValueError("contrastive: no gradient by a logit_scale of 0; start it above 0")
            # sum_ij G_ij Z_ij / scale = sum_i <image_i, d_image_i> / scale: that is all of it.
            found = getattr(module, "inner", _inner)(image, d_image) / factor * of_loss
            by_scale = (
                torch.full_like(scale, found) if isinstance(found, float)
                else found.to(scale).view_as(scale)
            )  # fmt: skip
        if upstream.is_cuda or of_loss != 1:
            d_image.mul_(of_loss)
            d_text.mul_(of_loss)
        if image.dtype != d_image.dtype:
            d_image, d_text = d_image.to(image.dtype), d_text.to(text.dtype)
        return d_image, d_text, by_scale, None, None, None


def _inner(image: Tensor, d_image: Tensor) -> Tensor:
    inner: Tensor = torch.linalg.vecdot(image.to(d_image.dtype), d_image)
    return inner.sum()


def _factor(scale: Tensor, image: Tensor) -> Tensor | float:
    """The number; on the images' GPU a tensor (), since reading it would wait for the device."""
    if scale.device.type == "cpu" or scale.device != image.device:
        return float(scale)
    return scale.detach().reshape(())
