"""The weighted mean of clients' adapters, and the methods that use it alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.federation.methods.method import Method, Reports

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.settings import RunConfig


def mean(clients: Tensor, shares: Sequence[float]) -> Tensor:
    """sum_k share_k * client_k, float32, in client order.

    clients  (K, ..., P) float32
    shares   K numbers of sum 1 (see `shares_of`)
    returns  (..., P) float32
    Raises ValueError for invalid shares. Source: FedAvg, arXiv:1602.05629; the bits are
    PersonalizedFL's fedclip/utils/aggregation.py.
    """
    if len(shares) != len(clients) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"mean: {len(clients)} clients, {len(shares)} shares of sum {sum(shares)}")
    total = clients.new_zeros(clients.shape[1:])
    for client, share in zip(clients, shares, strict=True):
        total.add_(client, alpha=float(share))
    return total


def shares_of(weights: Sequence[float]) -> tuple[float, ...]:
    """weight_k / sum of weights, over the clients that report in a round."""
    total = math.fsum(weights)
    if not total > 0:
        raise ValueError(f"weights must be at least 0 and one above 0; got {tuple(weights)}")
    return tuple(weight / total for weight in weights)


def weighted_mean(config: RunConfig, heard: Reports) -> Tensor:
    """The default rule of methods: `mean` by the clients' weights."""
    return mean(heard.clients, heard.weights)


METHODS = (
    Method("fedavg", about="Average of the clients' adapters.", private=True),
    # Source: FedProx, arXiv:1812.06127.
    Method(
        "fedprox",
        about="FedAvg with a proximal term in the clients' loss.",
        private=True,
        proximal=True,
        settings={"mu": {}},
    ),
)
