"""Server optimizers: what a server does with the mean of its clients, round after round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.federation.methods.method import Memory, Method, Step, Way

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.settings import RunConfig


def fedavgm(
    config: RunConfig, server: Tensor, mean: Tensor, memory: Memory
) -> tuple[Tensor, Memory]:
    """v <- server_momentum v + (mean - server); server <- server + server_lr v.

    server, mean  (P,) float32, or (S, P) for many servers
    memory        "momentum", v above, shaped as the server; of the adaptive methods below also
                  "second"
    returns       the new server and memory; the arguments are not changed
    With server_lr 1 and server_momentum 0 this is FedAvg up to rounding.
    Source: Hsu et al., arXiv:1909.06335.
    """
    speed = config.server_momentum * memory["momentum"] + (mean - server)
    return server + config.server_lr * speed, {"momentum": speed}


def fedadagrad(
    config: RunConfig, server: Tensor, mean: Tensor, memory: Memory
) -> tuple[Tensor, Memory]:
    """v <- v + d^2, with d = mean - server; then as `_adaptive`.

    Source: Reddi et al., arXiv:2003.00295, Algorithm 2.
    """
    return _adaptive(config, server, mean, memory, memory["second"] + (mean - server).square())


def fedadam(
    config: RunConfig, server: Tensor, mean: Tensor, memory: Memory
) -> tuple[Tensor, Memory]:
    """v <- beta2 v + (1 - beta2) d^2, with d = mean - server; then as `_adaptive`.

    No bias correction: the paper has none. Source: Reddi et al., arXiv:2003.00295, Algorithm 2.
    """
    beta2 = config.server_beta2
    second = beta2 * memory["second"] + (1 - beta2) * (mean - server).square()
    return _adaptive(config, server, mean, memory, second)


def fedyogi(
    config: RunConfig, server: Tensor, mean: Tensor, memory: Memory
) -> tuple[Tensor, Memory]:
    """v <- v - (1 - beta2) d^2 sign(v - d^2), with d = mean - server; then as `_adaptive`.

    Source: Reddi et al., arXiv:2003.00295, Algorithm 2.
    """
    square, before = (mean - server).square(), memory["second"]
    second = before - (1 - config.server_beta2) * square * (before - square).sign()
    return _adaptive(config, server, mean, memory, second)


def _adaptive(
    config: RunConfig, server: Tensor, mean: Tensor, memory: Memory, second: Tensor
) -> tuple[Tensor, Memory]:
    """m <- beta1 m + (1 - beta1) (mean - server); server <- server + lr m / (sqrt(v) + tau)."""
    beta1 = config.server_beta1
    momentum = beta1 * memory["momentum"] + (1 - beta1) * (mean - server)
    step = config.server_lr * momentum / (second.sqrt() + config.tau)
    return server + step, {"momentum": momentum, "second": second}


def _method(name: str, about: str, step: Step, *settings: str) -> Method:
    memory = {"momentum": lambda config: 0.0}
    if "tau" in settings:  # adaptive; tau^2 is the least that Reddi et al. allow
        memory["second"] = lambda config: config.tau**2
    uses: dict[str, Way] = {name: {} for name in ("server_lr", *settings)}
    return Method(name, about, step=step, memory=memory, settings=uses, private=True)


METHODS = (
    _method("fedavgm", "FedAvg with momentum on the server.", fedavgm, "server_momentum"),
    _method("fedadam", "Adam on the server.", fedadam, "server_beta1", "server_beta2", "tau"),
    _method("fedyogi", "Yogi on the server.", fedyogi, "server_beta1", "server_beta2", "tau"),
    _method("fedadagrad", "Adagrad on the server.", fedadagrad, "server_beta1", "tau"),
)
