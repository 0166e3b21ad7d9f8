"""Whether training made validation worse beyond noise, and which settings to try then."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kernels.heads import HEADS
from pipeline.federation.evaluate import answers_of, mean, parts_of, rows_of, score
from pipeline.federation.local import Engine
from pipeline.federation.training import begin
from pipeline.settings import PRESETS

ERRORS = 2.0  # standard errors of the paired difference


def changed_on_validation(
    engine: Engine, adapters: Tensor, f: int, zero_shot: Tensor
) -> dict[str, Any]:
    """How the adapters of fold f compare on validation rows with zero-shot and with their start.

    adapters  (A, P), one for each of the plan's models; zero_shot (N,) int64 for all rows
    returns   "lost": rows that zero-shot CLIP has right and the adapters wrong; "won": the reverse;
              "start": validation accuracy of the settings' own start
    """
    plan, labels = engine.plan, engine.cached.labels
    models = plan.folds[f].models
    parts = [parts_of(plan, plan.models[m], "val") for m in models]
    asked = [rows_of(own, "val", labels.device) for own in parts]
    answers = answers_of(plan, adapters, engine.cached, models, asked, engine.backend)
    rows = torch.cat([*asked, labels.new_empty(0)])
    right = torch.cat([*answers, labels.new_empty(0)]) == labels[rows]
    before = zero_shot[rows] == labels[rows]
    start = begin(plan, engine.cached).best
    found = score(plan, start, engine.cached, "val", engine.backend, folds=[f])[f]
    return {
        "lost": int((before & ~right).sum()),
        "won": int((right & ~before).sum()),
        "start": mean(list(found.values())),
    }


def beyond_noise(lost: int, won: int) -> bool:
    """lost - won > 2 sqrt(lost + won): McNemar's test at two standard errors.

    Source: McNemar, Psychometrika 12 (1947): were losing as likely as winning, the difference
    would have variance lost + won.
    """
    return lost - won > ERRORS * math.sqrt(lost + won)


def said_of_worse(
    name: str, best_round: int | None, reached: float | None, start: float | None,
    changed: Mapping[str, Any] | None, settings: Mapping[str, Any],
) -> str | None:  # fmt: skip
    """The sentence on a fold whose training made validation worse; None where noise explains it.

    name            of the fold, by what it holds out
    reached, start  validation accuracy of the best round, and of zero-shot CLIP
    changed         as changed_on_validation returns it; older results count no rows: None as well
    settings        of the run
    """
    if reached is None or not changed or not beyond_noise(changed["lost"], changed["won"]):
        return None
    return (
        f"held out {name}: the best round ({best_round}) reaches {reached:.2%} on "
        f"validation, zero-shot CLIP {start:.2%}: of its right answers {changed['lost']} were "
        f"lost, {changed['won']} won. {_what_to_try(changed, reached, settings)}"
    )


def _what_to_try(changed: Mapping[str, Any], reached: float, settings: Mapping[str, Any]) -> str:
    """Settings that move validation to where it was heading from its start.

    Above its start training was recovering what the start had lost, and under Adam a weight decay
    holds it back: at lr 5e-5 and 0.2 the released settings pull the gate to the uniform one. At
    or below its start the steps did harm.
    """
    start = changed.get("start")
    tried = []
    if start is None:
        said = "Try "
    elif reached > start:
        said = f"Training gained on its start, {start:.2%}: try "
        tried += ["a larger --lr", "more --rounds"]
        tried += ["--weight-decay 0"] if settings.get("weight_decay") else []
    else:
        said = f"Training lost on its start, {start:.2%}: try "
        tried += ["a smaller --lr"]
    head = HEADS.get(str(settings.get("head")))
    if settings.get("start") == "default" and head is not None and head.identity:
        tried += ["--start identity"]
    tuned = PRESETS["tuned"]
    if any(settings.get(name) != tuned[name] for name in ("mode", "head", "loss", "optimizer")):
        tried += ["--preset tuned"]
    tried = tried or ["another --lr"]
    return said + (", ".join(tried[:-1]) + " or " if len(tried) > 1 else "") + tried[-1]
