"""The contrastive loss and its gradients against float64, every backend by the same measure."""

import math

import pytest
import torch

from kernels.backends import BACKENDS as BY_DEVICE
from kernels.contrastive import contrastive
from kernels.contrastive import cpu as contrastive_numba
from tests.kernels.pairs import COUNTS, assert_as_exact_as_torch, assert_exact, ours, pairs, plain
from tests.naive import steps as naive

BACKENDS = BY_DEVICE["cpu"]  # with triton where its interpreter runs: tests/test_triton_interpreter


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("count", COUNTS)
def test_loss_and_gradients_are_as_exact_as_plain_torch(count, scale, backend):
    width = {1: 64, 2: 500, 31: 512, 33: 33, 127: 640, 129: 768, 1000: 64}[count]
    image, text = (v.float().double() for v in pairs(count, width))
    truth = assert_exact(image, text, scale, backend)
    assert math.isclose(
        truth[0], naive.contrastive_loss(image.numpy(), text.numpy(), scale), abs_tol=1e-9
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(1e-12, 1e12), (3e4, 7e-6), (1e-30, 1.0)], ids=str)
def test_operands_of_any_size_and_rows_of_any_length(backend, sizes):
    """What a backend scales by itself (float16 parts on a GPU) must not show."""
    image, text = (v * size for v, size in zip(pairs(70, 40), sizes, strict=True))
    image = image * torch.logspace(-4, 0, 70, dtype=torch.float64)[:, None]
    image, text = image.float().double(), text.float().double()
    scale = 30.0 / float((image @ text.T).abs().max())
    truth = plain(image, text, scale, torch.float64)
    found, theirs = ours(image, text, scale, backend), plain(image, text, scale, torch.float32)
    for mine, other, true in zip(found[:3], theirs, truth, strict=False):
        error, budget = (float((v - true).abs().max() / true.abs().max()) for v in (mine, other))
        assert error <= 2 * budget + 4e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("zero", ["image", "text", "both"])
def test_features_of_zeros_give_the_uniform_loss(backend, zero):
    image, text = (v.float() for v in pairs(9, 16))
    image = image * 0 if zero != "text" else image
    text = text * 0 if zero != "image" else text
    loss, d_image, d_text, _ = ours(image, text, 5.0, backend)
    assert math.isclose(float(loss), math.log(9), rel_tol=1e-6)
    assert d_image.isfinite().all() and d_text.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_orthogonal_features_do_not_underflow(backend):
    # With a fixed maximum of the scale, exp(z - 100) of cosines near 0 vanishes in float32.
    eye = torch.eye(40, 64, dtype=torch.float64)
    image, text = eye, eye.roll(7, dims=0)
    truth = plain(image, text, 100.0, torch.float64)
    found = ours(image, text, 100.0, backend)
    assert_as_exact_as_torch(found, plain(image, text, 100.0, torch.float32), truth, 100.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_bytes_again_whatever_the_threads(backend):
    image, text = pairs(600, 48)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (threads, threads, 1, 3):
            torch.set_num_threads(count)
            runs.append(ours(image, text, 30.0, backend))
    finally:
        torch.set_num_threads(threads)
    same = runs[:2] if backend == "torch" else runs  # torch's own products depend on its threads
    for again in same[1:]:
        assert all(torch.equal(a, b) for a, b in zip(same[0], again, strict=True))


@pytest.mark.parametrize("size", [1, 7, 64, 150])
def test_numba_is_right_at_any_block_size(size, monkeypatch):
    """Many blocks at a count that a test can afford."""
    image, text = (v.float() for v in pairs(150, 24))
    truth = plain(image.double(), text.double(), 20.0, torch.float64)
    monkeypatch.setattr(contrastive_numba, "BLOCK", size)
    monkeypatch.setattr(contrastive_numba, "LEAST_BLOCK", 1)
    found = ours(image, text, 20.0, "numba")
    assert_as_exact_as_torch(found, plain(image, text, 20.0, torch.float32), truth, 20.0)


@pytest.mark.parametrize("count", [1, 64, 129, 300])
def test_logits_kept_or_made_again_give_the_same_bytes(count):
    """On either side of the bound, and again for a second backward of the same graph."""
    image, text = (v.float() for v in pairs(count, 40))
    block = contrastive_numba._block(count)
    needed = 4 * (-(-count // block) * block) ** 2
    found = []
    for memory, kept in ((needed, True), (needed - 1, False), (0, False)):
        row = contrastive_numba.forward(image, text, 30.0, "exact", memory)[1]
        assert row.nbytes == kept * needed + 2 * 4 * count
        x, y = (v.clone().requires_grad_() for v in (image, text))
        loss = contrastive(x, y, 30.0, backend="numba", memory=memory)
        first = torch.autograd.grad(loss, (x, y), retain_graph=True)
        found += [(loss, *first), (loss, *torch.autograd.grad(loss, (x, y)))]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_gradcheck_in_float64():
    image, text = (v.requires_grad_() for v in pairs(6, 5))
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *given: contrastive(*given, backend="torch"), (image, text, scale)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_get_gradients_of_their_own_dtype(backend, dtype):
    image, text = (v.to(dtype) for v in pairs(20, 16))
    truth = plain(image.double(), text.double(), 10.0, torch.float64)
    image.requires_grad_()
    loss = contrastive(image, text, 10.0, precision="fast", backend=backend)
    loss.backward()
    assert loss.dtype == torch.float32 and image.grad.dtype == dtype and text.grad is None
    operands = torch.bfloat16 if backend == "triton" else dtype
    assert (image.grad.double() - truth[1]).abs().max() <= 2 * torch.finfo(operands).eps


@pytest.mark.parametrize("backend", BACKENDS)
def test_upstream_gradients_and_views_are_honoured(backend):
    image, text = (v.float() for v in pairs(12, 8))
    wide = torch.zeros(12, 16)
    wide[:, ::2] = image
    x = wide[:, ::2].requires_grad_()
    (3 * contrastive(x, text, 5.0, backend=backend)).backward()
    _, by_image, _, _ = plain(image.double(), text.double(), 5.0, torch.float64)
    torch.testing.assert_close(x.grad.double(), 3 * by_image, rtol=1e-4, atol=1e-6)


def test_arguments_that_do_not_fit_are_refused():
    image, text = (v.float() for v in pairs(4, 3))
    for bad, match in [
        (dict(text=text[:3]), "of one shape"),
        (dict(image=image[:0], text=text[:0]), "at least 1"),
        (dict(text=text.double()), "one dtype"),
        (dict(precision="sloppy"), "exact, fast"),
        (dict(logit_scale=torch.ones(2)), "2 values"),
        (dict(logit_scale=float("inf")), "finite"),
        (dict(image=image.double(), text=text.double(), backend="numba"), "float32"),
    ]:
        with pytest.raises(ValueError, match=match):
            contrastive(**{"image": image, "text": text, "logit_scale": 1.0, **bad})
