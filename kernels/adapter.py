"""The FedCLIP attention adapter's weights, and the settings of the optimizer that trains it."""

from typing import NamedTuple

from torch import Tensor


class AdapterState(NamedTuple):
    """Weights of one adapter, or of several stacked on leading axes.

    scores = W2 tanh(W1 x + b1) + b2, where x is a raw feature of width D.
    """

    w1: Tensor  # (..., D, D) float32
    b1: Tensor  # (..., D) float32
    w2: Tensor  # (..., D, D) float32
    b2: Tensor  # (..., D) float32


class AdamSettings(NamedTuple):
    """Adam with coupled L2, one value per lane; named as in torch.optim.Adam."""

    lr: Tensor  # (L,) float64
    weight_decay: Tensor  # (L,) float64
    beta1: Tensor  # (L,) float64
    beta2: Tensor  # (L,) float64
    eps: Tensor  # (L,) float64
