"""Training steps against float64 twins: an error at most twice plain float32 torch's own."""

import numpy as np
import pytest
import torch

from kernels.adapter import AdapterState
from kernels.answers.top1 import adapter_top1
from kernels.backends import BACKENDS as BY_DEVICE
from kernels.backends import BackendUnavailable, pick_backend, pick_device
from kernels.step import adapter_steps
from tests.kernels.steps import (
    BACKENDS,
    SHAPES,
    assert_as_exact_as_plain_torch,
    assert_as_near,
    batches_of,
    draw,
    settings,
)
from tests.naive import steps as naive


def test_what_adam_amplifies_passes_and_a_wrong_element_does_not():
    truth = [np.zeros((64, 64)), np.zeros(64)]
    near = [np.full(w.shape, 1e-8) for w in truth]
    lr = 1e-3
    mine = [w.copy() for w in near]
    mine[0][5, 3] = 0.05 * lr  # of a gradient near 0
    assert_as_near(mine, near, truth, lr)
    for at, wrong in ((np.s_[5, 3], lr), (np.s_[5, :5], 0.05 * lr)):
        mine[0][at] = wrong
        with pytest.raises(AssertionError):
            assert_as_near(mine, near, truth, lr)
        mine[0][5] = 1e-8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_as_exact_as_plain_torch(shape, scale, backend):
    assert_as_exact_as_plain_torch(shape, scale, backend)


def test_the_twin_s_gradient_is_the_slope_of_its_loss():
    adapters, features, labels, text, rows = draw(1, 1, 6, 5, 4)
    weights = [w[0].numpy().astype(float) for w in adapters]
    batch = batches_of(rows, 0)[0]
    x, y, t = (
        features.numpy()[batch].astype(float),
        labels.numpy()[batch],
        text.numpy().astype(float),
    )
    for which, gradient in enumerate(naive.adapter_gradients(weights, x, y, t, 14.3)):
        for at in np.ndindex(gradient.shape):
            moved = [[w.copy() for w in weights] for _ in range(2)]
            moved[0][which][at] += 1e-5
            moved[1][which][at] -= 1e-5
            up, down = (naive.adapter_loss(w, x, y, t, 14.3) for w in moved)
            assert abs((up - down) / 2e-5 - gradient[at]) < 1e-7


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bytes_again_and_lanes_do_not_touch_each_other(backend):
    adapters, features, labels, text, rows = draw(3, 3, 21, 64, 7)

    def run(poison=False):
        state = AdapterState(*(w.clone() for w in adapters))
        if poison:
            state.w1[2] = float("nan")
        adapter_steps(
            state, features, labels, text, rows, settings(3), logit_scale=100, backend=backend
        )
        return state

    first, second, poisoned = run(), run(), run(poison=True)
    for a, b, c in zip(first, second, poisoned, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[:2], c[:2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_features_and_a_batch_of_one_class_stay_finite(backend):
    adapters, features, labels, text, rows = draw(2, 2, 21, 16, 5)
    features[:50] = 0
    labels[:] = 3
    losses = adapter_steps(
        adapters, features, labels, text, rows, settings(2), logit_scale=100, backend=backend
    )
    assert losses.isfinite().all() and all(w.isfinite().all() for w in adapters)


@pytest.mark.parametrize("backend", BACKENDS)
def test_top1_equals_the_twin(backend):
    adapters, features, _, text, _ = draw(3, 1, 2, 33, 65)
    rows = [torch.arange(200), torch.empty(0, dtype=torch.int64), torch.tensor([5, 5, 0])]
    answers = adapter_top1(adapters, features, text, rows, backend=backend)
    for a, (asked, found) in enumerate(zip(rows, answers, strict=True)):
        weights = [w[a].numpy().astype(float) for w in adapters]
        x = features.numpy()[asked].astype(float)
        wanted = naive.top1(weights, x, text.numpy().astype(float))
        np.testing.assert_array_equal(found, wanted)


def test_arguments_that_do_not_fit_are_refused():
    adapters, features, labels, text, rows = draw(2, 2, 5, 8, 3)

    def step(**changed):
        given = dict(adapters=adapters, features=features, labels=labels, unit_text=text, rows=rows,
                     settings=settings(2), logit_scale=100.0)  # fmt: skip
        adapter_steps(**(given | changed))

    with pytest.raises(ValueError, match="w1 must be"):
        step(adapters=AdapterState(*(w[:1] for w in adapters)))
    with pytest.raises(ValueError, match="unit_text is"):
        step(unit_text=text[:, :4])
    with pytest.raises(ValueError, match="one value for each of 2 lanes"):
        step(settings=settings(3))
    with pytest.raises(ValueError, match="there are 200"):
        step(rows=torch.full_like(rows, 200))
    with pytest.raises(ValueError, match="must come first"):
        step(rows=rows.flip(1))
    with pytest.raises(ValueError, match="rows of adapter 0 reach"):
        adapter_top1(adapters, features, text, [torch.tensor([200]), torch.tensor([0])])


def test_backends_and_devices_say_what_there_is():
    cpu = torch.device("cpu")
    assert pick_backend("auto", cpu) in BACKENDS
    with pytest.raises(BackendUnavailable, match="choose from numba, torch"):
        pick_backend("triton", cpu)
    assert BY_DEVICE["cuda"] == ("triton", "torch")
    with pytest.raises(BackendUnavailable, match="there are auto, cuda, cpu"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="sees no CUDA device"):
            pick_device("cuda")
