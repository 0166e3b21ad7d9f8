"""SCAFFOLD's control variates: estimates of the clients' and the server's gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.federation.methods.method import Controls, Method

if TYPE_CHECKING:
    from torch import Tensor


def client_controls(
    controls: Tensor, control: Tensor, clients: Tensor, start: Tensor, steps: Tensor, lr: float
) -> Tensor:
    """c_k - c + (start - client_k) / (steps_k lr): option II, the mean gradient of the round.

    controls  (K, P) float32, c_k before the round, of the clients that report
    control   (P,) float32, the server's c as the clients received it
    clients   (K, P) float32 after their local steps, which followed g - c_k + c
    start     (K, P) or (P,) float32, what they started from: the server's x as they received it
    steps     (K,) int, local steps taken; a client without any keeps its c_k
    lr        the clients' learning rate in this round
    returns   (K, P) float32
    It is a mean gradient for plain SGD only: with Adam or momentum the same expression is in
    units of that optimizer's step. Source: Karimireddy et al., arXiv:1910.06378, Algorithm 1.
    """
    if not lr > 0:
        raise ValueError(f"client_controls: lr must be above 0; got {lr}")
    taken = steps.to(clients.device)[:, None]
    moved = (start - clients) / (taken.clamp(min=1) * lr)
    return (controls - control + moved).where(taken > 0, controls)


def server_control(
    control: Tensor, before: Tensor, after: Tensor, shares: Sequence[float]
) -> Tensor:
    """c + sum_k share_k (c_k after - c_k before), over reporting clients; not changed in place.

    control        (P,) float32
    before, after  (K, P) float32
    shares         K numbers: a client's share among all clients of the server, reporting or not
    With shares 1 / N this is Algorithm 1, line 17 of Karimireddy et al., arXiv:1910.06378. As
    shares stay those of all clients, c stays sum_k share_k c_k whoever reports, and is 0 where the
    gradient of sum_k share_k f_k is.
    """
    if len(before) != len(shares) or sum(shares) > 1 + 1e-6:
        raise ValueError(
            f"server_control: {len(before)} clients report; got {len(shares)} shares of sum "
            f"{sum(shares):g}, at most 1"
        )
    moved = control.new_zeros(control.shape)
    for old, new, share in zip(before, after, shares, strict=True):
        moved.add_(new - old, alpha=float(share))
    return control + moved


METHODS = (
    Method(
        "scaffold",
        about="Control variates correct for the differences between clients.",
        step=lambda config, server, combined, memory: (
            server + config.server_lr * (combined - server),
            memory,
        ),
        controls=Controls(client_controls, server_control),
        sends=("adapter", "control"),
        settings={"server_lr": {}},
        refusals=(
            (
                lambda c: (c.optimizer, c.momentum) != ("sgd", 0),
                "method scaffold corrects plain gradients (its update divides by steps * lr): pass "
                "--optimizer sgd --momentum 0",
            ),
            (
                lambda c: c.lr == 0,
                "method scaffold divides by the lr, which is 0: pass one above 0, such as "
                "--lr 1e-3",
            ),
        ),
    ),
)
