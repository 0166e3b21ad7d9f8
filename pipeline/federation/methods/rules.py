"""Rules that make one server's adapter from its clients': mean, median, trimmed mean, Krum."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 1_000
"""How many times most others' mean step a client's may be; docs/reliability.md has honest ones."""


def mean(clients: Tensor, shares: Sequence[float]) -> Tensor:
    """sum_k share_k * client_k, float32, in client order: the bits of aggregate.py.

    clients  (K, ..., P) float32
    shares   K numbers of sum 1 (see `shares_of`)
    returns  (..., P) float32
    Raises ValueError for shares that do not fit. Source: FedAvg, arXiv:1602.05629.
    """
    if len(shares) != len(clients) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"mean: {len(clients)} clients, {len(shares)} shares of sum {sum(shares)}")
    total = torch.zeros_like(clients[0])
    for client, share in zip(clients, shares, strict=True):
        total.add_(client, alpha=float(share))
    return total


def shares_of(weights: Sequence[float]) -> tuple[float, ...]:
    """weight_k / sum of weights: of those clients that report in a round."""
    total = math.fsum(weights)
    if not total > 0:
        raise ValueError(f"weights must be at least 0 and one above 0; got {tuple(weights)}")
    return tuple(weight / total for weight in weights)


def median(clients: Tensor) -> Tensor:
    """The median of each coordinate, of an even K the mean of the middle two; unweighted.

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
    Raises ValueError for another trim. Source: Yin et al., arXiv:1803.01498.
    """
    if not 0 <= trim < 0.5:
        raise ValueError(f"trimmed_mean: trim must be at least 0 and under 0.5; got {trim}")
    return trimmed(clients, trimmed_of(_some(clients), trim))


def trimmed_of(count: int, trim: float) -> int:
    """How many of `count` clients trim cuts at each end: int(trim * count)."""
    return int(round(trim * count, 9))  # 0.29 * 100 is 28.999999999999996


def trimmed(clients: Tensor, cut: int) -> Tensor:
    """The mean of each coordinate without its `cut` least and `cut` greatest; (K, P) -> (P,)."""
    return clients.sort(dim=0).values[cut : len(clients) - cut].mean(dim=0)


def krum(clients: Tensor, shares: Sequence[float], byzantine: int, keep: int = 1) -> Tensor:
    """The mean of the `keep` clients of least Krum score; Krum for keep 1, else Multi-Krum.

    clients    (K, P) float32
    shares     K weights of the mean, taken to sum 1 over the kept
    byzantine  f, how many clients may be hostile
    keep       how many clients are averaged, at most K
    returns    (P,) float32
    The guarantee of the paper needs K >= 2 f + 3; the caller checks that where it plans.
    Raises ValueError for a keep or byzantine that cannot be.
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
    near = max(1, len(clients) - byzantine - 2)
    # Differences first: |x|^2 + |y|^2 - 2 xy in float32 loses all digits once clients are alike.
    gaps = [(clients - one).square().sum(dim=1, dtype=torch.float64) for one in clients]
    # Column 0 is the distance to itself, 0; alone, a client scores 0.
    return torch.stack(gaps).sort(dim=1).values[:, 1 : near + 1].sum(dim=1)


def unsound(
    clients: Tensor,
    start: Tensor,
    steps: Sequence[int] | None = None,
    *,
    by_itself: bool = False,
) -> dict[int, str]:
    """Which clients to leave out of a round, and why; the round goes on with the others.

    clients  (K, P) float32, as received
    start    (K, P) or (P,) float32, what they started from
    steps    K counts of local steps, lest many rows be taken for a long update; None: alike
    by_itself  do not measure a client by the others (see outsized)
    returns  {position in clients: reason}, empty when all are sound
    """
    if not len(clients):
        return {}
    lengths = update_lengths(clients, start)
    found = {}
    for k in (~lengths.isfinite()).nonzero()[:, 0].tolist():
        if wrong := int((~clients[k].isfinite()).sum()):
            found[k] = f"{wrong:,} of its {clients.shape[1]:,} numbers are not finite"
            lengths[k] = 0  # no measure for the others
        else:  # the square left float32
            exact = clients[k].double() - start.expand_as(clients)[k].double()
            lengths[k] = torch.linalg.vector_norm(exact)
    if by_itself:
        return found
    paces = lengths / torch.tensor(steps or [1], dtype=lengths.dtype, device=lengths.device)
    for k in outsized(paces).nonzero()[:, 0].tolist():
        usual = paces[paces > 0].median()
        found[k] = (
            f"its update is {float(lengths[k]):.4g} long, {float(paces[k] / usual):.3g} times the "
            f"median a step; up to {MOST:,} times most others' is taken"
        )
    return dict(sorted(found.items()))


def update_lengths(clients: Tensor, start: Tensor) -> Tensor:
    """|client_k - start_k| summed in float32; (K, P), (K, P) or (P,) -> (K,) float64.

    Not finite where a number is not, or its square is none; nothing waits for the device.
    """
    # A dot product a client takes 0.1 ms of 525,312 numbers, a sum over dim 1 three times that.
    rows = start.expand_as(clients)
    updates = (client - row for client, row in zip(clients, rows, strict=True))
    return torch.stack([torch.dot(one, one) for one in updates]).double().sqrt()


def outsized(lengths: Tensor) -> Tensor:
    """Which updates are over 1,000 times as long as those of more than half of the others.

    lengths  (..., K) of updates, or of their mean step; a 0 is no measure for the others
    returns  (..., K) bool; nothing waits for the device
    """
    moved = lengths > 0
    shorter = moved[..., None, :] & (MOST * lengths[..., None, :] < lengths[..., :, None])
    others = moved.sum(dim=-1, keepdim=True) - 1
    return moved & (2 * shorter.sum(dim=-1) > others)


def _some(clients: Tensor) -> int:
    if clients.ndim != 2 or not len(clients):
        raise ValueError(f"clients must be (K, P) with K at least 1; got {tuple(clients.shape)}")
    return len(clients)
