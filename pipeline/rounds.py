"""A round of all lanes: local work, then aggregation. Pure: state in, state out."""

import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.adapter import AdamSettings
from kernels.local_steps import Moments, Pull, local_steps
from pipeline.aggregate import Reports, aggregate, renormalised
from pipeline.cohort import cohort, steps_of
from pipeline.evaluate import Cached
from pipeline.lanes import Fold, Orders, Plan, round_rows, seeded_order, settings_of, steps_a_round
from pipeline.payload import received
from pipeline.scaffold import client_controls, server_control
from pipeline.server_rules import unsound
from pipeline.state import State, own_part

if TYPE_CHECKING:
    from kernels.round_graph import RoundGraph


class Engine(NamedTuple):
    """What a run computes with, besides its state."""

    plan: Plan
    cached: Cached
    backend: str
    orders: Orders = seeded_order
    model: str | None = None  # whose features these are, for what sending all of it would cost
    graph: "RoundGraph | None" = None  # pipeline/captured.py: all rounds alike, on a GPU


class Told(NamedTuple):
    """What one fold tells of a round."""

    losses: dict[str, float]  # mean over the round's steps, by client
    rejected: dict[str, str]  # client -> why its update was left out
    diverged: str | None  # why this fold cannot go on


def run_round(state: State, engine: Engine, round: int) -> tuple[State, list[Told]]:
    """One round: the cohort's lanes train from their servers' adapters, then servers aggregate.

    state    see pipeline/state.py; not changed
    returns  the state after the round, and what each fold tells
    """
    plan, cached = engine.plan, engine.cached
    steps = _attendance(plan, round)
    taking = sorted(np.flatnonzero(steps).tolist(), key=lambda at: (-steps[at], at))
    lanes = [plan.lanes[at] for at in taking]
    rows = round_rows(lanes, round, engine.orders)
    for column, at in enumerate(taking):
        rows[steps[at] :, column] = -1  # a straggler's time is up
    rows = rows[: steps.max(initial=0)]
    if engine.graph is not None:
        adam = AdamSettings(*settings_of(lanes, round)[: len(AdamSettings._fields)])
        made = engine.graph.replay(state["server"], rows, adam)
        if made.sound:  # else below, where the clients that are not are named
            return {**state, "server": made.servers}, _losses(plan, taking, made.losses, steps)
    start = _starts(plan, state, taking)
    clients = start.clone()
    moments = _moments(state, taking)
    losses = local_steps(
        plan.work,
        clients,
        cached.features,
        cached.labels,
        cached.text,
        cached.unit_text,
        rows,
        settings_of(lanes, round),
        logit_scale=cached.logit_scale,
        moments=moments,
        pull=_pull(plan, state, taking),
        backend=engine.backend,
    )
    after = dict(state)
    if moments is not None:
        for name, value in zip(("first_moment", "second_moment", "steps"), moments, strict=True):
            after[name] = _put(state[name], taking, value)
    if "personal" in state:
        own = [c for c, at in enumerate(taking) if plan.method == "fedper" or lanes[c].personal]
        after["personal"] = _put(state["personal"], [taking[c] for c in own], clients[own])
    told = _losses(plan, taking, losses, steps)
    _note_lost_personal(plan, taking, clients, round, told)
    _average(plan, state, after, taking, start, clients, steps, round, told)
    return after, told


def stream_of(fold: Fold) -> int:
    """A number that names a fold by what it holds out, whatever else trains beside it."""
    return zlib.crc32(",".join(fold.held_out).encode())


def _attendance(plan: Plan, round: int) -> np.ndarray:
    """Steps that each lane makes in a round and reports, 0 for one that takes no part; (L,)."""
    steps = np.array([steps_a_round(lane) for lane in plan.lanes], np.int64)
    for f, fold in enumerate(plan.folds):
        c = fold.config
        if plan.method == "central" or (c.client_fraction, c.dropout, c.stragglers) == (1, 0, 0):
            continue
        drawn = cohort(
            len(fold.clients), round, c.seed, stream_of(fold), client_fraction=c.client_fraction,
            dropout=c.dropout, stragglers=c.stragglers, poisson=c.noise > 0,
        )  # fmt: skip
        work = np.zeros(len(fold.clients))
        work[drawn.clients[drawn.reports]] = drawn.work[drawn.reports]
        for at, lane in enumerate(plan.lanes):
            if lane.fold == f:
                share = work[lane.client]
                steps[at] = steps_of(share, int(steps[at])) if share else 0
    return steps


def _starts(plan: Plan, state: State, taking: list[int]) -> Tensor:
    servers = state["server"]
    if "origin" in state:
        servers = servers.clone()
        for s, server in enumerate(plan.servers):
            payload = plan.folds[server.fold].config.payload
            servers[s] = received(servers[s], state["origin"][s], payload)
    rows = servers[[plan.lanes[at].server for at in taking]]
    if plan.method == "fedper":
        mask = own_part(plan, rows.device)
        return torch.where(mask, state["personal"][taking], rows)
    for column, at in enumerate(taking):
        if plan.lanes[at].personal:
            rows[column] = state["personal"][at]
    return rows


def _moments(state: State, taking: list[int]) -> Moments | None:
    if "steps" not in state:
        return None
    return Moments(*(state[n][taking] for n in ("first_moment", "second_moment", "steps")))


def _pull(plan: Plan, state: State, taking: list[int]) -> Pull:
    servers = [plan.lanes[at].server for at in taking]
    if plan.method in ("fedprox", "ditto"):
        return Pull(anchor=state["server"][servers])
    if plan.method == "scaffold":
        return Pull(shift=state["control"][servers] - state["controls"][taking])
    return Pull()


def _put(whole: Tensor, at: list[int], values: Tensor) -> Tensor:
    whole = whole.clone()
    whole[at] = values
    return whole


def _note_lost_personal(
    plan: Plan, taking: list[int], clients: Tensor, round: int, told: list[Told]
) -> None:
    if plan.method not in ("ditto", "fedper"):
        return
    for column in (~clients.sum(dim=1).isfinite()).nonzero()[:, 0].tolist():
        f = plan.lanes[taking[column]].fold
        told[f] = told[f]._replace(diverged=_diverged(plan.folds[f], round))


def _average(
    plan: Plan, state: State, after: State, taking: list[int], start: Tensor, clients: Tensor,
    steps: np.ndarray, round: int, told: list[Told],
) -> None:  # fmt: skip
    """Puts every server's next adapter, and what goes with it, into `after`."""
    column = {at: c for c, at in enumerate(taking)}
    for name in ("server", "momentum", "second", "control", "controls"):
        if name in state:
            after[name] = state[name].clone()
    for s, server in enumerate(plan.servers):
        fold = plan.folds[server.fold]
        here = [k for k, lane in enumerate(server.lanes) if lane in column]
        columns = torch.tensor([column[server.lanes[k]] for k in here], device=start.device).long()
        # index_select copies rows, 0.2 ms of 3 x 525,312 numbers; a list in [] takes 0.9.
        begun = start.index_select(0, columns)
        sent = received(clients.index_select(0, columns), begun, fold.config.payload)
        # Under central DP whether a client counts must not depend on the others' rows; clip bounds
        # what a long update does.
        made = [int(steps[server.lanes[k]]) for k in here]
        wrong = unsound(sent, begun, made, by_itself=bool(fold.config.clip))
        for k, why in wrong.items():
            told[server.fold].rejected[_name(plan, server.lanes[here[k]])] = why
        sound = [k for k in range(len(here)) if k not in wrong]
        if here and not sound:
            told[server.fold] = told[server.fold]._replace(diverged=_diverged(fold, round))
            continue
        if not sound and not fold.config.noise:  # with noise an empty round must not show
            continue
        weights = renormalised(server.weights, [here[k] for k in sound])
        heard = Reports(
            sent[sound] if wrong else sent, len(server.lanes), weights, round, stream_of(fold)
        )
        memory = {n: state[n][s] for n in ("momentum", "second") if n in state}
        adapter, memory = aggregate(fold.config, state["server"][s], memory, heard)
        after["server"][s] = adapter
        for name, value in memory.items():
            after[name][s] = value
        if plan.method == "scaffold":
            lanes = [server.lanes[here[k]] for k in sound]
            _scaffold(plan, state, after, s, lanes, clients[[column[at] for at in lanes]], steps)


def _scaffold(
    plan: Plan, state: State, after: State, s: int, lanes: list[int], clients: Tensor,
    steps: np.ndarray,
) -> None:  # fmt: skip
    config = plan.folds[plan.servers[s].fold].config
    server, control, controls = state["server"][s], state["control"][s], state["controls"][lanes]
    made = torch.from_numpy(steps[lanes])
    new = client_controls(controls, control, clients, server, made, config.lr)
    after["controls"][lanes] = new
    after["control"][s] = server_control(control, controls, new, len(plan.servers[s].lanes))
    moved = after["server"][s] - server
    after["server"][s] = server + config.server_lr * moved


def _diverged(fold: Fold, round: int) -> str:
    held_out = ", ".join(fold.held_out) or "nothing"
    return (
        f"round {round}: no client's adapter (held out: {held_out}) is finite any more; training "
        f"diverged at lr {fold.config.lr:g}. Try a smaller --lr"
    )


def _name(plan: Plan, lane: int) -> str:
    own = plan.lanes[lane]
    return "all" if own.client is None else plan.folds[own.fold].clients[own.client].name


def _losses(plan: Plan, taking: list[int], losses: Tensor, steps: np.ndarray) -> list[Told]:
    told = [Told({}, {}, None) for _ in plan.folds]
    sums = losses.sum(dim=0).cpu().tolist()
    found = dict(zip(taking, sums, strict=True))
    for at, lane in enumerate(plan.lanes):  # in the plan's order, whoever takes part
        if at in found and not lane.personal:
            told[lane.fold].losses[_name(plan, at)] = found[at] / int(steps[at])
    return told
