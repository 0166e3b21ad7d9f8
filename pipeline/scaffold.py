"""SCAFFOLD's control variates: what clients and server think the gradient is."""

import torch
from torch import Tensor


def client_controls(
    controls: Tensor, control: Tensor, clients: Tensor, server: Tensor, steps: Tensor, lr: float
) -> Tensor:
    """c_k - c + (server - client_k) / (steps_k lr): option II, the mean gradient of the round.

    controls  (K, P) float32, c_k before the round, of the clients that report
    control   (P,) float32, the server's c
    clients   (K, P) float32 after their local steps, which followed g - c_k + c
    server    (P,) float32, what they started from
    steps     (K,) int, local steps taken; a client that took none keeps its c_k
    lr        the clients' learning rate
    returns   (K, P) float32
    It is a mean gradient for plain SGD only: with Adam or momentum the same expression is in
    units of that optimizer's step. Source: Karimireddy et al., arXiv:1910.06378, Algorithm 1.
    """
    if not lr > 0:
        raise ValueError(f"client_controls: lr must be above 0; got {lr}")
    taken = steps.to(clients.device)[:, None]
    moved = (server - clients) / (taken.clamp(min=1) * lr)
    return torch.where(taken > 0, controls - control + moved, controls)


def server_control(control: Tensor, before: Tensor, after: Tensor, everyone: int) -> Tensor:
    """c + (1 / N) sum over reporting clients of (c_k after - c_k before); not changed in place.

    control        (P,) float32
    before, after  (K, P) float32
    everyone       N, all clients of the server, reporting or not
    Source: Karimireddy et al., arXiv:1910.06378, Algorithm 1, line 17.
    """
    if len(before) > everyone:
        raise ValueError(f"server_control: {len(before)} clients report, of {everyone} in all")
    return control + (after - before).sum(dim=0) / everyone
