"""Client adapters -> server adapter, by the plan's method."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pipeline import server_optimizers, server_rules
from pipeline.config import RunConfig
from pipeline.privacy import private_mean
from pipeline.server_optimizers import ServerState


class Reports(NamedTuple):
    """What one server hears from its clients in a round."""

    clients: Tensor  # (K, P) float32, in client order
    everyone: int  # clients of the server, whether they report or not
    weights: tuple[float, ...]  # of those K; sum 1
    round: int
    stream: int  # names the noise: of the fold, whatever else trains beside it


def aggregate(
    config: RunConfig, server: Tensor, memory: dict[str, Tensor], heard: Reports
) -> tuple[Tensor, dict[str, Tensor]]:
    """One server's next adapter (P,), and the memory of its optimizer.

    memory   "momentum" and "second" (P,) where the method has them
    Everything is float32 and in client order, whatever else trains beside it. Methods and sources:
    docs/methods.md; the plain mean is PersonalizedFL's fedclip/utils/aggregation.py.
    """
    clients, weights = heard.clients, heard.weights
    match config.method:
        case "median":
            return server_rules.median(clients), memory
        case "trimmed-mean":
            return server_rules.trimmed_mean(clients, config.trim), memory
        case "krum":
            return server_rules.krum(clients, weights, config.byzantine), memory
    if config.clip:
        mean = private_mean(
            clients,
            server,
            clip=config.clip,
            noise=config.noise,
            cohort_size=config.client_fraction * heard.everyone,
            key=(config.seed, heard.round, heard.stream),
        )
    else:
        mean = server_rules.mean(clients, weights)
    if "momentum" not in memory:
        return mean, memory
    state = ServerState(memory["momentum"], memory.get("second", memory["momentum"]))
    lr, beta1, beta2 = config.server_lr, config.server_beta1, config.server_beta2
    match config.method:
        case "fedavgm":
            done = server_optimizers.fedavgm(server, mean, state, lr, config.server_momentum)
        case "fedadagrad":
            done = server_optimizers.fedadagrad(server, mean, state, lr, beta1, config.tau)
        case "fedadam":
            done = server_optimizers.fedadam(server, mean, state, lr, beta1, beta2, config.tau)
        case "fedyogi":
            done = server_optimizers.fedyogi(server, mean, state, lr, beta1, beta2, config.tau)
    adapter, after = done
    return adapter, {name: getattr(after, name) for name in memory}


def renormalised(weights: Sequence[float], who: Sequence[int]) -> tuple[float, ...]:
    """The weights of those who report; untouched when all do (1/3 stays 1/3) or nobody does."""
    if len(who) in (0, len(weights)):
        return tuple(weights)
    return server_rules.shares_of([weights[k] for k in who])
