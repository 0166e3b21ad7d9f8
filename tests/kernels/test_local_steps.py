"""Heads, losses and optimizers of local training, against twins and torch.optim."""

import numpy as np
import pytest
import torch

from kernels.answers import confidences, top1, unit_features
from kernels.backends import BackendUnavailable
from kernels.heads import HEADS
from kernels.heads.plain import Kind, as_rows, first_row, named, shapes, size
from kernels.local import Moments, Pull, Settings, Work, local_steps, pick_local_backend
from kernels.local.plain import losses_of
from kernels.names import LOSSES, MODES, OPTIMIZERS
from tests.naive import heads as naive_heads

KINDS = [
    (mode, name)
    for mode in MODES
    for name, head in HEADS.items()
    if not head.refuse(mode, "default")
]  # fmt: skip
SCALE = 14.3
BACKENDS = ("numba", "torch")
RUNS = [
    (mode, name, backend)
    for mode, name in KINDS
    for backend in BACKENDS
    if backend == "torch" or HEADS[name].numba is not None
]


def draw(mode, head, *, classes=4, width=8, lanes=1, rows=30, seed=0):
    """A kind, adapters at random places, features, labels (the last class never), text."""
    rng = np.random.default_rng(seed)
    kind = Kind(mode, head, width, classes, rank=3)
    adapters = torch.from_numpy(rng.normal(size=(lanes, size(kind))) / width**0.5)
    features = torch.from_numpy(rng.normal(size=(rows, width)) * 3)
    labels = torch.from_numpy(rng.integers(0, max(1, classes - 1), rows))
    text = torch.from_numpy(rng.normal(size=(classes, width)) * 2)
    return kind, adapters, features, labels, text


def twin(kind, row, x, labels, text, loss):
    parts = {name: part.numpy() for name, part in named(kind, row).items()}
    z = naive_heads.logits(kind.mode, kind.head, parts, x.numpy(), text.numpy(), SCALE)
    return naive_heads.batch_loss(loss, z, labels.tolist())


def settings(lanes, **changed) -> Settings:
    given = {"lr": 1e-2, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-6,
             "momentum": 0.8, "mu": 0.0} | changed  # fmt: skip
    return Settings(**{n: torch.full((lanes,), v, dtype=torch.float64) for n, v in given.items()})


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("classes", [1, 4, 40])
@pytest.mark.parametrize(("mode", "head"), KINDS)
def test_losses_equal_the_twin_and_their_gradients_its_slopes(mode, head, classes, loss):
    kind, adapters, features, labels, text = draw(mode, head, classes=classes, width=5)
    rows = torch.tensor([[3, 9, 9, 20, 11, 7, -1, -1]])
    asked = rows[0, :6]
    work = Work(kind, loss)
    adapters.requires_grad_()
    found = losses_of(work, adapters, features, labels, text, rows, SCALE)
    (gradient,) = torch.autograd.grad(found.sum(), adapters)
    row = adapters.detach()[0]
    arguments = features[asked], labels[asked], text, loss
    assert found.item() == pytest.approx(twin(kind, row, *arguments), rel=1e-9, abs=1e-12)
    rng = np.random.default_rng(1)
    for at in rng.permutation(len(row))[:25]:
        moved = row.clone(), row.clone()
        moved[0][at] += 1e-5
        moved[1][at] -= 1e-5
        up, down = (twin(kind, m, *arguments) for m in moved)
        assert (up - down) / 2e-5 == pytest.approx(gradient[0, at].item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kept", [False, True])
def test_optimizers_step_as_torch_optim_does(optimizer, kept, backend):
    kind, adapters, features, labels, text = (
        v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for v in draw("FedAtBoth", "linear", lanes=2)
    )
    work = Work(kind, "class", optimizer)
    draws = torch.Generator().manual_seed(0)
    rows = torch.randint(30, (3, 2, 6), generator=draws, dtype=torch.int32)
    rows[2, 1] = -1  # the second lane has a step less
    eps = 1e-3  # beside 1e-6 Adam turns the rounding of a gradient near 0 into a step
    ours = adapters.clone()
    moments = Moments(torch.zeros_like(ours), torch.zeros_like(ours), torch.zeros(2).long())
    for part in rows.split(1) if kept else [rows]:  # in one call, or a call a step that remembers
        local_steps(
            work, ours, features, labels, text, text, part, settings(2, eps=eps),
            logit_scale=SCALE, moments=moments if kept else None, backend=backend,
        )  # fmt: skip
    assert moments.steps.tolist() == ([3, 2] if kept else [0, 0])
    for lane, steps in enumerate((3, 2)):
        weights = adapters[lane : lane + 1].clone().requires_grad_()
        adam = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": eps, "weight_decay": 0.1}
        theirs = {
            "adam": lambda w: torch.optim.Adam([w], **adam),  # noqa: B023
            "adamw": lambda w: torch.optim.AdamW([w], **adam),  # noqa: B023
            "sgd": lambda w: torch.optim.SGD([w], lr=1e-2, momentum=0.8, weight_decay=0.1),
        }[optimizer](weights)
        for step in range(steps):
            theirs.zero_grad()
            losses_of(
                work, weights, features, labels, text, rows[step, lane : lane + 1].long(), SCALE
            ).sum().backward()
            theirs.step()
        torch.testing.assert_close(ours[lane], weights.detach()[0], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pull_adds_the_proximal_term_and_the_shift(backend):
    kind, adapters, features, labels, text = (
        v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for v in draw("FedAtImg", "low-rank")
    )
    work, rows = Work(kind, "class", "sgd"), torch.arange(6, dtype=torch.int32).view(1, 1, 6)
    plain = settings(1, weight_decay=0.0, momentum=0.0, mu=0.5)
    anchor, shift = torch.randn_like(adapters), torch.randn_like(adapters)

    def stepped(pull):
        moved = adapters.clone()
        local_steps(work, moved, features, labels, text, text, rows, plain, logit_scale=SCALE,
                    pull=pull, backend=backend)  # fmt: skip
        return moved

    wanted = stepped(Pull()) - 1e-2 * (0.5 * (adapters - anchor) + shift)
    torch.testing.assert_close(stepped(Pull(anchor, shift)), wanted)


@pytest.mark.parametrize(("mode", "head", "backend"), RUNS)
def test_a_lane_among_others_equals_the_lane_alone_bit_for_bit(mode, head, backend):
    kind, adapters, features, labels, text = (
        v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for v in draw(mode, head, lanes=5, width=33, classes=12, rows=90)
    )
    work = Work(kind, "multi-positive")
    rows = torch.randint(90, (4, 5, 21), dtype=torch.int32)
    unit = torch.nn.functional.normalize(text, dim=1)

    def trained(lanes):
        some = adapters[lanes].clone()
        local_steps(work, some, features, labels, text, unit, rows[:, lanes],
                    settings(len(lanes)), logit_scale=SCALE, backend=backend)  # fmt: skip
        return some

    together = trained([0, 1, 2, 3, 4])
    assert torch.equal(together, trained([0, 1, 2, 3, 4]))
    for lane in range(5):
        assert torch.equal(together[lane], trained([lane])[0])


@pytest.mark.parametrize(("mode", "head"), KINDS)
def test_answers_equal_the_twin(mode, head):
    kind, adapters, features, labels, text = (
        v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for v in draw(mode, head, classes=12, lanes=2)
    )
    unit = torch.nn.functional.normalize(text, dim=1)
    asked = [torch.arange(30), torch.tensor([4, 4, 0])]
    answers = top1(kind, adapters, features, text, unit, asked)
    for a, rows in enumerate(asked):
        parts = {n: p[a].double().numpy() for n, p in named(kind, adapters).items()}
        x = features[rows].double().numpy()
        z = naive_heads.logits(mode, head, parts, x, text.double().numpy(), SCALE)
        np.testing.assert_array_equal(answers[a], z.argmax(axis=1))
        sure = np.exp(z - z.max(axis=1, keepdims=True))
        np.testing.assert_allclose(
            confidences(kind, adapters[a], features, text, rows, SCALE)[0],
            1 / sure.sum(axis=1), rtol=2e-4,
        )  # fmt: skip
        lengths = unit_features(kind, adapters[a], features, rows).norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(len(rows)))
    none = top1(kind, adapters[:1], features, text, unit, [torch.empty(0, dtype=torch.int64)])
    assert none[0].shape == (0,)


@pytest.mark.parametrize(
    ("mode", "head"),
    [(mode, name) for mode, name in KINDS if not HEADS[name].refuse(mode, "identity")],
)
def test_identity_starts_exactly_at_zero_shot(mode, head):
    _, _, features, _, text = draw(mode, head, classes=12)
    features, text = features.float(), text.float()
    kind = Kind(mode, head, 8, 12, rank=3)
    row = first_row(kind, "identity", 0, text)
    unit = torch.nn.functional.normalize(text, dim=1)
    (answers,) = top1(kind, row[None], features, text, unit, [torch.arange(30)])
    assert torch.equal(answers, (features @ unit.mT).argmax(dim=1))
    plain = torch.nn.functional.normalize(features, dim=1)
    torch.testing.assert_close(unit_features(kind, row, features, torch.arange(30)), plain)


def test_rows_and_parts_are_two_views_of_the_same_numbers():
    kind = Kind("FedAtBoth", "attention", 6, 3)
    row = first_row(kind, "default", 3, torch.ones(3, 6))
    parts = named(kind, row[None])
    assert {n: tuple(p.shape[1:]) for n, p in parts.items()} == shapes(kind)
    assert torch.equal(as_rows(kind, parts)[0], row) and parts["w1"].data_ptr() == row.data_ptr()
    assert row.abs().max() <= 6**-0.5 and row.unique().numel() > 80
    with pytest.raises(ValueError, match=r"text_w2 of shape \(6, 6\); got nothing"):
        as_rows(kind, {n: p for n, p in parts.items() if n != "text_w2"})
    with pytest.raises(ValueError, match="ReLU"):
        first_row(Kind("FedAtImg", "clip-adapter", 8, 3), "identity", 0, torch.ones(3, 8))


def test_named_backends_are_never_swapped():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert pick_local_backend("auto", cpu, plain=True) == "numba"
    assert pick_local_backend("torch", cpu, plain=True) == "torch"
    assert pick_local_backend("auto", gpu, plain=True) == "torch"
    with pytest.raises(BackendUnavailable, match="only the released step on cuda"):
        pick_local_backend("triton", gpu, plain=True)
    with pytest.raises(BackendUnavailable, match="not available on cpu"):
        pick_local_backend("triton", cpu, plain=True)
    with pytest.raises(BackendUnavailable, match="not available on cuda"):
        pick_local_backend("numba", gpu, plain=False)


def test_heads_without_compiled_code_are_torch_s_under_auto_and_refused_by_name():
    cpu = torch.device("cpu")
    for name, head in HEADS.items():
        compiled = head.numba is not None
        for plain in (True, False):
            picked = pick_local_backend("auto", cpu, plain, head)
            assert picked == ("numba" if compiled else "torch")
            assert pick_local_backend("torch", cpu, plain, head) == "torch"
        if not compiled:
            with pytest.raises(BackendUnavailable, match=f"no compiled code for head {name}: pass"):
                pick_local_backend("numba", cpu, True, head)
    assert not all(head.numba is not None for head in HEADS.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"adapters": torch.zeros(1, 71)}, r"adapters must be \(1, 72\)"),
        ({"adapters": torch.zeros(1, 144)[:, ::2]}, "contiguous rows"),
        ({"features": torch.zeros(30, 7)}, r"features must be \(30, 8\)"),
        ({"labels": torch.full((30,), 4)}, "labels are 4 to 4; there are 4 classes"),
        ({"text": torch.zeros(3, 8)}, r"text must be \(4, 8\)"),
        (
            {"rows": torch.full((1, 1, 4), 30, dtype=torch.int32)},
            "rows are 30 to 30; there are 30",
        ),
        ({"settings": settings(2)}, "one value for each of 1 lanes"),
        ({"pull": Pull(shift=torch.zeros(2, 72))}, r"pull.shift must be \(1, 72\)"),
        ({"work": Work(Kind("FedAtTxt", "linear", 8, 4), "hinge")}, "loss 'hinge'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(wrong, message):
    given = {
        "work": Work(Kind("FedAtTxt", "linear", 8, 4)),
        "adapters": torch.zeros(1, 72),
        "features": torch.ones(30, 8),
        "labels": torch.zeros(30, dtype=torch.int64),
        "text": torch.ones(4, 8),
        "unit_text": torch.ones(4, 8) / 8**0.5,
        "rows": torch.zeros(1, 1, 4, dtype=torch.int32),
        "settings": settings(1),
    }
    *places, pull = (given | {"pull": Pull()} | wrong).values()
    with pytest.raises(ValueError, match=message):
        local_steps(*places, logit_scale=SCALE, pull=pull)
