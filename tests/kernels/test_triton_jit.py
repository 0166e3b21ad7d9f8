"""Every Triton kernel through Triton's own launch path, which no other test takes without a GPU.

A kernel that Triton cannot bind, specialise or compile fails at its first launch, and one that is
specialised anew by each round's arguments cannot be captured: both fail here.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.packages import need

need("triton")

from kernels.adapter import AdapterState  # noqa: E402
from kernels.answers import gpu as top1_gpu  # noqa: E402
from kernels.backends import INTERPRETED  # noqa: E402
from kernels.contrastive import gpu as contrastive_gpu  # noqa: E402
from kernels.step import gpu as step_gpu  # noqa: E402
from pipeline.federation.cuda_graph import capture_rounds  # noqa: E402
from pipeline.federation.joint import join_plans  # noqa: E402
from pipeline.federation.plan import build_plan  # noqa: E402
from pipeline.federation.training import to_device  # noqa: E402
from pipeline.settings import RunConfig  # noqa: E402
from tests.kernels.steps import draw, settings  # noqa: E402
from tests.kernels.stub_driver import StubDriver, stub_driver  # noqa: E402
from tests.runs.small_runs import small  # noqa: E402

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter has no launch path")

STEP = {"layer", "logits", "score_gradients", "hidden_gradients", "update"}
TOP1 = {"layer", "nearest"}
SHAPES = [  # lanes, steps, batch, width, classes
    (2, 2, 32, 512, 7),
    (3, 2, 70, 33, 1),
]


def assert_launches(call, kernels: set[str]) -> StubDriver:
    """`call` launches these kernels, and done again it compiles and loads nothing more."""
    with stub_driver() as stub:
        call()
        assert set(stub.launched) == set(stub.loaded) == kernels
        loaded, launched = stub.loaded.copy(), stub.launched.copy()
        call()
        assert stub.loaded == loaded
        assert stub.launched == launched + launched
    return stub


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlap"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_launch(shape, overlap):
    """With overlap, only the first launch awaits what precedes it."""
    adapters, *data, rows = draw(*shape)

    def call():
        state = AdapterState(*(w.clone() for w in adapters))
        step_gpu.adapter_steps(state, *data, rows, settings(shape[0]), 100.0, overlap)

    stub = assert_launches(call, STEP)
    calls, launches = 2, 6 * shape[1]
    assert stub.launched.total() == calls * launches
    assert stub.overlapped.total() == (calls * (launches - 1) if overlap else 0)


@pytest.mark.parametrize(("width", "classes"), [(33, 65), (33, 1)])
def test_top1_launches(width, classes):
    adapters, features, _, text, _ = draw(3, 1, 2, width, classes)
    rows = [torch.arange(200), torch.empty(0, dtype=torch.int64), torch.tensor([5, 5, 0])]
    assert_launches(lambda: top1_gpu.adapter_top1(adapters, features, text, rows), TOP1)


@pytest.mark.parametrize(
    ("count", "width", "precision", "scale"),
    [
        (1, 64, "exact", 100.0),
        (1, 64, "fast", torch.tensor(100, dtype=torch.bfloat16)),
        (600, 500, "exact", torch.tensor(100.0)),
        (600, 500, "fast", torch.tensor(100)),
    ],
    ids=str,
)
def test_contrastive_launches(count, width, precision, scale):
    x = torch.zeros(count, width)

    def call():
        _, *sums = contrastive_gpu.forward(x, x, scale, precision)
        contrastive_gpu.backward(x, x, scale, *sums, precision)

    products = {"multiply"} if precision == "exact" else set()
    assert_launches(call, {"statistics", "combine", "gradient"} | products)


def test_a_round_compiles_nothing_when_it_is_captured():
    table = small(rows=(60, 45, 80))
    plan = build_plan(table, RunConfig(held_out=(("a",), ("b",)), batch=16))
    graph = capture_rounds(plan, to_device(table, torch.device("cpu")), "triton")
    assert_launches(graph._round, STEP | TOP1)


class Counted(TorchDispatchMode):
    """Counts torch's operations: each is a node of the graph that captures them, views apart."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), keywords=None):
        self.count += 1
        return operation(*args, **(keywords or {}))


@pytest.mark.parametrize("changed", [{}, {"method": "local"}, {"weighting": "rows"}], ids=str)
def test_the_operations_of_a_round_do_not_grow_with_its_servers(changed):
    """400 servers of a sweep, ten operations each, were 8 to 10 ms a round on a GPU."""
    table = small(rows=(20, 25, 30))
    config = RunConfig(held_out=(("a",), ("b",)), batch=16, **changed)
    counts = []
    for trials in (1, 8):
        plans = [build_plan(table, replace(config, lr=1e-4 * (n + 1))) for n in range(trials)]
        joint, _ = join_plans(plans)
        graph = capture_rounds(joint, to_device(table, torch.device("cpu")), "triton")
        with stub_driver() as stub, Counted() as counted:
            graph._round()
        counts.append((counted.count, stub.launched))
    assert len(joint.servers) >= 16 and counts[0] == counts[1]
