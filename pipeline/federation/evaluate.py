"""Accuracies and losses of adapters and of zero-shot CLIP, by domain and client."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels.answers import by_blocks, cross_entropies, top1
from pipeline.federation.clients import ClientSplit
from pipeline.federation.plan import Fold, Plan, parts_of
from pipeline.groups import by_key

BLOCK = 4096  # rows at a time, to bound temporaries of rows x D


class Cached(NamedTuple):
    """The data that training and scoring read, on one device."""

    features: Tensor  # (N, D) float32, raw; float16 if only zero-shot reads them
    labels: Tensor  # (N,) int64
    text: Tensor  # (C, D) float32, raw
    unit_text: Tensor  # (C, D) float32, rows of length 1
    logit_scale: float


def score(
    plan: Plan,
    adapters: Tensor,
    cached: Cached,
    use: str,
    backend: str,
    folds: Sequence[int] | None = None,
    answers: Sequence[Tensor] | None = None,
) -> list[dict[str, float]]:
    """Accuracy (a fraction) by domain for each fold; every scored adapter runs once.

    adapters  (A, P), one for each of plan.models
    use       "train", "val" or "test": which rows of a client; test adds the held-out domains
    folds     the folds to score, all when None; the others get {}
    answers   the adapters' answers if known; None: computed
        All rows of a domain count equally. If several models answer for a domain (local and fedper
    on
        the held-out one) the result is their mean.
    """
    wanted = set(range(len(plan.folds)) if folds is None else folds)
    which = [m for m, model in enumerate(plan.models) if model.fold in wanted]
    found: list[dict[str, float]] = [{} for _ in plan.folds]
    asked = [plan.asked(use)[m] for m in which]
    if not sum(len(own.rows) for own in asked):
        return found
    rows = torch.from_numpy(np.concatenate([own.rows for own in asked])).to(cached.labels.device)
    if answers is None:
        own_rows = rows.split([len(own.rows) for own in asked])
        answers = answers_of(plan, adapters, cached, which, own_rows, backend)
    sizes = np.array([size for own in asked for size in own.sizes])
    right = _counts(torch.cat(list(answers)) == cached.labels[rows], sizes)
    sums: dict[tuple[int, str], list[int]] = {}
    parts = [
        (plan.models[m].fold, domain)
        for m, own in zip(which, asked, strict=True)
        for domain in own.domains
    ]
    for key, correct, size in zip(parts, right.tolist(), sizes.tolist(), strict=True):
        both = sums.setdefault(key, [0, 0])
        both[0] += correct
        both[1] += size
    for (fold, domain), (correct, size) in sums.items():
        found[fold][domain] = correct / size
    return found


def validation_losses(
    plan: Plan, adapters: Tensor, cached: Cached, folds: Sequence[int]
) -> list[dict[str, float]]:
    """Mean class cross-entropy over validation rows, by client of each fold.

    log sum_c exp S_ic - S_i,yi, over all C classes, whatever loss the clients train with; summed in
    float64. adapters (A, P), one for each of plan.models; other folds, and clients without
    validation rows, have none. Torch computes it, whatever backend trains.
    """
    found: list[dict[str, float]] = [{} for _ in plan.folds]
    for m, model in enumerate(plan.models):
        if model.fold not in folds:
            continue
        for split in parts_of(plan, model, "val"):
            losses = cross_entropies(
                plan.work.kind, adapters[m], cached.features, cached.labels, cached.text,
                rows_of([split], "val", cached.labels.device), cached.logit_scale,
            )  # fmt: skip
            found[model.fold][split.name] = float(losses.double().mean())
    return found


def answers_of(
    plan: Plan, adapters: Tensor, cached: Cached, which: Sequence[int], rows: Sequence[Tensor],
    backend: str,
) -> list[Tensor]:  # fmt: skip
    """The answers of models `which` (positions in plan.models), each on its own rows."""
    if not which:
        return []
    return top1(
        plan.work.kind, adapters[list(which)] if len(which) < len(adapters) else adapters,
        cached.features, cached.text, cached.unit_text, rows, backend=backend,
    )  # fmt: skip


def zero_shot_top1(cached: Cached, rows: Tensor | None = None) -> Tensor:
    """(N,) int64: zero-shot CLIP's answers, argmax_c <x, unit_text[c]>.

    rows  (n,) int64: only these, returns (n,); None: all
    """
    return rows_scored(cached, rows, lambda part: (part @ cached.unit_text.mT).argmax(dim=1))


def rows_scored(cached: Cached, rows: Tensor | None, scored: Callable[[Tensor], Tensor]) -> Tensor:
    """(n,) scores of features as float32 of rows, None for all, in blocks."""
    count = len(cached.features) if rows is None else len(rows)

    def of_block(here: slice) -> Tensor:
        return scored(cached.features[here if rows is None else rows[here]].float())

    return by_blocks(count, of_block, BLOCK)


def zero_shot_accuracy(fold: Fold, right: np.ndarray, use: str = "test") -> dict[str, float]:
    """By domain, on the rows that the fold's adapter is scored on; right (N,) bool."""
    rows = by_key((s.domain_name, getattr(s, use)) for s in (*fold.clients, *fold.unseen))
    scored = {name: np.concatenate(parts) for name, parts in rows.items()}
    return {name: float(right[own].mean()) for name, own in scored.items() if len(own)}


def summarise(per_domain: dict[str, float], held_out: Sequence[str]) -> dict[str, float | None]:
    """unseen, participants, overall: plain means over domains; None if there are none."""
    unseen = [value for name, value in per_domain.items() if name in held_out]
    seen = [value for name, value in per_domain.items() if name not in held_out]
    return {"unseen": mean(unseen), "participants": mean(seen), "overall": mean(unseen + seen)}


def mean(values: Sequence[float]) -> float | None:
    """The plain mean; None for no values."""
    return float(np.mean(values)) if len(values) else None


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """The plain mean; None for no values, and where one of them is None."""
    known = list(values)
    return None if None in known else mean(known)  # type: ignore[arg-type]


def rows_of(parts: Sequence[ClientSplit], use: str, device: torch.device) -> Tensor:
    """The rows of one use of some splits, concatenated: (n,) int64."""
    rows = [getattr(split, use) for split in parts] or [np.empty(0, np.int64)]
    return torch.from_numpy(np.concatenate(rows)).to(device)


def _counts(right: Tensor, sizes: np.ndarray) -> np.ndarray:
    """Counts the true values in each of consecutive parts; one copy from the device."""
    ends = torch.from_numpy(sizes.cumsum() - 1).to(right.device)
    return np.diff(right.cumsum(0)[ends].cpu().numpy(), prepend=0)
