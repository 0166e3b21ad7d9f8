"""Rounds one after another, and which of them each fold keeps. Pure: progress in, progress out."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cache.checksums import load_features
from cache.table import FeatureTable
from kernels.local_steps import has_fused_step, pick_local_backend
from pipeline.evaluate import Cached, mean, score
from pipeline.lanes import Plan
from pipeline.local_round import Engine
from pipeline.report import FoldRound, RoundReport, held_out_name
from pipeline.rounds import run_round
from pipeline.state import State, first_state, model_rows


@dataclass(frozen=True)
class Chosen:
    """The round of one fold that is kept so far: the earliest of those best on validation."""

    round: int
    val_accuracy: float
    test_accuracy: dict[str, float]


@dataclass(frozen=True)
class Progress:
    """A run between two rounds."""

    rounds_done: int
    state: State
    best: Tensor  # (A, P) what was scored in each model's chosen round
    chosen: tuple[Chosen | None, ...]
    diverged: dict[int, str] = field(default_factory=dict)  # fold -> why it cannot go on


def to_device(table: FeatureTable, device: torch.device) -> Cached:
    """The table's numbers as tensors: features float32 with their checksums looked at."""
    text = torch.from_numpy(table.text_features).to(device)
    return Cached(
        features=torch.from_numpy(load_features(table)).to(device),
        labels=torch.from_numpy(table.labels).to(device),
        text=text,
        unit_text=normalize(text, dim=1),
        logit_scale=table.logit_scale,
    )


def pick_plan_backend(plan: Plan, backend: str, device: torch.device) -> str:
    """The backend of all lanes of a plan; raises BackendUnavailable for one that cannot run it."""
    config = plan.folds[0].config
    pulled = config.method in ("fedprox", "ditto", "scaffold")
    plain = pulled or config.moments == "kept" or not has_fused_step(plan.work)
    return pick_local_backend(backend, device, plain)


def begin(plan: Plan, cached: Cached, given: Tensor | None = None) -> Progress:
    """Before round 0; given (P,) is where all adapters start, None for each config's own start."""
    state = first_state(plan, cached.text, given)
    return Progress(0, state, model_rows(plan, state), (None,) * len(plan.folds))


def advance(engine: Engine, progress: Progress) -> tuple[Progress, RoundReport]:
    """One round, scored: validation always, test when a fold's validation got strictly better.

    A fold whose clients all diverged stands in `diverged` of what is returned, with its adapter as
    it was; its figures are those of that adapter.
    """
    plan, cached, backend, round = engine.plan, engine.cached, engine.backend, progress.rounds_done
    state, told = run_round(progress.state, engine, round)
    models = model_rows(plan, state)
    known = engine.graph.answers_of(models) if engine.graph is not None else None
    val = score(plan, models, cached, "val", backend, answers=known)
    better = [
        chosen is None or mean(list(v.values())) > chosen.val_accuracy
        for chosen, v in zip(progress.chosen, val, strict=True)
    ]
    every = [fold.config.eval == "every" for fold in plan.folds]
    tested = [f for f in range(len(plan.folds)) if better[f] or every[f]]
    test = score(plan, models, cached, "test", backend, folds=tested)
    train_folds = [f for f in tested if every[f]]
    train = score(plan, models, cached, "train", backend, folds=train_folds)
    chosen = tuple(
        Chosen(round, mean(list(val[f].values())), test[f]) if better[f] else progress.chosen[f]
        for f in range(len(plan.folds))
    )
    taken = [m for m, model in enumerate(plan.models) if better[model.fold]]
    report = RoundReport(
        round,
        tuple(
            FoldRound(
                held_out_name(fold.held_out),
                told[f].losses,
                val[f],
                better[f],
                test[f] or None,
                train[f] or None,
                told[f].rejected,
            )
            for f, fold in enumerate(plan.folds)
        ),
    )
    diverged = {f: why.diverged for f, why in enumerate(told) if why.diverged}
    best = _replaced(progress.best, models, taken)
    return Progress(round + 1, state, best, chosen, progress.diverged | diverged), report


def _replaced(old: Tensor, new: Tensor, rows: list[int]) -> Tensor:
    """`old` with some rows taken from `new`; neither is changed."""
    if len(rows) == len(new):
        return new
    if not rows:
        return old
    mixed = old.clone()
    mixed[rows] = new[rows]
    return mixed
