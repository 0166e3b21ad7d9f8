"""Captures the rounds of a plan as one CUDA graph, if all rounds are identical."""

from typing import TYPE_CHECKING

import torch

from kernels.local import has_fused_step
from pipeline.federation.evaluate import Cached
from pipeline.federation.methods import METHODS
from pipeline.federation.methods.aggregate import clips
from pipeline.federation.methods.guard import outsized
from pipeline.federation.methods.mean import mean
from pipeline.federation.payload import payload_of
from pipeline.federation.plan import Plan
from pipeline.settings import RunConfig

if TYPE_CHECKING:
    from kernels.gpu.round_graph import RoundGraph


def capture_rounds(plan: Plan, cached: Cached, backend: str) -> "RoundGraph | None":
    """The rounds of a plan as one kernels.gpu.round_graph.RoundGraph; None if that is impossible.

    It is possible if backend "triton" trains the released step, every client takes part in every
    round, and updates travel as plain float32.
    """
    if backend != "triton" or not plan.lanes or not all(_alike(fold.config) for fold in plan.folds):
        return None
    steps = plan.steps.tolist()
    if not has_fused_step(plan.work) or not all(steps):
        return None
    asked = [torch.from_numpy(own.rows).to(cached.labels.device) for own in plan.asked("val")]
    if not all(map(len, asked)):  # choose "last" needs no validation rows
        return None
    from kernels.gpu.round_graph import Layout, RoundGraph

    assert [model.server for model in plan.models] == list(range(len(plan.servers)))
    layout = Layout(
        kind=plan.work.kind,
        starts=[lane.server for lane in plan.lanes],
        live=[sum(made > step for made in steps) for step in range(max(steps))],
        batch=max(lane.config.batch for lane in plan.lanes),
        members=[server.lanes for server in plan.servers],
        shares=[server.weights for server in plan.servers],
        asked=asked,
    )
    numbers = cached.features, cached.labels, cached.unit_text, cached.logit_scale
    return RoundGraph(layout, *numbers, mean, outsized)


def _alike(config: RunConfig) -> bool:
    everybody = (config.client_fraction, config.dropout, config.stragglers) == (1, 0, 0)
    as_it_is = payload_of(config) == "fp32" and not clips(config)
    return METHODS[config.method].plain and config.moments == "reset" and everybody and as_it_is
