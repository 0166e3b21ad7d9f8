"""Training steps against float64 twins: an error at most twice plain float32 torch's own."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from kernels.adapter import AdamSettings, AdapterState
from kernels.answers.top1 import adapter_top1
from kernels.backends import BACKENDS as BY_DEVICE
from kernels.backends import BackendUnavailable, pick_backend, pick_device
from kernels.step import adapter_steps
from tests.naive import steps as naive

BACKENDS = BY_DEVICE["cpu"]  # with triton where its interpreter runs: tests/test_triton_interpreter
SHAPES = [  # lanes, steps, batch, width, classes
    (1, 1, 2, 8, 1),
    (2, 2, 21, 64, 7),
    (3, 3, 32, 33, 65),
    (2, 2, 5, 48, 345),
]


def draw(lanes, steps, batch, width, classes, *, seed=0, rows=200):
    """Adapters, features, labels, unit text and ragged rows; some classes are never drawn."""
    rng = np.random.default_rng(seed)
    bound = width**-0.5

    def uniform(*shape):
        return torch.from_numpy(rng.uniform(-bound, bound, (lanes, *shape)).astype(np.float32))

    adapters = AdapterState(
        uniform(width, width), uniform(width), uniform(width, width), uniform(width)
    )
    features = torch.from_numpy(
        (rng.normal(size=(rows, width)) * 10 / width**0.5).astype(np.float32)
    )
    labels = torch.from_numpy(rng.integers(0, max(1, classes - classes // 3), rows))
    text = normalize(torch.from_numpy(rng.normal(size=(classes, width)).astype(np.float32)), dim=1)
    table = torch.full((steps, lanes, batch), -1, dtype=torch.int32)
    for lane in range(lanes):
        for step in range(steps - lane % 2 if steps > 1 else steps):
            last = step == steps - 1 - lane % 2
            size = max(min(2, batch), batch - 3 * lane) if last else batch
            table[step, lane, :size] = torch.from_numpy(rng.integers(0, rows, size))
    order = (table[:, :, 0] >= 0).sum(dim=0).argsort(descending=True, stable=True)
    return adapters, features, labels, text, table[:, order]


def on(device, adapters, *others):
    """The same on a device: adapters and tensors."""
    return AdapterState(*(w.to(device) for w in adapters)), *(v.to(device) for v in others)


def settings(lanes):
    """Each lane another optimizer."""

    def values(start, step):
        return torch.tensor([start + step * lane for lane in range(lanes)], dtype=torch.float64)

    return AdamSettings(
        lr=values(1e-3, 5e-4),
        weight_decay=values(0.2, -0.05),
        beta1=values(0.9, -0.1),
        beta2=values(0.98, 0.005),
        eps=values(1e-6, 1e-6),
    )


def batches_of(rows, lane):
    return [part[part >= 0].numpy() for part in rows[:, lane] if part[0] >= 0]


def plain_torch(adapters, lane, batches, features, labels, text, options, scale):
    """What the released loop does: autograd, B x B logits, torch.optim.Adam."""
    weights = [w[lane].clone().requires_grad_() for w in adapters]
    lr, decay, beta1, beta2, eps = (float(v[lane]) for v in options)
    adam = torch.optim.Adam(weights, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    for rows in batches:
        x, t = features[rows], text[labels[rows]]
        w1, b1, w2, b2 = weights
        scores = torch.tanh(x @ w1.T + b1) @ w2.T + b2
        logits = scale * normalize(scores.softmax(dim=1) * x, dim=1) @ t.T
        here = torch.arange(len(x), device=x.device)
        loss = (cross_entropy(logits, here) + cross_entropy(logits.T, here)) / 2
        adam.zero_grad()
        loss.backward()
        adam.step()
    return [w.detach().cpu().numpy() for w in weights]


def assert_as_near(mine, theirs, truth, path):
    """Errors at most twice `theirs`, and a thousandth of `path`, lr by steps; lists of arrays.

    This holds for 99.9 % of the elements together. Adam divides a gradient by its own size, so one
    that is near 0 turns any rounding into a part of lr: the largest error is chance, and it may be
    a tenth of `path`. A wrong gradient moves its element by more than that.
    """
    errors, budgets = (
        np.concatenate([abs(a - b).ravel() for a, b in zip(found, truth, strict=True)])
        for found in (mine, theirs)
    )
    for share, room in ((0.999, 1e-3), (1.0, 0.1)):
        error, budget = (np.quantile(v, share) for v in (errors, budgets))
        assert error <= 2 * budget + room * path + np.finfo(np.float32).eps


def assert_as_exact_as_plain_torch(shape, scale, backend, device="cpu"):
    *drawn, rows = draw(*shape)
    adapters, features, labels, text = on(device, *drawn)
    options = settings(shape[0])
    ours = AdapterState(*(w.clone() for w in adapters))
    losses = adapter_steps(
        ours, features, labels, text, rows, options, logit_scale=scale, backend=backend
    )
    for lane in range(shape[0]):
        batches = batches_of(rows, lane)
        lr, decay, beta1, beta2, eps = (float(v[lane]) for v in options)
        start = [w[lane].cpu().numpy().astype(float) for w in adapters]
        truth, truth_losses = naive.train(
            start, batches, features.cpu().numpy().astype(float), labels.cpu().numpy(),
            text.cpu().numpy().astype(float), scale, lr, decay, beta1, beta2, eps,
        )  # fmt: skip
        plain = plain_torch(adapters, lane, batches, features, labels, text, options, scale)
        mine = [w[lane].cpu().numpy() for w in ours]
        assert_as_near(mine, plain, truth, lr * len(batches))
        found = losses[: len(batches), lane].cpu()
        np.testing.assert_allclose(found, truth_losses, rtol=2e-4, atol=2e-5)
        assert not losses[len(batches) :, lane].any()


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
