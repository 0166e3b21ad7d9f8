"""A round of all lanes: local work, then aggregation. Pure: state in, state out."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.adapter import AdamSettings
from pipeline.federation.local import (
    Engine,
    Trained,
    attendance,
    control_received,
    rows_of_lanes,
    steps_of_lanes,
    stream_of,
    train_lanes,
)
from pipeline.federation.methods import METHODS
from pipeline.federation.methods.aggregate import aggregate, clips, renormalised
from pipeline.federation.methods.guard import unsound
from pipeline.federation.methods.method import Controls, Reports
from pipeline.federation.payload import decode, encode, payload_of, received
from pipeline.federation.plan import Fold, Plan, rate, settings_of
from pipeline.federation.state import State, own_part
from pipeline.settings import RunConfig

if TYPE_CHECKING:
    from kernels.gpu.round_graph import Round, RoundGraph


class FoldReport(NamedTuple):
    """The result of a round in one fold, beside adapters."""

    losses: dict[str, float]  # mean over the round's steps, by client
    rejected: dict[str, str]  # client -> why its update was left out
    diverged: str | None  # why this fold cannot continue


def run_round(state: State, engine: Engine, round: int) -> tuple[State, list[FoldReport]]:
    """One round: the cohort's lanes train from their servers' adapters, then servers aggregate.

    state    see pipeline/federation/state.py; not changed
    returns  the state after the round, and a report of each fold
    """
    plan = engine.plan
    steps = steps_of_lanes(plan, attendance(plan, round))
    if engine.graph is not None:
        lanes, made = _replay(state, engine, engine.graph, steps, round)
        if made.sound:  # else train again below, which names the unsound clients
            return {**state, "server": made.servers}, _losses(plan, lanes, made.losses, steps)
    after, trained = train_lanes(state, engine, round, steps)
    return settle(plan, state, after, trained, round)


def _replay(
    state: State, engine: Engine, graph: "RoundGraph", steps: np.ndarray, round: int
) -> tuple[list[int], "Round"]:
    """Replays the captured round; meanwhile the CPU prepares the next one's inputs."""

    def inputs(round: int) -> tuple[list[int], Tensor, AdamSettings]:
        lanes, rows = rows_of_lanes(engine, steps, round)  # captured rounds have all clients
        settings = settings_of([engine.plan.lanes[at] for at in lanes], round)
        return lanes, rows, AdamSettings(*settings[: len(AdamSettings._fields)])

    def prepare() -> None:
        if round + 1 < max(fold.config.rounds for fold in engine.plan.folds):
            graph.ahead = {round + 1: inputs(round + 1)}

    lanes, rows, settings = graph.ahead.pop(round, None) or inputs(round)
    return lanes, graph.replay(state["server"], rows, settings, prepare)


def settle(
    plan: Plan, state: State, after: State, trained: Trained, round: int
) -> tuple[State, list[FoldReport]]:
    """The servers' half of a round: unsound updates are left out, the others aggregated.

    state, after  before the round, and as train_lanes returns it; neither is changed
    """
    after = dict(after)
    taking, start, clients, losses, steps = trained
    reports = _losses(plan, taking, losses, steps)
    _note_lost_personal(plan, taking, clients, round, reports)
    _average(plan, state, after, taking, start, clients, steps, round, reports)
    return after, reports


def _note_lost_personal(
    plan: Plan, taking: list[int], clients: Tensor, round: int, reports: list[FoldReport]
) -> None:
    if not plan.method.keeps:
        return
    for column in (~clients.sum(dim=1).isfinite()).nonzero()[:, 0].tolist():
        f = plan.lanes[taking[column]].fold
        reports[f] = reports[f]._replace(diverged=_diverged(plan.folds[f], round))


def _average(
    plan: Plan, state: State, after: State, taking: list[int], start: Tensor, clients: Tensor,
    steps: np.ndarray, round: int, reports: list[FoldReport],
) -> None:  # fmt: skip
    """Puts every server's next adapter and memory into `after`."""
    column = {at: c for c, at in enumerate(taking)}
    controls = plan.method.controls
    kept = ("server", *plan.method.memory, *(("control", "controls") if controls else ()))
    after |= {name: state[name].clone() for name in kept}
    for s, server in enumerate(plan.servers):
        fold = plan.folds[server.fold]
        here = [k for k, lane in enumerate(server.lanes) if lane in column]
        columns = torch.tensor([column[server.lanes[k]] for k in here], device=start.device).long()
        # index_select takes 0.2 ms for 3 x 525,312 numbers; indexing by a list 0.9.
        own = clients.index_select(0, columns)
        # A copy of every lane's start, which most rounds do not read.
        begun = start.index_select(0, columns) if controls or _changes(plan, fold.config) else own
        sent = _arrived(plan, fold.config, state["server"][s], begun, own)
        # Under central DP whether a client counts must not depend on others' rows; clip bounds
        # what a long update does.
        made = [int(steps[server.lanes[k]]) for k in here]
        wrong = unsound(sent, state["server"][s], made, by_itself=clips(fold.config))
        for k, why in wrong.items():
            reports[server.fold].rejected[_name(plan, server.lanes[here[k]])] = why
        sound = [k for k in range(len(here)) if k not in wrong]
        if here and not sound:
            reports[server.fold] = reports[server.fold]._replace(diverged=_diverged(fold, round))
            continue
        if not sound and not fold.config.noise:  # with noise an empty round must not be visible
            continue
        weights = renormalised(server.weights, [here[k] for k in sound])
        heard = Reports(
            sent[sound] if wrong else sent, len(server.lanes), weights, round, stream_of(fold)
        )
        memory = {name: state[name][s] for name in plan.method.memory}
        adapter, memory = aggregate(fold.config, state["server"][s], memory, heard)
        after["server"][s] = adapter
        for name, value in memory.items():
            after[name][s] = value
        if controls:
            _move_controls(controls, plan, state, after, s, [here[k] for k in sound],
                           begun[sound], own[sound], steps, round)  # fmt: skip


def _changes(plan: Plan, config: RunConfig) -> bool:
    """Whether a server sees other adapters than its clients have."""
    return plan.method.keeps == "layer" or payload_of(config) != "fp32"


def _arrived(
    plan: Plan, config: RunConfig, server: Tensor, begun: Tensor, clients: Tensor
) -> Tensor:
    """Clients' adapters as their server sees them, (K, P): its own plus the received updates.

    server (P,) is exact, begun (K, P) is what clients received: with payload fp16 and int8 they
    differ, and averaging begun + update would round the server's adapter again in every round, so
    that steps below half a rounding would never add up. Without `_changes` it is `clients` itself.
    """
    if not _changes(plan, config):
        return clients
    if plan.method.keeps == "layer":  # the clients' own layers do not travel
        own = own_part(plan, server.device)
        begun, clients = torch.where(own, server, begun), torch.where(own, server, clients)
    payload = payload_of(config)
    if payload == "fp32":
        return clients
    return server + decode(encode(clients - begun, payload))


def _move_controls(
    rules: Controls, plan: Plan, state: State, after: State, s: int, who: list[int], begun: Tensor,
    clients: Tensor, steps: np.ndarray, round: int,
) -> None:  # fmt: skip
    """Updates the control variates of a server and its clients `who`, positions in server.lanes."""
    server, config = plan.servers[s], plan.folds[plan.servers[s].fold].config
    lanes = [server.lanes[k] for k in who]
    controls, heard = state["controls"][lanes], control_received(plan, state)[s]
    made = torch.from_numpy(steps[lanes])
    new = rules.client(controls, heard, clients, begun, made, rate(config, round))
    # A client sends the change of its c_k, and keeps it as decoded: the server then knows it
    # exactly.
    new = received(new, controls, payload_of(config))
    after["controls"][lanes] = new
    shares = [server.weights[k] for k in who]
    after["control"][s] = rules.server(state["control"][s], controls, new, shares)


def _diverged(fold: Fold, round: int) -> str:
    held_out = ", ".join(fold.held_out) or "none"
    return (
        f"round {round}: no client's adapter (held out: {held_out}) is finite any longer; training "
        f"diverged at lr {fold.config.lr:g}. Try a smaller {_what_grew(fold.config)}"
    )


def _what_grew(config: RunConfig) -> str:
    """The options that can make updates grow: lr, and what multiplies it."""
    options = ["--lr"] if config.lr else []
    uses = METHODS[config.method].uses
    options += ["--server-lr"] if "server_lr" in uses and config.server_lr > 1 else []
    # A step shrinks an adapter by lr * decay, and pulls it by lr * mu: above 2 it overshoots.
    options += ["--weight-decay"] if config.lr * config.weight_decay > 2 else []
    options += ["--mu"] if "mu" in uses and config.lr * config.mu > 2 else []
    options += ["--noise"] if config.noise else []
    return " or ".join(options or ["--server-lr"])


def _name(plan: Plan, lane: int) -> str:
    own = plan.lanes[lane]
    return "all" if own.client is None else plan.folds[own.fold].clients[own.client].name


def _losses(plan: Plan, taking: list[int], losses: Tensor, steps: np.ndarray) -> list[FoldReport]:
    reports = [FoldReport({}, {}, None) for _ in plan.folds]
    sums = losses.sum(dim=0).cpu().tolist()
    found = dict(zip(taking, sums, strict=True))
    for at, lane in enumerate(plan.lanes):  # in the plan's order
        if at in found and not lane.personal:
            reports[lane.fold].losses[_name(plan, at)] = found[at] / int(steps[at])
    return reports
