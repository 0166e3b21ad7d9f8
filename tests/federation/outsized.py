"""A captured round whose clients are outsized, for tests of kernels."""

from dataclasses import replace

import torch

from pipeline.federation.cuda_graph import capture_rounds
from pipeline.federation.local import Engine
from pipeline.federation.plan import build_plan
from pipeline.federation.round import run_round
from pipeline.federation.state import first_state
from pipeline.federation.training import to_device
from tests.runs.small_runs import config, small


def assert_captured_round_names_the_outsized(device: torch.device) -> None:
    """For tests/kernels: test_gpu.py, and triton_interpreted.py, whose rounds have no graph."""
    table, settings = small(), config(held_out=((),), lr=1e-7)
    plan = build_plan(table, settings)
    lanes = list(plan.lanes)
    lanes[1] = replace(lanes[1], config=replace(settings, lr=1e-2))  # Adam's update grows with lr
    cached = to_device(table, device)
    for lanes_now, wrong in ((plan.lanes, 0), (tuple(lanes), 1)):
        plan = replace(plan, lanes=lanes_now)
        graph = capture_rounds(plan, cached, "triton")
        state = first_state(plan, cached.text, None)
        engine = Engine(plan, cached, "triton", graph=graph)
        after, (told,) = run_round(state, engine, 0)
        assert graph.latest.sound == (wrong == 0)
        assert len(told.rejected) == wrong and told.diverged is None
        plain, (also,) = run_round(state, Engine(plan, cached, "triton"), 0)
        assert torch.equal(after["server"], plain["server"]) and told == also
