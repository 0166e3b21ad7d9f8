"""Central differential privacy of clients: clipped updates, Gaussian noise, and what they cost."""

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError

STEPS = 10_000  # of a discretised privacy loss, up to the epsilon of Renyi accounting
_STREAM = 40  # separates the noise from other draws of the same seed


def clipped(clients: Tensor, server: Tensor, clip: float) -> Tensor:
    """server + (client_k - server) * min(1, clip / |client_k - server|), (K, P) float32.

    A client whose update is no longer than clip is returned unchanged, bit for bit.
    """
    updates = clients - server
    lengths = torch.linalg.vector_norm(updates, dim=1, dtype=torch.float64)[:, None]
    shorter = server + updates * (clip / lengths.clamp(min=clip)).float()
    return torch.where(lengths <= clip, clients, shorter)


def clipped_updates(clients: Tensor, server: Tensor, clip: float) -> Tensor:
    """(client_k - server) * min(1, clip / |client_k - server|).

    clients  (K, P) float32, finite; server (P,) float32
    returns  (K, P) float32, rows of length clip at most, up to rounding
    Source: McMahan et al., arXiv:1710.06963, flat clipping.
    """
    updates = clients - server
    lengths = torch.linalg.vector_norm(updates, dim=1, dtype=torch.float64)
    shorter: Tensor = updates * (clip / lengths.clamp(min=clip)).float()[:, None]
    return shorter


def private_mean(
    clients: Tensor,
    server: Tensor,
    *,
    clip: float,
    noise: float,
    cohort_size: float,
    key: Sequence[int],
) -> Tensor:
    """server + (sum_k clipped update_k + noise * clip * N(0, I)) / cohort_size.

    clients      (K, P) float32 of those that report, possibly none: (0, P)
    server       (P,) float32
    noise        the noise multiplier z: standard deviation over clip, of the sum
    cohort_size  expected clients in a round, client_fraction * N: it must not depend on who reports
    key          whole numbers (seed, round, server) that fix the noise
    returns      (P,) float32, used like the mean of the clients
    Weights have no effect: uniform weighting is what bounds one client's influence by clip. The
    noise is for simulations: whoever knows the seed can subtract it. Raises ValueError for invalid
    settings. Source: McMahan et al., arXiv:1710.06963.
    """
    if not (clip > 0 and math.isfinite(clip) and noise >= 0 and cohort_size > 0):
        raise ValueError(
            f"private_mean: clip and cohort_size must be above 0 and noise at least 0; got "
            f"{clip}, {cohort_size} and {noise}"
        )
    total = torch.zeros_like(server)
    for update in clipped_updates(clients, server, clip):  # in client order, like the mean
        total += update
    if noise:
        # 5 ms for 525,312 numbers; RandomState, whose stream never changes, takes 22.
        draw = np.random.default_rng([*key, _STREAM])
        drawn = draw.standard_normal(len(server), dtype=np.float32)
        total += noise * clip * torch.from_numpy(drawn).to(server.device)
    return server + total / cohort_size


def epsilon(noise: float, client_fraction: float, rounds: int, delta: float) -> float:
    """The epsilon at `delta` of `rounds` rounds of private_mean, for adding or removing one client.

    Each client is sampled independently with probability client_fraction (cohort's poisson=True).
    With all clients in every round it is exact: the Gaussians compose to one of noise /
    sqrt(rounds) (Balle and Wang, arXiv:1805.06530). With sampling it is the smaller of two upper
    bounds: the privacy loss distribution, discretised pessimistically (arXiv:2207.04380), and Renyi
    differential privacy (arXiv:1908.10530). It covers updates only, see not_covered.

    Infinite without noise. Raises ConfigError without dp-accounting, or for invalid settings.
    """
    if not (noise >= 0 and 0 < client_fraction <= 1 and rounds >= 0 and 0 < delta < 1):
        raise ConfigError(
            "epsilon needs noise at least 0, client_fraction above 0 and up to 1, rounds at "
            f"least 0 and delta between 0 and 1; got {noise}, {client_fraction}, {rounds}, {delta}"
        )
    try:
        import dp_accounting
        from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
        from dp_accounting.pld import PLDAccountant
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        raise ConfigError(
            "epsilon needs the package dp-accounting, which is not installed: "
            "pip install -r requirements-dp.txt"
        ) from None
    if not rounds:
        return 0.0
    if not noise:
        return math.inf
    if client_fraction == 1:
        return float(get_epsilon_gaussian(noise / math.sqrt(rounds), delta))
    gaussian = dp_accounting.GaussianDpEvent(noise)
    event = dp_accounting.PoissonSampledDpEvent(client_fraction, gaussian)
    talk = logging.getLogger("absl")
    level = talk.level
    talk.setLevel(logging.ERROR)  # it warns of each order that it safely leaves out
    try:
        bound = float(RdpAccountant().compose(event, rounds).get_epsilon(delta))
        # Steps proportional to the result: 0.1 s to 3 s for any settings, and an epsilon
        # within 1 % where rounds are up to 200 (tests/federation/test_privacy.py).
        step = max(bound / STEPS, 1e-4)
        loss = PLDAccountant(value_discretization_interval=step).compose(event, rounds)
        return min(bound, float(loss.get_epsilon(delta)))
    finally:
        talk.setLevel(level)


def not_covered(choose: str, *, sums_of: str = "") -> str:
    """The published figures of a run that its epsilon does not cover; choose: the setting.

    sums_of  "row" or "client": sums were released once (closed-form), not updates; the unit whose
             presence is hidden
    """
    if sums_of:
        return (
            f"for one {sums_of} more or less; it covers the sums only, not what validation rows "
            "choose, the results, nor several runs or a sweep's trials on the same rows"
        )
    by = choose if choose in ("accuracy", "loss") else None
    chosen = f"the choice of the round by {by} on private validation rows, " if by else ""
    return (
        f"it covers the clients' updates only, not {chosen}the train losses and accuracies in "
        "rounds.jsonl, the results, nor several runs or a sweep's trials on the same rows"
    )
