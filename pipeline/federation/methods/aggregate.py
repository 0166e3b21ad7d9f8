"""Client adapters -> server adapter, by the plan's method."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.federation.methods import rules as server_rules
from pipeline.federation.methods import server_optimizers
from pipeline.federation.methods.privacy import clipped, private_mean
from pipeline.federation.methods.server_optimizers import ServerState
from pipeline.settings import AVERAGING, RunConfig


class Reports(NamedTuple):
    """What one server hears from its clients in a round."""

    clients: Tensor  # (K, P) float32, in client order
    everyone: int  # clients of the server, whether they report or not
    weights: tuple[float, ...]  # of those K; sum 1
    round: int
    stream: int  # names the noise: of the fold, whatever else trains beside it


class Admitted(NamedTuple):
    """Who of those that sent something is let into a round."""

    clients: Tensor  # (K, P) float32, in the order of names
    names: tuple[str, ...]  # K
    refused: dict[str, str]  # client -> why


def admit(
    sent: Mapping[str, object], start: Tensor, steps: Mapping[str, int] | None = None
) -> Admitted:
    """What clients sent over a wire as rows for `aggregate`, without what cannot be averaged.

    sent   client -> its adapter, to be (P,) of floats: array, tensor or list
    start  (P,) float32, what they started from
    steps  client -> its local steps, see unsound; None: alike

    A client is refused by name for anything but P finite numbers, and for an outsized update
    (pipeline/federation/methods/rules.py); the others are let in. Raises nothing of what clients
    send.
    """
    rows, refused = {}, {}
    for name, values in sent.items():
        row, why = _as_row(values, len(start))
        if why is None:
            rows[name] = row.to(start.device)
        else:
            refused[name] = why
    names = list(rows)
    clients = torch.stack(list(rows.values())) if rows else start.new_empty(0, len(start))
    made = None if steps is None else [steps[name] for name in names]
    wrong = server_rules.unsound(clients, start, made)
    refused |= {names[k]: why for k, why in wrong.items()}
    sound = [k for k in range(len(names)) if k not in wrong]
    in_order = {name: refused[name] for name in sent if name in refused}
    return Admitted(clients[sound], tuple(names[k] for k in sound), in_order)


def _as_row(values: object, size: int) -> tuple[Tensor, None] | tuple[None, str]:
    try:
        array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.array(values)
    except (ValueError, TypeError, RuntimeError):  # ragged lists; tensors numpy has no type for
        array = None
    if array is None or array.dtype.kind not in "fiuc":
        return None, "what it sent is not an array of numbers"
    if array.dtype.kind != "f":
        return None, f"it sent {array.dtype}, float32 is needed"
    if array.shape != (size,):
        return None, f"it sent shape {array.shape}, needs ({size},)"
    with np.errstate(over="ignore"):  # what overflows is refused as Inf
        return torch.from_numpy(array.astype(np.float32)), None


def aggregate(
    config: RunConfig, server: Tensor, memory: dict[str, Tensor], heard: Reports
) -> tuple[Tensor, dict[str, Tensor]]:
    """One server's next adapter (P,), and the memory of its optimizer.

    memory   "momentum" and "second" (P,) where the method has them
    With clip every update is clipped before the method's rule; with noise as well the mean is
    private_mean, whose denominator is fixed.
    Everything is float32 and in client order, whatever else trains beside it. Methods and sources:
    docs/methods.md; the plain mean is PersonalizedFL's fedclip/utils/aggregation.py.
    """
    clients, weights = heard.clients, heard.weights
    if clips(config) and not config.noise:
        clients = clipped(clients, server, config.clip)
    match config.method:
        case "median":
            return server_rules.median(clients), memory
        case "trimmed-mean":
            return server_rules.trimmed_mean(clients, config.trim), memory
        case "krum":
            keep = min(config.keep, len(clients))
            return server_rules.krum(clients, weights, config.byzantine, keep), memory
    if config.noise:
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


def clips(config: RunConfig) -> bool:
    """Whether updates are clipped: where there are updates, so not for local and central."""
    return config.clip > 0 and config.method in AVERAGING


def renormalised(weights: Sequence[float], who: Sequence[int]) -> tuple[float, ...]:
    """The weights of those who report; untouched when all do (1/3 stays 1/3) or nobody does."""
    if len(who) in (0, len(weights)):
        return tuple(weights)
    return server_rules.shares_of([weights[k] for k in who])
