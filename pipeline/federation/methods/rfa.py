"""Robust federated aggregation: the geometric median of clients' adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.federation.methods.mean import mean, shares_of
from pipeline.federation.methods.method import Method
from pipeline.federation.methods.robust import median

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.settings import RunConfig

SMOOTHING = 1e-6  # the paper's nu: the least distance that counts, to avoid dividing by 0
ITERATIONS = 32
"""The paper does a few, as each needs a round trip to clients; here each costs the server a
mean."""


def geometric_median(clients: Tensor, shares: Sequence[float]) -> Tensor:
    """argmin_v sum_k share_k |v - client_k|, by ITERATIONS smoothed Weiszfeld steps.

        v <- sum_k b_k client_k / sum_k b_k,    b_k = share_k / max(SMOOTHING, |v - client_k|)

    clients  (K, P) float32, K at least 1; distances are of differences, summed in float64
    shares   K numbers of sum 1
    returns  (P,) float32
    Starts at the median of each coordinate: from the mean, which one client can move arbitrarily
    far, it would need log(distance) steps to return. Raises ValueError for invalid shares.
    Source: Pillutla, Kakade and Harchaoui, arXiv:1912.13445, the smoothed Weiszfeld algorithm.
    """
    centre = median(clients)
    for _ in range(ITERATIONS):
        gaps = [float((client - centre).double().norm()) for client in clients]
        pulls = [s / max(SMOOTHING, gap) for s, gap in zip(shares, gaps, strict=True)]
        centre = mean(clients, shares_of(pulls))
    return centre


def _doubts(config: RunConfig, clients: int) -> Iterator[str]:
    if clients < 3:
        yield f"rfa tolerates a malicious client only among 3 or more; there are {clients}"


METHODS = (
    Method(
        "rfa",
        about="Geometric median of the clients' adapters.",
        combine=lambda config, heard: geometric_median(heard.clients, heard.weights),
        settings={"weighting": {}},
        doubts=_doubts,
    ),
)
