"""Rules that tolerate malicious clients: coordinate-wise median and trimmed mean, and Krum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.federation.methods.mean import mean, shares_of
from pipeline.federation.methods.method import Above, Method

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.settings import RunConfig


def median(clients: Tensor) -> Tensor:
    """The median of each coordinate, for even K the mean of the middle two; unweighted.

    clients  (K, P) float32
    returns  (P,) float32
    Source: Yin et al., arXiv:1803.01498.
    """
    return trimmed(clients, (_some(clients) - 1) // 2)


def trimmed_mean(clients: Tensor, trim: float) -> Tensor:
    """The mean of each coordinate without its int(trim * K) least and greatest; unweighted.

    clients  (K, P) float32
    trim     share of clients cut at each end, 0 <= trim < 0.5
    returns  (P,) float32
    Raises ValueError for an invalid trim. Source: Yin et al., arXiv:1803.01498.
    """
    if not 0 <= trim < 0.5:
        raise ValueError(f"trimmed_mean: trim must be at least 0 and under 0.5; got {trim}")
    return trimmed(clients, trimmed_of(_some(clients), trim))


def trimmed_of(count: int, trim: float) -> int:
    """The number of `count` clients that trim removes at each end: int(trim * count)."""
    return int(round(trim * count, 9))  # 0.29 * 100 is 28.999999999999996


def trimmed(clients: Tensor, cut: int) -> Tensor:
    """The mean of each coordinate without its `cut` least and `cut` greatest; (K, P) -> (P,)."""
    return clients.sort(dim=0).values[cut : len(clients) - cut].mean(dim=0)


def krum(clients: Tensor, shares: Sequence[float], byzantine: int, keep: int = 1) -> Tensor:
    """The mean of the `keep` clients of least Krum score; Krum for keep 1, else Multi-Krum.

    clients    (K, P) float32
    shares     K weights of the mean, taken to sum 1 over the kept
    byzantine  f, the number of clients that may be malicious
    keep       number of clients to average, at most K
    returns    (P,) float32
    The paper's guarantee needs K >= 2 f + 3; otherwise `doubts` warns of it. Raises ValueError for
    an invalid keep or byzantine.
    Source: Blanchard et al., arXiv:1703.02757.
    """
    if not (1 <= keep <= _some(clients) and byzantine >= 0):
        raise ValueError(f"krum: {len(clients)} clients, keep {keep}, byzantine {byzantine}")
    order = krum_scores(clients, byzantine).argsort(stable=True)[:keep].sort().values
    return mean(clients[order], shares_of([shares[k] for k in order.tolist()]))


def krum_scores(clients: Tensor, byzantine: int) -> Tensor:
    """Sum of a client's squared distances to its K - f - 2 nearest others (at least one).

    clients  (K, P) float32
    returns  (K,) float64, on the clients' device
    """
    import torch

    near = max(1, len(clients) - byzantine - 2)
    # Differences first: |x|^2 + |y|^2 - 2 xy in float32 loses all digits if clients are similar.
    gaps = [(clients - one).square().sum(dim=1, dtype=torch.float64) for one in clients]
    # Column 0 is the distance to itself, 0; alone, a client scores 0.
    return torch.stack(gaps).sort(dim=1).values[:, 1 : near + 1].sum(dim=1)


def _trim_doubts(config: RunConfig, clients: int) -> Iterator[str]:
    if not trimmed_of(clients, config.trim):
        yield (
            f"trimmed-mean with trim {config.trim:g} removes none of {clients} clients: it is the "
            f"plain mean; a trim of {1 / max(clients, 1):.3g} or more removes one at each end of 3 "
            "or more"
        )


def _krum_doubts(config: RunConfig, clients: int) -> Iterator[str]:
    byzantine = config.byzantine
    if config.keep > clients:
        yield f"krum: keep {config.keep} of {clients} clients averages all of them"
    if clients < 2 * byzantine + 3:
        yield (
            f"krum's guarantee with byzantine {byzantine} needs {2 * byzantine + 3} clients or "
            f"more; there are {clients}. It selects the client with the nearest neighbour"
        )


def _some(clients: Tensor) -> int:
    if clients.ndim != 2 or not len(clients):
        raise ValueError(f"clients must be (K, P) with K at least 1; got {tuple(clients.shape)}")
    return len(clients)


METHODS = (
    Method(
        "median",
        about="Median of each coordinate.",
        combine=lambda config, heard: median(heard.clients),
    ),
    Method(
        "trimmed-mean",
        about="Mean of each coordinate without its extremes.",
        combine=lambda config, heard: trimmed_mean(heard.clients, config.trim),
        settings={"trim": {}},
        doubts=_trim_doubts,
    ),
    Method(
        "krum",
        about="The client nearest to its neighbours, or the mean of several.",
        combine=lambda config, heard: krum(
            heard.clients, heard.weights, config.byzantine, min(config.keep, len(heard.clients))
        ),
        settings={"byzantine": {}, "keep": {}, "weighting": {"keep": Above(1)}},
        doubts=_krum_doubts,
    ),
)
