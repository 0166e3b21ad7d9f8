"""The symmetric softmax contrastive loss of N image-text pairs, as an autograd function.

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
"""Most bytes of logits kept on a CPU between forward and backward: enough for 16,384 pairs, whose
gradients take 6.7 s of CPU with them and 9.9 s without; torch.compile takes 9.5 s."""


def contrastive(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor | float,
    *,
    precision: str = "exact",
    backend: str = "auto",
    memory: int = KEPT,
) -> Tensor:
    """CLIP's loss for N pairs, differentiable in image, text and logit_scale.

        Z = logit_scale * image @ text.T                                     (N, N)
        loss = (cross_entropy(Z, arange(N)) + cross_entropy(Z.T, arange(N))) / 2

    image, text  (N, D) float32, bfloat16, float16 or float64, of one device and dtype. Rows are
                 used as given; CLIP normalizes them to unit length first
    logit_scale  the multiplier (not its logarithm): a number or a one-element tensor. A tensor on
                 the images' GPU is never read by the CPU, so training steps can be captured as
                 CUDA graphs: if it is not finite, the loss is NaN; at 0, its own gradient is NaN
    precision    "exact": products as exact as float32's. "fast": operands rounded to bfloat16,
                 products summed and logits kept in float32; on a CPU the same as "exact", since
                 nothing is faster there
    backend      "auto" or a name from kernels/backends.py; a named one is never swapped
    memory       bytes: backend "numba" keeps the N x N logits for the backward pass if they fit,
                 and recomputes them otherwise: a third more products, the same bytes
    returns      () float32; float64 for float64 inputs, which only backend "torch" accepts

    Gradients have the dtype of their inputs and are bitwise reproducible; there are no second
    derivatives. Backend "triton" never holds an N x N matrix; "numba" holds one of up to `memory`
    bytes.
    Raises ValueError for inconsistent arguments, BackendUnavailable if the named backend cannot
    run here.
    Source: arXiv:2103.00020, figure 3.
    """
    if image.ndim != 2 or image.shape != text.shape or not image.numel():
        raise ValueError(
            "contrastive: image and text must be (N, D) of one shape, N and D at least 1; got "
            f"{tuple(image.shape)} and {tuple(text.shape)}"
        )
    if image.dtype != text.dtype or image.device != text.device:
        raise ValueError(
            f"contrastive: image is {image.dtype} on {image.device}, text is {text.dtype} on "
            f"{text.device}; both need one dtype and device"
        )
    if not image.is_floating_point() or precision not in PRECISIONS:
        raise ValueError(
            f"contrastive: got dtype {image.dtype} and precision {precision!r}; needs a "
            f"floating-point dtype and one of {', '.join(PRECISIONS)}"
        )
    scale = torch.as_tensor(logit_scale)
    if scale.numel() != 1:
        raise ValueError(f"contrastive: logit_scale has {scale.numel()} values; needs one")
    loss: Tensor = _Contrastive.apply(  # type: ignore[no-untyped-call]  # torch gives apply no types
        image, text, scale, precision, backend, memory if torch.is_grad_enabled() else 0
    )
    return loss


class _Contrastive(torch.autograd.Function):
    """The backend's forward and backward; what forward returns after the loss is saved."""

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
        """The loss; saves the log-sum-exps of rows and columns, and logits that fit memory."""
        context.module = load("contrastive", backend, image.device)
        context.precision = precision
        context.factor = factor = _factor(scale, image)
        if isinstance(factor, float) and not math.isfinite(factor):
            raise ValueError(f"contrastive: logit_scale is {factor}; it must be finite")
        loss: Tensor
        loss, *kept = context.module.forward(image, text, factor, precision, memory)
        context.save_for_backward(image, text, scale, *kept)
        return loss

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients with respect to image, text and scale."""
        image, text, scale, *kept = context.saved_tensors
        factor, module = context.factor, context.module
        d_image, d_text = module.backward(image, text, factor, *kept, context.precision)
        of_loss = upstream if upstream.is_cuda else float(upstream)  # a value on a GPU is not read
        by_scale = None
        if context.needs_input_grad[2]:
            if isinstance(factor, float) and not factor:
                raise ValueError("contrastive: logit_scale 0 has no gradient; start it above 0")
            # sum_ij G_ij Z_ij / scale = sum_i <image_i, d_image_i> / scale, the whole gradient.
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
    """The number, or a tensor () on the images' GPU, since reading it would synchronize."""
    if scale.device.type == "cpu" or scale.device != image.device:
        return float(scale)
    return scale.detach().reshape(())
