"""How often adapters and plain CLIP are right, on which rows, and how rounds are chosen."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.adapter import AdapterState
from kernels.adapter_top1 import adapter_top1
from pipeline.lanes import Fold, Plan, Server
from pipeline.splits import ClientSplit

BLOCK = 4096  # rows at a time where a temporary of rows x D is made


class Cached(NamedTuple):
    """What training and scoring read, on one device."""

    features: Tensor  # (N, D) float32, raw
    labels: Tensor  # (N,) int64
    unit_text: Tensor  # (C, D) float32, rows of length 1
    logit_scale: float


def score(
    plan: Plan,
    adapters: AdapterState,
    cached: Cached,
    use: str,
    backend: str,
    folds: Sequence[int] | None = None,
) -> list[dict[str, float]]:
    """Accuracy (a fraction) by domain for each fold, with every server adapter run once.

    adapters  one for each server
    use       "train", "val" or "test": which rows of a client; test adds the held-out domains
    folds     the folds to score, all when None; the others get {}
    Where several servers answer for a domain (method local, held-out domain) it is their mean.
    """
    wanted = range(len(plan.folds)) if folds is None else folds
    which = [s for s, server in enumerate(plan.servers) if server.fold in wanted]
    servers = [plan.servers[s] for s in which]
    if not servers:
        return [{} for _ in plan.folds]
    asked = [_parts(plan.folds[server.fold], server, use) for server in servers]
    rows = [_rows(parts, cached.labels.device) for parts in asked]
    scored = AdapterState(*(weights[which] for weights in adapters))
    answers = adapter_top1(scored, cached.features, cached.unit_text, rows, backend=backend)
    found: list[dict[str, list[float]]] = [{} for _ in plan.folds]
    for server, parts, own, predicted in zip(servers, asked, rows, answers, strict=True):
        right = (predicted == cached.labels[own]).cpu().numpy()
        for name, correct in _by_part(parts, right):
            found[server.fold].setdefault(name, []).append(float(np.mean(correct)))
    return [{name: float(np.mean(all)) for name, all in fold.items()} for fold in found]


def zero_shot_top1(cached: Cached) -> Tensor:
    """(N,) int64: what CLIP answers without an adapter, argmax_c <x, unit_text[c]>."""
    return torch.cat(
        [(part @ cached.unit_text.mT).argmax(dim=1) for part in cached.features.split(BLOCK)]
    )


def zero_shot_accuracy(fold: Fold, right: np.ndarray) -> dict[str, float]:
    """By domain, on the very rows that the fold tests its adapter on; right (N,) bool."""
    parts = [(split.name, split.test) for split in (*fold.clients, *fold.unseen)]
    return {name: float(right[rows].mean()) for name, rows in parts if len(rows)}


class GateFigures(NamedTuple):
    """How much an adapter does to CLIP, over a fold's test rows."""

    distance: float
    """Mean total variation between the gate and the uniform one, 0 (zero-shot) to 1."""
    changed: int
    """Test rows whose answer differs from zero-shot's."""
    tested: int


def gate_figures(
    plan: Plan, fold: Fold, adapters: AdapterState, cached: Cached, zero_shot: Tensor, backend: str
) -> GateFigures:
    """Over all the test rows of the fold's servers; adapters has one for each server."""
    distance, changed, tested = 0.0, 0, 0
    for s in fold.servers:
        parts = _parts(fold, plan.servers[s], "test")
        rows = _rows(parts, cached.labels.device)
        one = AdapterState(*(weight[s : s + 1] for weight in adapters))
        (answers,) = adapter_top1(one, cached.features, cached.unit_text, [rows], backend=backend)
        changed += int((answers != zero_shot[rows]).sum())
        distance += sum(_distance_sum(one, cached.features[part]) for part in rows.split(BLOCK))
        tested += len(rows)
    return GateFigures(distance / max(tested, 1), changed, tested)


def summarise(per_domain: dict[str, float], held_out: Sequence[str]) -> dict[str, float | None]:
    """unseen, participants, overall: plain means over domains; None where there are none."""
    unseen = [value for name, value in per_domain.items() if name in held_out]
    seen = [value for name, value in per_domain.items() if name not in held_out]
    return {"unseen": mean(unseen), "participants": mean(seen), "overall": mean(unseen + seen)}


def mean(values: Sequence[float]) -> float | None:
    """The plain mean; None for nothing."""
    return float(np.mean(values)) if len(values) else None


def _parts(fold: Fold, server: Server, use: str) -> list[tuple[str, np.ndarray]]:
    splits: list[ClientSplit] = [fold.clients[k] for k in server.clients]
    if use == "test":
        splits += fold.unseen
    parts = [(split.name, getattr(split, use)) for split in splits]
    return [(name, rows) for name, rows in parts if len(rows)]


def _rows(parts: list[tuple[str, np.ndarray]], device: torch.device) -> Tensor:
    rows = [rows for _, rows in parts] or [np.empty(0, np.int64)]
    return torch.from_numpy(np.concatenate(rows)).to(device)


def _by_part(parts: list[tuple[str, np.ndarray]], values: np.ndarray):
    ends = np.cumsum([len(rows) for _, rows in parts])
    return zip([name for name, _ in parts], np.split(values, ends[:-1]), strict=True)


def _distance_sum(adapter: AdapterState, x: Tensor) -> float:
    h = torch.addmm(adapter.b1[0], x, adapter.w1[0].mT).tanh_()
    gate = torch.addmm(adapter.b2[0], h, adapter.w2[0].mT).softmax(dim=1)
    return float((gate - 1 / gate.shape[1]).abs().sum() / 2)
