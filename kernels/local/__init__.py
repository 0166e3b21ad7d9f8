"""Local training of many adapters in parallel: any head, loss and optimizer."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.adapter import AdamSettings
from kernels.backends import BF16, BackendUnavailable, load, pick_backend
from kernels.heads import HEADS
from kernels.heads.head import Head
from kernels.heads.plain import Kind, attention_state, size
from kernels.names import LOSSES, OPTIMIZERS
from kernels.step import adapter_steps, check_rows

RELEASED = next(head for head in HEADS.values() if head.fused)


@dataclass(frozen=True)
class Work:
    """What the lanes of one call share."""

    kind: Kind
    loss: str = "contrastive"
    optimizer: str = "adam"


class Settings(NamedTuple):
    """The optimizer's settings, one value per lane; named as in torch.optim."""

    lr: Tensor  # (L,) float64
    weight_decay: Tensor  # (L,) float64; adam, sgd: added to the gradient. adamw: decoupled
    beta1: Tensor  # (L,) float64; adam and adamw
    beta2: Tensor  # (L,) float64
    eps: Tensor  # (L,) float64
    momentum: Tensor  # (L,) float64; sgd
    mu: Tensor  # (L,) float64; weight of the proximal term, 0 for none


class Moments(NamedTuple):
    """The optimizer's state of each lane between calls; modified in place."""

    first: Tensor  # (L, P) float32: Adam's m, SGD's momentum buffer
    second: Tensor  # (L, P) float32: Adam's v
    steps: Tensor  # (L,) int64 on the CPU: steps taken so far


class Pull(NamedTuple):
    """Terms that federated methods add to a lane's gradient: mu * (w - anchor) + shift."""

    anchor: Tensor | None = None  # (L, P) float32: FedProx's and Ditto's server adapter
    shift: Tensor | None = None  # (L, P) float32: SCAFFOLD's c - c_k


def has_fused_step(work: Work) -> bool:
    """Whether adapter_steps computes this step (the released one); the rest is the general step."""
    return work.kind.released and (work.loss, work.optimizer) == ("contrastive", "adam")


def pick_local_backend(
    backend: str, device: torch.device, plain: bool, head: Head = RELEASED, width: int = 512
) -> str:
    """The backend to run: "auto" picks the fastest available; a named one is never swapped.

    plain   whether no fused step applies: other work, or pull or moments; a GPU then has only torch
    head    what adapters compute; torch computes a head that has no compiled code
    width   of the features
    Raises BackendUnavailable.
    """
    if plain and (device.type != "cpu" or backend == BF16):
        if backend not in ("auto", "torch"):
            raise BackendUnavailable(
                f"backend {backend!r} computes only the released step on {device.type} (FedAtImg, "
                "attention, contrastive, adam, moments reset, no proximal term); pass --backend "
                "auto or torch for anything else"
            )
        return "torch"
    if backend == BF16 and width % 32:
        raise BackendUnavailable(
            f"backend {backend!r} needs features whose width is a multiple of 32, not {width}; "
            "pass --backend auto"
        )
    if head.numba is None:
        backend = "torch" if backend == "auto" else backend
        if pick_backend(backend, device) != "torch":
            raise BackendUnavailable(
                f"backend {backend!r} has no compiled code for head {head.name}: pass "
                "--backend auto or torch"
            )
    return pick_backend(backend, device)


def local_steps(
    work: Work,
    rows_of_adapters: Tensor,
    features: Tensor,
    labels: Tensor,
    text: Tensor,
    unit_text: Tensor,
    rows: Tensor,
    settings: Settings,
    *,
    logit_scale: float,
    moments: Moments | None = None,
    pull: Pull = Pull(),  # noqa: B008
    backend: str = "auto",
) -> Tensor:
    """T training steps of L independent adapters (lanes).

    One step of one lane, on the B rows x (B, D) with labels y that `rows` indexes; u are the rows'
    unit features and t_c those of the classes (kernels/heads/plain.py), S = logit_scale * u t^T:

        contrastive     mean_i [log sum_j exp S_i,yj - S_i,yi] / 2
                        + mean_j [log sum_i exp S_i,yj - S_j,yj] / 2       j over the batch
        multi-positive  the same with S_i,yi replaced by the log sum over all rows (columns) of
                        class y_i, which count as positives. Source: MIL-NCE, arXiv:1912.06430
        class           mean_i [log sum_c exp S_ic - S_i,yi]               c over all C classes
        g = d loss / d w + mu * (w - anchor) + shift
        adam, adamw, sgd as in torch.optim, on g; adam and sgd add weight_decay * w to it

    rows_of_adapters  (L, P) float32, laid out by kernels/heads/plain.py; **modified in place**
    features   (N, D) float32, raw as cached;  labels (N,) int64
    text       (C, D) float32 as encoded;  unit_text the same, rows of unit length
    rows       (T, L, B) int32 on the CPU; see adapter_steps
    moments    the optimizer's state, modified in place; None: a fresh state, discarded afterwards
    backend    "auto" or a name from kernels/backends.py; a named one is never swapped
    returns    (T, L) float32 on the adapters' device: each step's loss; 0 where a lane had no rows

    Raises ValueError for inconsistent arguments, BackendUnavailable if the named backend cannot
    run here or cannot compute this.
    """
    _check(work, rows_of_adapters, features, labels, text, rows, settings, moments, pull)
    plain = not has_fused_step(work) or moments is not None or any(p is not None for p in pull)
    backend = pick_local_backend(backend, features.device, plain, work.kind.does, work.kind.width)
    if not plain:
        state = attention_state(work.kind, rows_of_adapters)
        adam = AdamSettings(*settings[: len(AdamSettings._fields)])
        return adapter_steps(
            state, features, labels, unit_text, rows, adam, logit_scale=logit_scale, backend=backend
        )
    losses: Tensor = load("local", backend, features.device).local_steps(
        work, rows_of_adapters, features, labels, text, rows, settings, float(logit_scale),
        moments, pull,
    )  # fmt: skip
    return losses


def _check(
    work: Work, adapters: Tensor, features: Tensor, labels: Tensor, text: Tensor, rows: Tensor,
    settings: Settings, moments: Moments | None, pull: Pull,
) -> None:  # fmt: skip
    kind, lanes, count = work.kind, rows.shape[1], len(features)
    wanted = (lanes, size(kind))
    if work.loss not in LOSSES or work.optimizer not in OPTIMIZERS:
        raise ValueError(
            f"local_steps: loss {work.loss!r} and optimizer {work.optimizer!r}; choose from "
            f"{', '.join(LOSSES)} and {', '.join(OPTIMIZERS)}"
        )
    given = {
        "adapters": adapters,
        "moments.first": moments and moments.first,
        "moments.second": moments and moments.second,
        "pull.anchor": pull.anchor,
        "pull.shift": pull.shift,
    }
    for name, found in given.items():
        if found is None:
            continue
        if tuple(found.shape) != wanted or found.dtype != torch.float32 or found.stride(1) != 1:
            raise ValueError(
                f"local_steps: {name} must be {wanted} float32 with contiguous rows for {lanes} "
                f"lanes of {kind}; got {tuple(found.shape)} {found.dtype} {found.stride()}"
            )
    for name, found, shape, dtype in (
        ("features", features, (count, kind.width), torch.float32),
        ("labels", labels, (count,), torch.int64),
        ("text", text, (kind.classes, kind.width), torch.float32),
        ("rows", rows, (len(rows), lanes, rows.shape[2]), torch.int32),
    ):
        if tuple(found.shape) != shape or found.dtype != dtype:
            raise ValueError(
                f"local_steps: {name} must be {shape} {dtype}; got {tuple(found.shape)} "
                f"{found.dtype}"
            )
    if any(tuple(value.shape) != (lanes,) for value in settings):
        raise ValueError(f"local_steps: settings must hold one value for each of {lanes} lanes")
    check_rows("local_steps", rows, count)
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < kind.classes:
        raise ValueError(
            f"local_steps: labels are {int(labels.min())} to {int(labels.max())}; there are "
            f"{kind.classes} classes"
        )
