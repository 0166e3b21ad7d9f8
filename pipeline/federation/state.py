"""The state of a run between rounds: adapters as rows of numbers, and methods' memory."""

import torch
from torch import Tensor

from kernels.heads.plain import Kind, first_row, shapes
from pipeline.errors import ConfigError
from pipeline.federation.payload import payload_of
from pipeline.federation.plan import Plan
from pipeline.settings import RunConfig

State = dict[str, Tensor]
"""By name, a row of P numbers for each adapter; only what the plan's method needs is present.

server          (S, P)  the adapter of each server
<name>          (S, P)  each of the method's `memory`, such as momentum and second
origin          (S, P)  payload fp16, int8: the first adapter, from which differences travel
control         (S, P)  scaffold: c
controls        (L, P)  scaffold: c_k of each lane
personal        (L, P)  ditto, fedper: each lane's own adapter, or its own part of one
first_moment    (L, P)  moments kept: of the clients' optimizers
second_moment   (L, P)  likewise; with sgd it stays 0
steps           (L,)    likewise: steps made, int64
"""

BY_LANE = ("controls", "personal", "first_moment", "second_moment", "steps")


def first_state(plan: Plan, text: Tensor, given: Tensor | None) -> State:
    """Before round 0: every server at `given` (P,), or at its config's start by its seed.

    text  (C, D) float32 raw, on the device of the state
    """
    made: dict[tuple[str, int], Tensor] = {}
    rows = []
    for server in plan.servers:
        found = plan.folds[server.fold].closed_form
        rows.append(
            found.row
            if found is not None and given is None
            else _start(plan.work.kind, plan.folds[server.fold].config, text, given, made)
        )
    if not rows:
        return {"server": torch.empty(0, 0, device=text.device)}
    state = {"server": torch.stack(rows).to(text.device)}
    by_lane = [lane.server for lane in plan.lanes]
    zeros = torch.zeros_like
    for name, first in plan.method.memory.items():
        values = [first(plan.folds[server.fold].config) for server in plan.servers]
        state[name] = zeros(state["server"]) + torch.tensor(values, device=text.device)[:, None]
    if any(payload_of(fold.config) != "fp32" for fold in plan.folds):
        state["origin"] = state["server"]
    if plan.method.controls:
        state["control"] = zeros(state["server"])
        state["controls"] = zeros(state["server"][by_lane])
    if plan.method.keeps:
        state["personal"] = state["server"][by_lane]
    if plan.folds[0].config.moments == "kept":
        state["first_moment"] = zeros(state["server"][by_lane])
        state["second_moment"] = zeros(state["server"][by_lane])
        state["steps"] = torch.zeros(len(by_lane), dtype=torch.int64)
    return state


def model_rows(plan: Plan, state: State) -> Tensor:
    """The adapters that are scored, (A, P): servers', or clients' own (plan.models)."""
    if not plan.method.keeps:
        return state["server"]
    mask = own_part(plan, state["server"].device)
    rows = []
    for model in plan.models:
        server = state["server"][model.server]
        own = None if model.lane is None else state["personal"][model.lane]
        rows.append(server if own is None else torch.where(mask, own, server))
    return torch.stack(rows)


def own_part(plan: Plan, device: torch.device) -> Tensor:
    """(P,) bool: the numbers that a client keeps to itself.

    All of them if the method keeps an adapter; those of the head's last layer if it keeps a layer.
    """
    kind = plan.work.kind
    kept = kind.does.last if plan.method.keeps == "layer" else None
    return torch.cat(
        [
            torch.full((int(torch.Size(shape).numel()),), kept is None
                       or name.removeprefix("text_") in kept)
            for name, shape in shapes(kind).items()
        ]
    ).to(device)  # fmt: skip


def _start(
    kind: Kind,
    config: RunConfig,
    text: Tensor,
    given: Tensor | None,
    made: dict[tuple[str, int], Tensor],
) -> Tensor:
    if given is not None:
        return given
    key = (config.start, config.seed)
    if key not in made:
        try:
            made[key] = first_row(kind, *key, text)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return made[key]
