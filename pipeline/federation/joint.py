"""Joins plans of several configs, so that their lanes train side by side, and splits them again."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.federation.payload import payload_of
from pipeline.federation.plan import Plan, steps_a_round
from pipeline.federation.state import BY_LANE, State
from pipeline.federation.training import Progress

COMMON = ("method", "mode", "head", "rank", "loss", "optimizer", "moments", "batch")
"""Settings that are equal in configs that train side by side; others may differ lane by lane."""


def common_key(plan: Plan) -> tuple:
    """Equal for plans that can be joined: the settings in COMMON, and the adapter's kind."""
    config = plan.folds[0].config
    extra = any(payload_of(fold.config) != "fp32" for fold in plan.folds)  # adds a row to the state
    whitened = config.start == "closed-form"  # trains on other features
    return plan.work, extra, whitened, *(getattr(config, name) for name in COMMON)


def join_plans(plans: Sequence[Plan]) -> tuple[Plan, list[tuple[int, int]]]:
    """One plan of all, and the owner of each of its lanes: (plan, lane in that plan).

    Folds, servers and models are in the order of the plans; lanes by steps, most first. A lane's
    result does not depend on the others (a test), so a joint plan gives each config the numbers of
    its own plan.
    """
    if len({common_key(plan) for plan in plans}) > 1:
        raise ValueError(f"join_plans: plans must agree in {', '.join(COMMON)}")
    owners = sorted(
        ((p, at) for p, plan in enumerate(plans) for at in range(len(plan.lanes))),
        key=lambda owner: -steps_a_round(plans[owner[0]].lanes[owner[1]]),
    )
    place = {owner: at for at, owner in enumerate(owners)}
    folds, servers, models = [], [], []
    lanes = [None] * len(owners)
    for p, plan in enumerate(plans):
        f, s, m = len(folds), len(servers), len(models)
        folds += [replace(x, models=tuple(m + own for own in x.models)) for x in plan.folds]
        servers += [
            replace(x, fold=f + x.fold, lanes=tuple(place[p, at] for at in x.lanes))
            for x in plan.servers
        ]
        models += [
            replace(
                x,
                fold=f + x.fold,
                server=s + x.server,
                lane=None if x.lane is None else place[p, x.lane],
            )
            for x in plan.models
        ]
        for at, lane in enumerate(plan.lanes):
            lanes[place[p, at]] = replace(lane, fold=f + lane.fold, server=s + lane.server)
    joint = Plan(plans[0].work, tuple(folds), tuple(servers), tuple(models), tuple(lanes))
    return joint, owners


def join_progress(progresses: Sequence[Progress], owners: Sequence[tuple[int, int]]) -> Progress:
    """The progress of a joint plan from those of its plans, which have done equally many rounds."""
    state: State = {}
    for name in progresses[0].state:
        rows = [p.state[name] for p in progresses]
        state[name] = torch.cat(rows)
        if name in BY_LANE:
            first = [0]
            for part in rows:
                first.append(first[-1] + len(part))
            state[name] = state[name][[first[p] + at for p, at in owners]]
    return Progress(
        progresses[0].rounds_done,
        state,
        torch.cat([p.best for p in progresses]),
        tuple(chosen for p in progresses for chosen in p.chosen),
    )


def split_progress(
    joint: Progress, plans: Sequence[Plan], owners: Sequence[tuple[int, int]]
) -> list[Progress]:
    """The inverse of join_progress: each plan's own progress, in its own memory."""
    found = []
    f = s = m = 0
    for p, plan in enumerate(plans):
        lanes = [at for at, owner in enumerate(owners) if owner[0] == p]
        lanes.sort(key=lambda at: owners[at][1])

        def own(name: str, value: Tensor, s=s, lanes=lanes, plan=plan) -> Tensor:
            return value[lanes] if name in BY_LANE else value[s : s + len(plan.servers)].clone()

        found.append(
            Progress(
                joint.rounds_done,
                {name: own(name, value) for name, value in joint.state.items()},
                joint.best[m : m + len(plan.models)].clone(),
                joint.chosen[f : f + len(plan.folds)],
                {k - f: why for k, why in joint.diverged.items() if f <= k < f + len(plan.folds)},
            )
        )
        f, s, m = f + len(plan.folds), s + len(plan.servers), m + len(plan.models)
    return found
