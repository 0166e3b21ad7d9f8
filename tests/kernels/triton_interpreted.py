"""What tests/kernels/test_triton_interpreter.py runs besides the files of all backends, in its
process.

Shapes that a user brings, with one lane or two: Triton's interpreter takes a second for each.
"""

import pytest
import torch

from kernels.adapter import AdapterState
from kernels.answers.gpu import NEAREST
from kernels.answers.top1 import adapter_top1
from kernels.backends import pick_backend
from kernels.gpu import round_graph
from kernels.heads.plain import size
from kernels.step import adapter_steps
from pipeline.federation.cuda_graph import capture_rounds
from pipeline.federation.local import Engine
from pipeline.federation.plan import build_plan, seeded_order
from pipeline.federation.training import advance, begin, to_device
from pipeline.settings import RunConfig
from tests.federation.outsized import assert_captured_round_names_the_outsized
from tests.kernels.pairs import assert_fast_as_exact_as_bfloat16, pairs, plain
from tests.kernels.steps import assert_as_exact_as_plain_torch, draw, settings
from tests.runs.small_runs import small

STEPS = [  # lanes, steps, batch, width, classes
    (1, 2, 1, 64, 3),
    (1, 2, 32, 512, 7),
    (1, 1, 21, 500, 65),
    (1, 1, 2, 640, 345),
    (1, 1, 32, 768, 1),
    (1, 1, 5, 1024, 9),
    (1, 2, 70, 33, 12),
]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty gives NaN and the largest integers."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("shape", STEPS)
def test_triton_steps_are_as_exact_as_plain_torch(shape):
    assert_as_exact_as_plain_torch(shape, 100.0, "triton")


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize(("count", "width"), [(2, 64), (129, 500), (300, 40)])
def test_triton_fast_mode_errs_no_more_than_plain_bfloat16(count, width, scale):
    image, text = (v.float() for v in pairs(count, width))
    truth = plain(image.double(), text.double(), scale, torch.float64)
    assert_fast_as_exact_as_bfloat16(image, text, scale, "triton", truth)


def test_triton_lanes_may_lie_apart():
    """Adapters as views of one row a lane, as a run keeps them."""
    lanes, width = 2, 40
    adapters, features, labels, text, rows = draw(lanes, 2, 5, width, 4)
    together = AdapterState(*(w.clone() for w in adapters))
    flat = torch.cat([w.flatten(1) for w in adapters], dim=1)
    flat = torch.cat([flat, torch.full((lanes, 7), 5.0)], dim=1)
    ends = torch.tensor([w[0].numel() for w in adapters]).cumsum(0).tolist()
    apart = AdapterState(
        *(
            flat[:, end - w[0].numel() : end].view(w.shape)
            for end, w in zip(ends, adapters, strict=True)
        )
    )
    for state in (together, apart):
        adapter_steps(
            state, features, labels, text, rows, settings(lanes), logit_scale=100, backend="triton"
        )
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    assert (flat[:, -7:] == 5).all()


def test_triton_answers_the_first_of_equal_classes():
    adapters, features, _, text, _ = draw(1, 1, 2, 64, 150)
    # A block of classes apart, and so in the same column of it: the interpreter multiplies with
    # numpy, whose BLAS may round a column by its place.
    block = NEAREST["BC"]
    text[block : 2 * block] = text[:block]
    (answers,) = adapter_top1(adapters, features, text, [torch.arange(200)], backend="triton")
    assert not ((answers >= block) & (answers < 2 * block)).any() and (answers < block).any()
    adapters.w1[:] = float("nan")
    (answers,) = adapter_top1(adapters, features, text, [torch.arange(3)], backend="triton")
    assert answers.tolist() == [0, 0, 0]


def test_triton_refuses_a_batch_it_cannot_hold():
    adapters, features, labels, text, _ = draw(1, 1, 2, 8, 2)
    rows = torch.zeros(1, 1, 5000, dtype=torch.int32)
    with pytest.raises(ValueError, match="at most 4096 rows, got 5000"):
        adapter_steps(
            adapters, features, labels, text, rows, settings(1), logit_scale=1, backend="triton"
        )


def test_triton_is_chosen_on_a_cpu_only_by_name():
    cpu = torch.device("cpu")
    assert pick_backend("auto", cpu) == "numba"
    assert pick_backend("triton", cpu) == "triton"


@pytest.mark.parametrize("changed", [{}, {"method": "local"}, {"schedule": "cosine"}])
def test_triton_rounds_as_one_graph_equal_rounds_step_by_step(changed):
    """The graph's code without the capture, which needs a GPU, against run_round's own."""
    config = RunConfig(held_out=(("a",), ("b",)), rounds=2, batch=16, lr=1e-3, **changed)
    table = small(rows=(60, 45, 80))
    plan = build_plan(table, config)
    cached = to_device(table, torch.device("cpu"))
    graph = capture_rounds(plan, cached, "triton")
    assert graph.answers_of(torch.zeros(1)) is None
    runs = []
    for engine in (
        Engine(plan, cached, "triton", graph=graph),
        Engine(plan, cached, "triton"),
        Engine(plan, cached, "torch"),
    ):
        progress, reports = begin(plan, cached), []
        for _ in range(config.rounds):
            progress, report = advance(engine, progress)
            reports.append(report)
        runs.append((progress, reports))
    (one, told), (other, also), (plain, _) = runs
    assert graph.answers_of(one.state["server"]) is not None
    assert torch.equal(one.state["server"], other.state["server"])
    assert torch.equal(one.best, other.best) and told == also
    torch.testing.assert_close(one.state["server"], plain.state["server"], rtol=0, atol=1e-5)


def test_triton_graph_s_next_inputs_are_made_while_a_round_runs(monkeypatch):
    """Between a round's launch and its results; none twice, none for a round after the last."""
    config = RunConfig(held_out=(("a",),), rounds=3, batch=16)
    table, events = small(), []

    def noted(seed, round, *key):
        events.append(f"order {round}")
        return seeded_order(seed, round, *key)

    plan = build_plan(table, config)
    cached = to_device(table, torch.device("cpu"))
    graph = capture_rounds(plan, cached, "triton")
    run, read = graph._round, round_graph.answers_by_adapter
    monkeypatch.setattr(graph, "_round", lambda: events.append("launch") or run())
    monkeypatch.setattr(
        round_graph, "answers_by_adapter", lambda *a: events.append("results") or read(*a)
    )
    engine, progress = Engine(plan, cached, "triton", noted, graph=graph), begin(plan, cached)
    for _ in range(3):
        progress, _ = advance(engine, progress)
    orders = [[f"order {round}"] * len(plan.lanes) for round in range(3)]
    ran = ["launch"], ["results"]
    assert events == [*orders[0], *ran[0], *orders[1], *ran[1], *ran[0], *orders[2], *ran[1],
                      *ran[0], *ran[1]]  # fmt: skip


def test_triton_graph_leaves_a_diverging_round_to_the_plain_code():
    config = RunConfig(held_out=(("a",),), rounds=1)
    table = small()
    plan = build_plan(table, config)
    cached = to_device(table, torch.device("cpu"))
    engine = Engine(plan, cached, "triton", graph=capture_rounds(plan, cached, "triton"))
    lost = torch.full((size(plan.work.kind),), float("nan"))
    progress, _ = advance(engine, begin(plan, cached, lost))
    assert "diverged" in progress.diverged[0]


def test_triton_graph_leaves_an_outsized_client_to_the_code_that_names_it():
    assert_captured_round_names_the_outsized(torch.device("cpu"))


@pytest.mark.parametrize(
    "changed",
    [
        {"client_fraction": 0.5},
        {"payload": "int8"},
        {"method": "fedadam"},
        {"head": "linear"},
        {"moments": "kept"},
    ],
)
def test_triton_captures_only_rounds_that_are_all_alike(changed):
    table = small()
    plan = build_plan(table, RunConfig(held_out=(("a",),), rounds=1, **changed))
    cached = to_device(table, torch.device("cpu"))
    assert capture_rounds(plan, cached, "triton") is None
    alike = build_plan(table, RunConfig(held_out=(("a",),), rounds=1))
    assert capture_rounds(alike, cached, "torch") is None
    graph = capture_rounds(alike, cached, "triton")
    with pytest.raises(ValueError, match="differ from those captured"):
        graph.replay(torch.zeros(1), torch.zeros(1, 2, 32, dtype=torch.int32), settings(2))
