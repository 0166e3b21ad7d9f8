"""The comparisons of every backend, on a real GPU; skipped, with the reason, where there is none.

Kernels come from the compiler that tests/kernels/test_triton_aot.py asks here for their resources,
and their arithmetic from the interpreter's tests; what is left to see is the two together.
"""

import json

import numpy as np
import pytest
import torch

from benchmarks.rounds import pacs_shaped
from kernels.adapter import AdapterState
from kernels.answers.top1 import adapter_top1
from kernels.contrastive import contrastive
from kernels.step import adapter_steps
from pipeline.federation.cuda_graph import capture_rounds
from pipeline.federation.local import Engine
from pipeline.federation.plan import build_plan
from pipeline.federation.training import advance, begin, to_device
from pipeline.runs.federate import federate
from pipeline.runs.folder import read_adapters
from pipeline.settings import RunConfig
from tests.conftest import ON_GPU
from tests.federation.outsized import assert_captured_round_names_the_outsized
from tests.kernels.pairs import COUNTS, assert_exact, assert_fast_as_exact_as_bfloat16, pairs
from tests.kernels.steps import SHAPES, assert_as_exact_as_plain_torch, draw, on, settings
from tests.naive import steps as naive
from tests.packages import need
from tests.runs.small_runs import small

pytestmark = ON_GPU

DEVICE = torch.device("cuda")
BACKENDS = ("triton", "torch")
STEPS = [  # lanes, steps, batch, width, classes
    (2, 3, 1, 64, 3),
    (4, 3, 32, 512, 7),
    (2, 2, 21, 500, 65),
    (2, 2, 2, 640, 345),
    (2, 2, 32, 768, 1),
    (2, 2, 33, 1024, 9),
    (2, 2, 70, 33, 12),
    (1, 2, 200, 64, 10),
]
AGAIN = 20  # a race between warps shows in some runs: Triton before 3.8 had one on sm_103


def poison() -> None:
    """What torch.empty will hand out next holds NaN."""
    torch.empty(1 << 26, device=DEVICE).fill_(float("nan"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("shape", [*SHAPES, *STEPS])
def test_steps_are_as_exact_as_plain_torch(shape, scale, backend):
    poison()
    assert_as_exact_as_plain_torch(shape, scale, backend, DEVICE)


def test_steps_give_the_same_bytes_again():
    *drawn, rows = draw(12, 8, 32, 512, 7)
    adapters, *data = on(DEVICE, *drawn)
    first = None
    for _ in range(AGAIN):
        poison()
        state = AdapterState(*(w.clone() for w in adapters))
        losses = adapter_steps(state, *data, rows, settings(12), logit_scale=100, backend="triton")
        first = first or (*state, losses)
        assert all(torch.equal(a, b) for a, b in zip(first, (*state, losses), strict=True))


@pytest.mark.parametrize("shape", [(2, 2, 5, 16, 3), (12, 8, 32, 512, 7)], ids=["small", "large"])
def test_overlapping_launches_in_a_graph_give_the_same_bytes(shape):
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("programmatic dependent launch needs compute capability 9")
    need("triton")
    from kernels.gpu.round_graph import capture
    from kernels.step import gpu as step_gpu

    lanes, steps, batch, *_ = shape
    *drawn, rows = draw(*shape)
    adapters, *data = on(DEVICE, *drawn)
    work = step_gpu.workspace(steps, lanes, batch, data[0])
    step_gpu.set_rows(work, rows)
    step_gpu.set_settings(work, settings(lanes))
    state = AdapterState(*(w.clone() for w in adapters))

    def train(overlap):
        for weight, start in zip(state, adapters, strict=True):
            weight.copy_(start)
        step_gpu.take_steps(state, *data, work, step_gpu.live_lanes(rows), 100.0, overlap)

    train(False)
    plain = [w.clone() for w in state]
    graph = capture(lambda: train(True))
    for _ in range(AGAIN):
        graph.replay()
        assert all(map(torch.equal, plain, state))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("width", "classes"), [(33, 65), (512, 7), (500, 345), (1024, 1)])
def test_top1_equals_the_twin(width, classes, backend):
    adapters, features, _, text, _ = draw(3, 1, 2, width, classes)
    adapters, features, text = on(DEVICE, adapters, features, text)
    rows = [torch.arange(200), torch.empty(0, dtype=torch.int64), torch.tensor([5, 5, 0])]
    poison()
    answers = adapter_top1(adapters, features, text, [r.to(DEVICE) for r in rows], backend=backend)
    for a, (asked, found) in enumerate(zip(rows, answers, strict=True)):
        weights = [w[a].cpu().numpy().astype(float) for w in adapters]
        x = features.cpu().numpy()[asked].astype(float)
        wanted = naive.top1(weights, x, text.cpu().numpy().astype(float))
        np.testing.assert_array_equal(found.cpu(), wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("count", [*COUNTS, 5000])
def test_contrastive_is_as_exact_as_plain_torch(count, scale, backend):
    width = {1: 64, 2: 500, 31: 512, 33: 33, 127: 640, 129: 768, 1000: 64, 5000: 512}[count]
    image, text = (v.float().double().to(DEVICE) for v in pairs(count, width))
    poison()
    truth = assert_exact(image, text, scale, backend)
    poison()
    assert_fast_as_exact_as_bfloat16(image.float(), text.float(), scale, backend, truth)


@pytest.mark.parametrize("backend", BACKENDS)
def test_orthogonal_features_do_not_underflow(backend):
    eye = torch.eye(400, 512, dtype=torch.float64, device=DEVICE)
    assert_exact(eye, eye.roll(7, dims=0), 100.0, backend)


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_contrastive_gives_the_same_bytes_again_in_little_memory(precision):
    count = 8192
    image, text = (v.float().to(DEVICE) for v in pairs(count, 512))
    runs = []
    for _ in range(AGAIN):
        poison()
        x, y = (v.clone().requires_grad_() for v in (image, text))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contrastive(x, y, 100.0, precision=precision, backend="triton").backward()
        extra = torch.cuda.max_memory_allocated() - before
        runs.append((x.grad, y.grad))
        assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[-1], strict=True))
        # Chunks hold a quarter of G; plain torch holds four N x N float32 matrices or more.
        assert extra < 2 * 4 * count * count


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["number", "tensor"])
def test_contrastive_and_its_gradients_are_captured_as_a_graph(kind, backend, precision):
    """Nothing in it waits for the device; a replay reads the logit_scale that is there then."""
    by = [v.float().to(DEVICE).requires_grad_() for v in pairs(33, 64)]
    scale = 5.0
    if kind == "tensor":
        scale = torch.tensor([5.0], device=DEVICE).requires_grad_()
        by.append(scale)

    def step():
        loss = contrastive(*by[:2], scale, precision=precision, backend=backend)
        return loss, *torch.autograd.grad(loss, by)

    with torch.cuda.stream(torch.cuda.Stream()):
        step()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()
    if kind == "tensor":
        with torch.no_grad():
            scale.fill_(20.0)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(made, step(), strict=True))


CHANGED = [{}, {"method": "local"}, {"schedule": "cosine"}, {"choose": "loss"}]


@pytest.mark.parametrize("changed", CHANGED)
def test_rounds_as_one_graph_equal_rounds_step_by_step(changed):
    config = RunConfig(held_out=(("a",), ("b",)), rounds=4, batch=16, lr=1e-3, **changed)
    table = small(rows=(60, 45, 80))
    plan = build_plan(table, config)
    cached = to_device(table, DEVICE)
    runs = []
    for graph in (capture_rounds(plan, cached, "triton"), None):
        engine = Engine(plan, cached, "triton", graph=graph)
        progress, reports = begin(plan, cached), []
        for _ in range(config.rounds):
            poison()
            progress, report = advance(engine, progress)
            reports.append(report)
        runs.append((progress, reports))
    (one, told), (other, also) = runs
    assert torch.equal(one.state["server"], other.state["server"]) and told == also


def test_a_graph_leaves_an_outsized_client_to_the_code_that_names_it():
    assert_captured_round_names_the_outsized(DEVICE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_of_pacs_s_shape_equals_the_cpu_s(backend, tmp_path):
    """Adapters within what float32 leaves after some 400 steps, accuracies within one row."""
    table = pacs_shaped()
    config = RunConfig(held_out=tuple((name,) for name in table.domain_names), rounds=5)
    found = {}
    for device, code in (("cpu", "numba"), ("cuda", backend)):
        out = tmp_path / device
        federate(table, config, runs=tmp_path, out=out, device=device, backend=code)
        tensors, _ = read_adapters(out / "adapter.safetensors")
        lines = (out / "rounds.jsonl").read_text("utf-8").splitlines()
        found[device] = tensors, [json.loads(line) for line in lines]
    last = {name: w for name, w in found["cpu"][0].items() if name.startswith("last.")}
    assert len(last) == 4
    for name, weights in last.items():
        torch.testing.assert_close(found["cuda"][0][name], weights, rtol=0, atol=1e-4)
    for mine, theirs in zip(found["cuda"][1], found["cpu"][1], strict=True):
        for fold, other in zip(mine["folds"], theirs["folds"], strict=True):
            assert fold["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
            assert fold["val_accuracy"] == pytest.approx(other["val_accuracy"], abs=1.01 / 334)
