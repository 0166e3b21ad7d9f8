"""The clients' half of a round: who takes part, with which rows, and the local training."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.heads.plain import named
from kernels.local import Moments, Pull, Settings, local_steps
from pipeline.federation.closed_form import stacked
from pipeline.federation.cohort import cohort, steps_of
from pipeline.federation.evaluate import Cached
from pipeline.federation.payload import payload_of, received
from pipeline.federation.plan import Fold, Lane, Orders, Plan, round_rows, seeded_order, settings_of
from pipeline.federation.state import State, own_part

if TYPE_CHECKING:
    from kernels.gpu.round_graph import RoundGraph


class Engine(NamedTuple):
    """What a run computes with, beside its state."""

    plan: Plan
    cached: Cached
    backend: str
    orders: Orders = seeded_order
    model: str | None = None  # CLIP's name, for the cost of sending all of it
    graph: "RoundGraph | None" = None  # see federation/cuda_graph.py


class Trained(NamedTuple):
    """The result of lanes' local training, before anything is averaged."""

    lanes: list[int]  # k positions in plan.lanes, most steps first
    start: Tensor  # (k, P) what they started from
    clients: Tensor  # (k, P) where they ended
    losses: Tensor  # (T, k) of each step, 0 after a lane's last
    steps: np.ndarray  # (L,) of every lane; 0 for one that took no part


def train_lanes(
    state: State, engine: Engine, round: int, steps: np.ndarray
) -> tuple[State, Trained]:
    """The clients' half of a round: `steps` (L,) of local training in each lane.

    returns  the state with what the lanes keep to themselves, and their results
    """
    plan = engine.plan
    taking, rows = rows_of_lanes(engine, steps, round)
    lanes = [plan.lanes[at] for at in taking]
    start = starts_of_lanes(plan, state, taking)
    if not lanes:
        return state, Trained(taking, start, start, torch.zeros(0, 0), steps)
    clients = start.clone()
    moments = _moments(state, taking)
    pull = _pull(plan, state, taking)
    losses = lane_steps(engine, lanes, clients, rows, settings_of(lanes, round), moments, pull)
    after = dict(state)
    if moments is not None:
        for name, value in zip(("first_moment", "second_moment", "steps"), moments, strict=True):
            after[name] = _put(state[name], taking, value)
    if "personal" in state:
        own = [
            c for c, at in enumerate(taking) if plan.method.keeps == "layer" or lanes[c].personal
        ]
        after["personal"] = _put(state["personal"], [taking[c] for c in own], clients[own])
    return after, Trained(taking, start, clients, losses, steps)


def lane_steps(
    engine: Engine, lanes: Sequence[Lane], clients: Tensor, rows: Tensor, settings: Settings,
    moments: Moments | None = None, pull: Pull = Pull(),  # noqa: B008
) -> Tensor:  # fmt: skip
    """local_steps of some lanes, in whitened features if their folds have a metric.

    clients  (k, P), a row for each lane; **changed in place**. Over z a classifier's numbers are
             v = s w inverse and c = s (b + <w, mean>), its logits <z, v> + c (closed_form.Metric)
    """
    plan, cached = engine.plan, engine.cached
    found = [plan.folds[lane.fold].closed_form for lane in lanes]
    metrics = [each.metric for each in found if each is not None and each.metric is not None]
    if len(metrics) < len(lanes):  # lanes that train side by side share `start`
        losses: Tensor = local_steps(
            plan.work, clients, cached.features, cached.labels, cached.text, cached.unit_text,
            rows, settings, logit_scale=cached.logit_scale, moments=moments, pull=pull,
            backend=engine.backend,
        )  # fmt: skip
        return losses
    kind, scale = plan.work.kind, cached.logit_scale
    distinct = list(dict.fromkeys(metrics))
    features, labels = stacked(tuple(distinct))
    first = np.cumsum([0] + [len(metric.labels) for metric in distinct])
    placed = rows.clone()
    for column, metric in enumerate(metrics):
        own = rows[:, column]
        at = metric.place[own.clamp(min=0).long()] + first[distinct.index(metric)]
        placed[:, column] = torch.where(own < 0, own, at.to(own.dtype))

    def turned(values: Tensor) -> Tensor:
        parts = named(kind, values)
        each = zip(metrics, scale * parts["text_w"], scale * parts["text_b"], strict=True)
        pairs = [metric.whitened(w, b) for metric, w, b in each]
        return torch.stack([torch.cat([v.flatten(), c]) for v, c in pairs])

    inside = turned(clients)
    losses = local_steps(
        replace(plan.work, kind=replace(kind, whitened=True)), inside, features, labels,
        cached.text, cached.unit_text, placed, settings, logit_scale=1.0, moments=moments,
        pull=Pull(*(each if each is None else turned(each) for each in pull)),
        backend=engine.backend,
    )  # fmt: skip
    parts = named(kind, inside)
    for column, metric in enumerate(metrics):
        w, b = metric.plain(parts["text_w"][column] / scale, parts["text_b"][column] / scale)
        clients[column] = torch.cat([w.flatten(), b])
    return losses


def stream_of(fold: Fold) -> int:
    """A number for a fold that depends only on its held-out domains."""
    return zlib.crc32(",".join(fold.held_out).encode())


def attendance(plan: Plan, round: int) -> np.ndarray:
    """The share of its steps that each lane takes in a round and reports, (L,); 0: none."""
    shares = np.ones(len(plan.lanes))
    for f, fold in enumerate(plan.folds):
        c = fold.config
        if plan.method.lanes == "pooled" or (c.client_fraction, c.dropout, c.stragglers) == (
            1,
            0,
            0,
        ):
            continue
        drawn = cohort(
            len(fold.clients), round, c.seed, stream_of(fold), client_fraction=c.client_fraction,
            dropout=c.dropout, stragglers=c.stragglers, poisson=c.noise > 0,
        )  # fmt: skip
        work = np.zeros(len(fold.clients))
        work[drawn.clients[drawn.reports]] = drawn.work[drawn.reports]
        for at, lane in enumerate(plan.lanes):
            if lane.fold == f:
                shares[at] = work[lane.client]
    return shares


def steps_of_lanes(plan: Plan, shares: np.ndarray) -> np.ndarray:
    """The steps that each lane takes in a round, by its share; (L,) int64."""
    steps = plan.steps.copy()
    for at in np.flatnonzero(shares != 1):
        steps[at] = steps_of(shares[at], int(steps[at])) if shares[at] else 0
    return steps


def rows_of_lanes(engine: Engine, steps: np.ndarray, round: int) -> tuple[list[int], Tensor]:
    """The lanes that take part, most steps first, and their rows as in plan.round_rows."""
    taking = sorted(np.flatnonzero(steps).tolist(), key=lambda at: (-steps[at], at))
    rows = round_rows([engine.plan.lanes[at] for at in taking], round, engine.orders)
    for column, at in enumerate(taking):
        if steps[at] < engine.plan.steps[at]:
            rows[steps[at] :, column] = -1  # a straggler's time is up
    return taking, rows[: steps.max(initial=0)]


def starts_of_lanes(plan: Plan, state: State, taking: list[int]) -> Tensor:
    """Lanes' starting adapters, (k, P): servers' adapters as received, and their own parts."""
    servers = servers_received(plan, state)
    own = torch.tensor([plan.lanes[at].server for at in taking], device=servers.device).long()
    rows = servers.index_select(0, own)  # half the time of indexing by a list
    if plan.method.keeps == "layer":
        mask = own_part(plan, rows.device)
        return torch.where(mask, state["personal"][taking], rows)
    for column, at in enumerate(taking):
        if plan.lanes[at].personal:
            rows[column] = state["personal"][at]
    return rows


def servers_received(plan: Plan, state: State) -> Tensor:
    """The servers' adapters (S, P) as their clients receive them."""
    return _arrived(plan, state, state["server"], state.get("origin"))


def control_received(plan: Plan, state: State) -> Tensor:
    """SCAFFOLD's c of each server (S, P) as its clients receive it; it starts at 0."""
    return _arrived(plan, state, state["control"], torch.zeros_like(state["control"]))


def _arrived(plan: Plan, state: State, sent: Tensor, reference: Tensor | None) -> Tensor:
    if "origin" not in state or reference is None:
        return sent
    arrived = sent.clone()
    for s, server in enumerate(plan.servers):
        payload = payload_of(plan.folds[server.fold].config)
        arrived[s] = received(sent[s], reference[s], payload)
    return arrived


def _moments(state: State, taking: list[int]) -> Moments | None:
    if "steps" not in state:
        return None
    return Moments(*(state[n][taking] for n in ("first_moment", "second_moment", "steps")))


def _pull(plan: Plan, state: State, taking: list[int]) -> Pull:
    servers = [plan.lanes[at].server for at in taking]
    if plan.method.proximal:
        return Pull(anchor=servers_received(plan, state)[servers])
    if plan.method.controls:
        return Pull(shift=control_received(plan, state)[servers] - state["controls"][taking])
    return Pull()


def _put(whole: Tensor, at: list[int], values: Tensor) -> Tensor:
    whole = whole.clone()
    whole[at] = values
    return whole
