"""A round of all lanes: local epochs, then aggregation. Pure: state in, state out."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.adapter import AdapterState
from kernels.adapter_step import adapter_steps
from pipeline.aggregate import aggregate
from pipeline.config import ConfigError
from pipeline.evaluate import Cached
from pipeline.lanes import Orders, Plan, adam_settings, round_rows, seeded_order


class Engine(NamedTuple):
    """What a run computes with, besides its state."""

    plan: Plan
    cached: Cached
    backend: str
    orders: Orders = seeded_order


def first_adapter(width: int, seed: int) -> AdapterState:
    """PyTorch's default start of two Linear(D, D): every number uniform in +-1/sqrt(D).

    Drawn from numpy's RandomState(seed), whose stream never changes: w1, b1, w2, b2 in turn.
    """
    draw = np.random.RandomState(seed)
    bound = width**-0.5
    shapes = ((width, width), (width,), (width, width), (width,))
    return AdapterState(
        *(torch.from_numpy(draw.uniform(-bound, bound, s).astype(np.float32)) for s in shapes)
    )


def first_state(
    plan: Plan, width: int, given: AdapterState | None, device: torch.device
) -> AdapterState:
    """The server adapters before round 0: the given one for all, or each config's seeded one."""
    seeds = [plan.folds[server.fold].config.seed for server in plan.servers]
    made = {seed: given or first_adapter(width, seed) for seed in {0, *seeds}}
    return AdapterState(
        *(
            torch.stack([made[seed][w] for seed in seeds] or [made[0][w]])[: len(seeds)].to(device)
            for w in range(len(AdapterState._fields))
        )
    )


def run_round(
    state: AdapterState, engine: Engine, round: int
) -> tuple[AdapterState, list[dict[str, float]]]:
    """One round: every lane trains its server's adapter on its own rows, then servers average.

    state    one adapter for each server; not changed
    returns  the servers' adapters after the round, and for each fold the mean loss by client

    Raises ConfigError when a fold's adapter is no longer finite.
    """
    plan, cached = engine.plan, engine.cached
    start = torch.tensor([lane.server for lane in plan.lanes], device=cached.features.device)
    clients = AdapterState(*(weights[start] for weights in state))
    rows = round_rows(plan.lanes, round, engine.orders)
    losses = adapter_steps(
        clients,
        cached.features,
        cached.labels,
        cached.unit_text,
        rows,
        adam_settings(plan.lanes),
        logit_scale=cached.logit_scale,
        backend=engine.backend,
    )
    servers = aggregate(clients, plan.servers)
    _refuse_diverged(plan, servers, round)
    return servers, _mean_losses(plan, losses, rows)


def _refuse_diverged(plan: Plan, servers: AdapterState, round: int) -> None:
    sums = sum(weights.sum(dim=tuple(range(1, weights.ndim))) for weights in servers)
    for s in (~sums.isfinite()).nonzero()[:, 0].tolist():
        fold = plan.folds[plan.servers[s].fold]
        held_out = ", ".join(fold.held_out) or "nothing"
        raise ConfigError(
            f"round {round}: the adapter (held out: {held_out}) has numbers that are not finite; "
            f"training diverged at lr {fold.config.lr:g}. Try a smaller --lr"
        )


def _mean_losses(plan: Plan, losses: Tensor, rows: Tensor) -> list[dict[str, float]]:
    steps = (rows[:, :, 0] >= 0).sum(dim=0)
    means = (losses.sum(dim=0).cpu() / steps.clamp(min=1)).tolist()
    found: list[dict[str, float]] = [{} for _ in plan.folds]
    for lane, loss in zip(plan.lanes, means, strict=True):
        names = {client.domain: client.name for client in plan.folds[lane.fold].clients}
        found[lane.fold][names.get(lane.client, "all")] = loss
    return found
