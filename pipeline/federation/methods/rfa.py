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

SMOOTHING = 1e-6  # the paper's nu: closer clients count as this far away, so none divides by 0
ITERATIONS = 32
"""The paper does a few, as each is a round trip to clients; here they cost the server 32 means."""


def geometric_median(clients: Tensor, shares: Sequence[float]) -> Tensor:
    """argmin_v sum_k share_k |v - client_k|, by ITERATIONS smoothed Weiszfeld steps.

        v <- sum_k b_k client_k / sum_k b_k,    b_k = share_k / max(SMOOTHING, |v - client_k|)

    clients  (K, P) float32, K at least 1; distances are of differences, summed in float64
    shares   K numbers of sum 1
    returns  (P,) float32
    They start at the median of each coordinate: from the mean, which one client carries away,
    they would need log(how far) steps to come back.
    Raises ValueError for shares that do not fit.
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
        yield f"rfa outvotes a client where there are 3 or more; here are {clients}"


METHODS = (
    Method(
        "rfa",
        about="Geometric median of the clients' adapters.",
        combine=lambda config, heard: geometric_median(heard.clients, heard.weights),
        settings={"weighting": {}},
        doubts=_doubts,
    ),
)
