"""Training steps and answers at every width, batch and number of classes, by the same measure."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from kernels.adapter import AdapterState
from kernels.answers.top1 import adapter_top1
from kernels.step import adapter_steps
from kernels.step import plain as adapter_step_torch
from tests.kernels.steps import BACKENDS, batches_of, draw, plain_torch, settings
from tests.naive import steps as naive

SIZES = [  # batch, width, classes: 2 of 3 classes are drawn, so some are absent
    (1, 64, 3),
    (2, 500, 345),
    (21, 512, 1),
    (5, 640, 7),
    (32, 64, 345),
    (33, 100, 7),
    (9, 768, 65),
    (70, 65, 40),
    (3, 1024, 7),
]


def as_views(adapters):
    """The same weights as views into rows (L, P), whose stride is larger than D * D."""
    lanes = len(adapters.b1)
    rows = torch.cat([weight.reshape(lanes, -1) for weight in adapters], dim=1)
    cut = rows.split([weight[0].numel() for weight in adapters], dim=1)
    return AdapterState(*(c.view_as(w) for c, w in zip(cut, adapters, strict=True)))


def assert_steps_as_exact_as_plain_torch(given, scale, backend):
    """One lane; an error at most twice plain float32 torch's, in every array."""
    adapters, features, labels, text, rows = given
    ours = as_views(adapters)
    losses = adapter_steps(
        ours, features, labels, text, rows, settings(1), logit_scale=scale, backend=backend
    )
    batches = batches_of(rows, 0)
    options = [float(v[0]) for v in settings(1)]
    truth, truth_losses = naive.train(
        [w[0].numpy().astype(float) for w in adapters], batches, features.numpy().astype(float),
        labels.numpy(), text.numpy().astype(float), scale, *options,
    )  # fmt: skip
    plain = plain_torch(adapters, 0, batches, features, labels, text, settings(1), scale)
    for mine, theirs, true in zip(ours, plain, truth, strict=True):
        error, budget = abs(mine[0].numpy() - true), abs(theirs - true)
        # Adam divides an element's gradient by its own size: where that is near 0 any float32 code
        # is off by a part of lr, and which elements those are is chance. So: 99 of 100 elements.
        allowed = 2 * np.quantile(budget, 0.99) + np.finfo(np.float32).eps / 4
        assert np.quantile(error, 0.99) <= allowed
        assert error.max() <= 2 * budget.max() + 0.1 * options[0]
    np.testing.assert_allclose(losses[:, 0], truth_losses, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size_is_as_exact_as_plain_torch(size, backend):
    batch, width, classes = size
    given = draw(1, 2 if width < 500 else 1, max(batch, 2), width, classes, seed=batch)
    given[-1][:, :, batch:] = -1
    if classes == 7:
        given[2][:] = 3  # all rows of one class
    assert_steps_as_exact_as_plain_torch(given, 100.0, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_features_at_right_angles_to_all_text_do_not_underflow(scale, backend):
    adapters, features, labels, text, rows = draw(1, 2, 21, 64, 7)
    eye = torch.eye(64)
    features = 5 * eye[:50].repeat(4, 1)
    assert_steps_as_exact_as_plain_torch(
        (adapters, features, labels, eye[57:].clone(), rows), scale, backend
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("count", "width"), [(1, 64), (31, 100), (33, 640), (300, 17)])
def test_answers_at_any_size(count, width, backend):
    adapters, features, _, text, _ = draw(2, 1, 2, width, 345, rows=max(count, 40))
    rows = [torch.arange(count), torch.arange(min(count, 40))]
    answers = adapter_top1(as_views(adapters), features, text, rows, backend=backend)
    for a, (asked, found) in enumerate(zip(rows, answers, strict=True)):
        weights = [w[a].numpy().astype(float) for w in adapters]
        x, t = features.numpy()[asked.numpy()].astype(float), text.numpy().astype(float)
        wanted = naive.top1(weights, x, t)
        cosines = naive.gate(x, naive.adapter_scores(weights, x)) @ t.T
        here = np.arange(len(x))
        # Two classes whose cosines agree to float32 may stand either way.
        assert (cosines[here, wanted] - cosines[here, found.numpy()]).max() < 1e-6
        assert (found.numpy() != wanted).mean() < 0.01


def test_numba_gives_the_same_bytes_for_any_number_of_threads_and_lanes():
    adapters, features, labels, text, rows = draw(4, 3, 21, 48, 7)
    threads = torch.get_num_threads()

    def run(lanes, count):
        torch.set_num_threads(count)
        state = AdapterState(*(w[lanes].clone() for w in adapters))
        options = type(settings(4))(*(v[lanes] for v in settings(4)))
        found = adapter_steps(state, features, labels, text, rows[:, lanes], options,
                              logit_scale=100.0, backend="numba")  # fmt: skip
        asked = [torch.arange(150)] * len(state.b1)
        answers = adapter_top1(state, features, text, asked, backend="numba")
        return state, found, answers

    try:
        whole, losses, answers = run(slice(None), 1)
        for lanes, count in ((slice(None), 2), (slice(None), 7), (slice(1, 3), 2)):
            state, found, told = run(lanes, count)
            for a, b in zip(whole, state, strict=True):
                assert torch.equal(a[lanes], b)
            assert torch.equal(losses[:, lanes], found)
            assert all(torch.equal(a, b) for a, b in zip(answers[lanes], told, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_numba_gives_the_same_bytes_wherever_memory_falls():
    """A loop that sums and stores would test how far apart two arrays happen to lie."""
    adapters, features, labels, text, rows = draw(4, 4, 8, 64, 4)
    found, junk = set(), []
    for turn in range(25):
        state = AdapterState(*(w.clone() for w in adapters))
        junk.append(np.empty(37 * turn + 5, np.float32))
        losses = adapter_steps(
            state, features, labels, text, rows, settings(4), logit_scale=100.0, backend="numba"
        )
        found.add(b"".join(w.numpy().tobytes() for w in (*state, losses)))
    assert len(found) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_learning_rate_of_10_shows_in_the_numbers(backend):
    adapters, features, labels, text, rows = draw(1, 60, 21, 48, 7)
    wild = settings(1)._replace(lr=torch.tensor([1e38], dtype=torch.float64))
    losses = adapter_steps(
        adapters, features, labels, text, rows, wild, logit_scale=100.0, backend=backend
    )
    assert not all(w.isfinite().all() for w in adapters) or not losses.isfinite().all()


def test_gradcheck_of_the_torch_step_in_float64():
    adapters, features, labels, text, rows = draw(2, 1, 4, 5, 3)
    adapters = AdapterState(*(w.double().requires_grad_() for w in adapters))
    features, text, at = features.double(), normalize(text.double(), dim=1), rows[0].long()

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(context, *weights):
            state = AdapterState(*(w.detach() for w in weights))
            loss, gradients = adapter_step_torch._gradients(state, features, labels, text, at, 14.3)
            context.save_for_backward(*gradients)
            return loss

        @staticmethod
        def backward(context, upstream):
            each = context.saved_tensors
            return tuple(g * upstream.view(-1, *(1,) * (g.ndim - 1)) for g in each)

    assert torch.autograd.gradcheck(Loss.apply, tuple(adapters))
