"""The FedCLIP attention adapter's numbers, and the settings of the optimizer that trains it."""

from typing import NamedTuple

from torch import Tensor


class AdapterState(NamedTuple):
    """Weights of one adapter, or of many side by side on leading axes.

    scores = W2 tanh(W1 x + b1) + b2, with x a raw feature of width D.
    """

    w1: Tensor  # (..., D, D) float32
    b1: Tensor  # (..., D) float32
    w2: Tensor  # (..., D, D) float32
    b2: Tensor  # (..., D) float32


class AdamSettings(NamedTuple):
    """Adam with coupled L2, one value a lane; torch.optim.Adam's words."""

    lr: Tensor  # (L,) float64
    weight_decay: Tensor  # (L,) float64
    beta1: Tensor  # (L,) float64
    beta2: Tensor  # (L,) float64
    eps: Tensor  # (L,) float64
