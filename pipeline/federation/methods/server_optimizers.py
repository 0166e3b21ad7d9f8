"""Server optimizers: what a server does with the mean of its clients, round after round."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pipeline.federation.methods.method import Memory, Method, Way

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.settings import RunConfig


class ServerState(NamedTuple):
    """What an optimizer keeps between rounds, shaped as the server: (P,), or (S, P) for many."""

    momentum: Tensor  # float32; m, or FedAvgM's v
    second: Tensor  # float32; v of the adaptive ones


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
    second = state.second - (1 - beta2) * square * (state.second - square).sign()
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


Rule = Callable[["RunConfig", "Tensor", "Tensor", ServerState], tuple["Tensor", ServerState]]
"""(settings, server, mean, state) -> the new server and state."""


def _method(name: str, about: str, rule: Rule, *settings: str, second: bool = True) -> Method:
    """A method whose server steps by `rule`; second: whether it remembers a second moment too."""

    def step(
        config: RunConfig, server: Tensor, combined: Tensor, memory: Memory
    ) -> tuple[Tensor, Memory]:
        state = ServerState(memory["momentum"], memory.get("second", memory["momentum"]))
        adapter, after = rule(config, server, combined, state)
        return adapter, {name: getattr(after, name) for name in memory}

    first = {"momentum": lambda config: 0.0}
    if second:  # the least that Reddi et al. allow
        first["second"] = lambda config: config.tau**2
    uses: dict[str, Way] = {name: {} for name in ("server_lr", *settings)}
    return Method(name, about, step=step, memory=first, settings=uses, private=True)


METHODS = (
    _method(
        "fedavgm",
        "FedAvg with momentum on the server.",
        lambda c, x, mean, kept: fedavgm(x, mean, kept, c.server_lr, c.server_momentum),
        "server_momentum",
        second=False,
    ),
    _method(
        "fedadam",
        "Adam on the server.",
        lambda c, x, mean, kept: fedadam(
            x, mean, kept, c.server_lr, c.server_beta1, c.server_beta2, c.tau
        ),
        *("server_beta1", "server_beta2", "tau"),
    ),
    _method(
        "fedyogi",
        "Yogi on the server.",
        lambda c, x, mean, kept: fedyogi(
            x, mean, kept, c.server_lr, c.server_beta1, c.server_beta2, c.tau
        ),
        *("server_beta1", "server_beta2", "tau"),
    ),
    _method(
        "fedadagrad",
        "Adagrad on the server.",
        lambda c, x, mean, kept: fedadagrad(x, mean, kept, c.server_lr, c.server_beta1, c.tau),
        *("server_beta1", "tau"),
    ),
)
