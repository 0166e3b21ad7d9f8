"""Server optimizers: what a server does with the mean of its clients, round after round."""

from typing import NamedTuple

import torch
from torch import Tensor


class ServerState(NamedTuple):
    """What an optimizer keeps between rounds, shaped as the server: (P,), or (S, P) for many."""

    momentum: Tensor  # float32; m, or FedAvgM's v
    second: Tensor  # float32; v of the adaptive ones


def first_server_state(server: Tensor, tau: float = 0.0) -> ServerState:
    """Momentum 0 and second moment tau ** 2, the least that Reddi et al. allow."""
    return ServerState(torch.zeros_like(server), torch.full_like(server, tau**2))


def fedavgm(
    server: Tensor, mean: Tensor, state: ServerState, lr: float, momentum: float
) -> tuple[Tensor, ServerState]:
    """v <- momentum v + (mean - server); server <- server + lr v.

    server, mean  (P,) float32, or (S, P) with settings that broadcast
    returns       the new server and state; what was passed in is not changed
    With lr 1 and momentum 0 it is FedAvg up to rounding. Source: Hsu et al., arXiv:1909.06335.
    """
    speed = momentum * state.momentum + (mean - server)
    return server + lr * speed, state._replace(momentum=speed)


def fedadagrad(
    server: Tensor, mean: Tensor, state: ServerState, lr: float, beta1: float, tau: float
) -> tuple[Tensor, ServerState]:
    """v <- v + d^2, with d = mean - server; then as `_adaptive`.

    Source: Reddi et al., arXiv:2003.00295, Algorithm 2.
    """
    second = state.second + (mean - server).square()
    return _adaptive(server, mean, state, second, lr, beta1, tau)


def fedadam(
    server: Tensor,
    mean: Tensor,
    state: ServerState,
    lr: float,
    beta1: float,
    beta2: float,
    tau: float,
) -> tuple[Tensor, ServerState]:
    """v <- beta2 v + (1 - beta2) d^2, with d = mean - server; then as `_adaptive`.

    No bias correction: the paper has none. Source: Reddi et al., arXiv:2003.00295, Algorithm 2.
    """
    second = beta2 * state.second + (1 - beta2) * (mean - server).square()
    return _adaptive(server, mean, state, second, lr, beta1, tau)


def fedyogi(
    server: Tensor,
    mean: Tensor,
    state: ServerState,
    lr: float,
    beta1: float,
    beta2: float,
    tau: float,
) -> tuple[Tensor, ServerState]:
    """v <- v - (1 - beta2) d^2 sign(v - d^2), with d = mean - server; then as `_adaptive`.

    Source: Reddi et al., arXiv:2003.00295, Algorithm 2.
    """
    square = (mean - server).square()
    second = state.second - (1 - beta2) * square * torch.sign(state.second - square)
    return _adaptive(server, mean, state, second, lr, beta1, tau)


def _adaptive(
    server: Tensor,
    mean: Tensor,
    state: ServerState,
    second: Tensor,
    lr: float,
    beta1: float,
    tau: float,
) -> tuple[Tensor, ServerState]:
    """m <- beta1 m + (1 - beta1) (mean - server); server <- server + lr m / (sqrt(v) + tau)."""
    momentum = beta1 * state.momentum + (1 - beta1) * (mean - server)
    return server + lr * momentum / (second.sqrt() + tau), ServerState(momentum, second)
