"""Backend numba-bf16: against a float64 twin with factors rounded to bfloat16, and refusals."""

import numpy as np
import pytest
import torch

from kernels.adapter import AdapterState
from kernels.backends import BF16, BackendUnavailable, load, pick_backend
from kernels.cpu import amx
from kernels.heads import HEADS
from kernels.local import pick_local_backend
from kernels.step import adapter_steps
from tests.kernels.test_adapter_step import batches_of, draw, settings
from tests.naive import steps as naive

CPU = torch.device("cpu")
with_amx = pytest.mark.skipif(bool(amx.why_not()), reason=f"{BF16} {amx.why_not()}")
FLAGS = ",".join(amx.NEEDED)
SHAPES = [  # lanes, steps, batch, width, classes
    (1, 1, 2, 32, 1),
    (2, 3, 21, 64, 7),
    (2, 2, 33, 96, 65),
    (1, 2, 70, 160, 5),
]


@with_amx
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_equal_the_twin_with_rounded_factors(shape, scale):
    adapters, features, labels, text, rows = draw(*shape)
    options = settings(shape[0])
    ours = AdapterState(*(w.clone() for w in adapters))
    losses = adapter_steps(
        ours, features, labels, text, rows, options, logit_scale=scale, backend=BF16
    )
    for lane in range(shape[0]):
        batches = batches_of(rows, lane)
        options_of_lane = [float(v[lane]) for v in options]
        start = [w[lane].numpy().astype(float) for w in adapters]
        table = features.numpy().astype(float), labels.numpy(), text.numpy().astype(float), scale
        truth, truth_losses = naive.train(
            start, batches, *table, *options_of_lane, cut=naive.bfloat16
        )
        exact, _ = naive.train(start, batches, *table, *options_of_lane)
        mine = [w[lane].numpy() for w in ours]
        path = options_of_lane[0] * len(batches)
        # A factor within float32's rounding of a tie goes to the other neighbour: few weights.
        errors = np.concatenate([abs(a - b).ravel() for a, b in zip(mine, truth, strict=True)])
        apart = np.concatenate([abs(a - b).ravel() for a, b in zip(exact, truth, strict=True)])
        assert np.quantile(errors, 0.95) <= 1e-3 * path + np.finfo(np.float32).eps
        assert errors.mean() < apart.mean() / 4 or apart.mean() < 1e-6
        np.testing.assert_allclose(losses[: len(batches), lane], truth_losses, rtol=2e-4, atol=2e-4)
        assert not losses[len(batches) :, lane].any()


@with_amx
def test_same_bytes_again_and_lanes_do_not_touch_each_other():
    adapters, features, labels, text, rows = draw(3, 3, 21, 64, 7)

    def run(poison=False):
        state = AdapterState(*(w.clone() for w in adapters))
        if poison:
            state.w1[2] = float("nan")
        losses = adapter_steps(
            state, features, labels, text, rows, settings(3), logit_scale=100, backend=BF16
        )
        return state, losses

    (first, losses), (second, _), (poisoned, seen) = run(), run(), run(poison=True)
    for a, b, c in zip(first, second, poisoned, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[:2], c[:2])
    assert losses.isfinite().all() and seen[:2, 2].isnan().all()
    assert all(w[2].isnan().all() for w in (poisoned.w1, poisoned.w2))


@with_amx
def test_what_else_a_run_computes_is_numba_s():
    for op in ("answers", "local", "contrastive"):
        assert load(op, BF16, CPU) is load(op, "numba", CPU)
    assert load("step", BF16, CPU) is not load("step", "numba", CPU)


def test_auto_never_picks_it_and_it_is_refused_where_it_cannot_run(monkeypatch):
    assert pick_backend("auto", CPU) == "numba"
    with pytest.raises(BackendUnavailable, match="not available on cuda"):
        pick_backend(BF16, torch.device("cuda"))
    monkeypatch.setattr(amx, "why_not", lambda: "needs a processor with AMX")
    with pytest.raises(BackendUnavailable, match="AMX; .* --backend auto to use 'numba'"):
        pick_backend(BF16, CPU)
    monkeypatch.setattr(amx, "why_not", lambda: "")
    assert pick_backend(BF16, CPU) == BF16
    assert pick_local_backend(BF16, CPU, plain=False, width=96) == BF16
    with pytest.raises(BackendUnavailable, match="only the released step on cpu"):
        pick_local_backend(BF16, CPU, plain=True)
    with pytest.raises(BackendUnavailable, match="multiple of 32, not 100"):
        pick_local_backend(BF16, CPU, plain=False, width=100)
    for head in HEADS.values():
        if head.numba is None:
            with pytest.raises(BackendUnavailable, match="no compiled code for head"):
                pick_local_backend(BF16, CPU, False, head)


@pytest.mark.parametrize(
    ("features", "system", "granted", "why"),
    [
        (FLAGS, "Linux", True, ""),
        (FLAGS.replace("+amx-bf16", "-amx-bf16"), "Linux", True, "processor with AMX"),
        ("+avx2", "Linux", True, "processor with AMX"),
        (FLAGS, "Darwin", True, "runs on Linux only, not on Darwin"),
        (FLAGS, "Linux", False, "Linux 5.16"),
    ],
)
def test_why_a_machine_cannot(features, system, granted, why, monkeypatch):
    monkeypatch.setattr(amx.config, "CPU_FEATURES", features)
    monkeypatch.setattr(amx.platform, "system", lambda: system)
    monkeypatch.setattr(amx, "_granted", lambda: granted)
    found = amx.why_not.__wrapped__()
    assert why in found and bool(found) == bool(why)


def test_the_twin_s_rounding_is_torch_s():
    x = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    x[:4] = 1 + 1 / 256, 1 + 3 / 256, -1 - 1 / 256, 0  # ties, to even
    assert (naive.bfloat16(x) == torch.from_numpy(x).bfloat16().float().numpy()).all()
