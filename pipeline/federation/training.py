"""Trains rounds and chooses which of them each fold keeps. Pure: progress in, progress out."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.container.checksums import load_features
from cache.table import FeatureTable
from kernels.local import has_fused_step, pick_local_backend
from pipeline.federation.evaluate import Cached, mean, score, validation_losses
from pipeline.federation.local import Engine
from pipeline.federation.plan import Plan
from pipeline.federation.record import FoldRound, RoundReport, held_out_name
from pipeline.federation.round import FoldReport, run_round
from pipeline.federation.state import State, first_state, model_rows


@dataclass(frozen=True)
class Chosen:
    """The round that a fold keeps so far, by its config's `choose`."""

    round: int
    val_accuracy: float | None  # None without validation rows (choose "last")
    test_accuracy: dict[str, float]  # with `eval` last, empty until the last round
    val_loss: float | None = None  # if it chooses rounds


@dataclass(frozen=True)
class Progress:
    """A run between two rounds."""

    rounds_done: int
    state: State
    best: Tensor  # (A, P) each model in its chosen round
    chosen: tuple[Chosen | None, ...]
    diverged: dict[int, str] = field(default_factory=dict)  # fold -> why it cannot continue


def to_device(table: FeatureTable, device: torch.device, *, as_stored: bool = False) -> Cached:
    """The table's numbers as tensors: features as float32, with checksums verified.

    as_stored  keep features as stored, float16 or float32: zero-shot converts a block at a time
    """
    text = torch.from_numpy(table.text_features).to(device)
    numbers = load_features(table, table.features.dtype if as_stored else np.float32)
    return Cached(
        features=torch.from_numpy(numbers).to(device),
        labels=torch.from_numpy(table.labels).to(device),
        text=text,
        unit_text=normalize(text, dim=1),
        logit_scale=table.logit_scale,
    )


def pick_plan_backend(plan: Plan, backend: str, device: torch.device) -> str:
    """The backend of all lanes of a plan; raises BackendUnavailable if it cannot run them."""
    config = plan.folds[0].config
    plain = plan.method.pulled or config.moments == "kept" or not has_fused_step(plan.work)
    kind = plan.work.kind
    return pick_local_backend(backend, device, plain, kind.does, kind.width)


def begin(plan: Plan, cached: Cached, given: Tensor | None = None) -> Progress:
    """The progress before round 0; given (P,) is every adapter's start, None: each config's own."""
    state = first_state(plan, cached.text, given)
    return Progress(0, state, model_rows(plan, state), (None,) * len(plan.folds))


def train(
    engine: Engine, progress: Progress, rounds: int
) -> Iterator[tuple[Progress, RoundReport]]:
    """Yields each round after `progress` until `rounds` are done.

    Stops after a round in which a fold diverged (`Progress.diverged`). A plan that trains nothing
    (zero-shot) has no rounds.
    """
    while engine.plan.lanes and progress.rounds_done < rounds and not progress.diverged:
        progress, report = advance(engine, progress)
        yield progress, report


def advance(engine: Engine, progress: Progress) -> tuple[Progress, RoundReport]:
    """Trains and scores one round: validation always, test as each config's `eval` says: in every
    round, in rounds that are the best so far (`is_better`), or not yet.

    A fold whose clients all diverged is listed in `diverged`; it keeps its previous adapter, which
    the figures describe.
    """
    plan, cached, backend, round = engine.plan, engine.cached, engine.backend, progress.rounds_done
    if plan.method.solved:  # solved at its start
        state, reports = progress.state, [FoldReport({}, {}, None) for _ in plan.folds]
    else:
        state, reports = run_round(progress.state, engine, round)
    models = model_rows(plan, state)
    known = engine.graph.answers_of(models) if engine.graph is not None else None
    val = score(plan, models, cached, "val", backend, answers=known)
    by_loss = [f for f, fold in enumerate(plan.folds) if fold.config.choose == "loss"]
    losses = validation_losses(plan, models, cached, by_loss)
    reached = [
        Chosen(round, mean(list(v.values())), {}, mean(list(loss.values())))
        for v, loss in zip(val, losses, strict=True)
    ]
    better = [
        is_better(fold.config.choose, now, chosen)
        for fold, now, chosen in zip(plan.folds, reached, progress.chosen, strict=True)
    ]
    every = [fold.config.eval == "every" for fold in plan.folds]
    tested = [
        f for f, fold in enumerate(plan.folds)
        if every[f] or (better[f] and fold.config.eval == "best")
    ]  # fmt: skip
    test = score(plan, models, cached, "test", backend, folds=tested)
    train_folds = [f for f in tested if every[f]]
    train = score(plan, models, cached, "train", backend, folds=train_folds)
    chosen = tuple(
        replace(reached[f], test_accuracy=test[f]) if better[f] else progress.chosen[f]
        for f in range(len(plan.folds))
    )
    taken = [m for m, model in enumerate(plan.models) if better[model.fold]]
    report = RoundReport(
        round,
        tuple(
            FoldRound(
                held_out_name(fold.held_out),
                reports[f].losses,
                val[f],
                better[f],
                test[f] or None,
                train[f] or None,
                reports[f].rejected,
                _finite(losses[f]) if f in by_loss else None,
            )
            for f, fold in enumerate(plan.folds)
        ),
    )
    diverged = {f: why.diverged for f, why in enumerate(reports) if why.diverged}
    best = _replaced(progress.best, models, taken)
    return Progress(round + 1, state, best, chosen, progress.diverged | diverged), report


def with_tested(progress: Progress, results: Sequence[dict[str, Any]]) -> Progress:
    """Adds each fold's test accuracies from results to the chosen rounds."""
    pairs = zip(progress.chosen, results, strict=True)
    chosen = [kept and replace(kept, test_accuracy=found["per_domain"]) for kept, found in pairs]
    return replace(progress, chosen=tuple(chosen))


def is_better(choose: str, now: Chosen, kept: Chosen | None) -> bool:
    """Whether a round replaces the one kept so far; of equals the earlier stays.

    accuracy  the first round, then a mean validation accuracy strictly above (the released rule)
    loss      a finite mean validation loss strictly below; NaN never wins
    last      every round
    """
    match choose:
        case "last":
            return True
        case "loss":
            if now.val_loss is None or not math.isfinite(now.val_loss):
                return False
            return kept is None or kept.val_loss is None or now.val_loss < kept.val_loss
    if kept is None or now.val_accuracy is None or kept.val_accuracy is None:
        return kept is None
    return now.val_accuracy > kept.val_accuracy


def _finite(losses: dict[str, float]) -> dict[str, float | None]:
    return {name: loss if math.isfinite(loss) else None for name, loss in losses.items()}


def _replaced(old: Tensor, new: Tensor, rows: list[int]) -> Tensor:
    """`old` with some rows taken from `new`; neither is changed."""
    if len(rows) == len(new):
        return new
    if not rows:
        return old
    mixed = old.clone()
    mixed[rows] = new[rows]
    return mixed
