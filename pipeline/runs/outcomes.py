"""The results of each fold in its chosen round, next to zero-shot CLIP on the same rows."""

import itertools
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kernels.answers import confidences, top1
from kernels.heads.plain import size
from pipeline.federation.clients import NO_ROWS
from pipeline.federation.evaluate import (
    answers_of,
    mean,
    parts_of,
    rows_of,
    rows_scored,
    score,
    summarise,
    zero_shot_accuracy,
    zero_shot_top1,
)
from pipeline.federation.local import Engine, lane_steps
from pipeline.federation.methods.closed_form_choice import Tried
from pipeline.federation.payload import clip_bytes, payload_bytes
from pipeline.federation.plan import (
    Fold,
    Lane,
    Plan,
    round_rows,
    settings_of,
    steps_a_round,
    train_rows,
)
from pipeline.federation.record import held_out_name
from pipeline.federation.state import own_part
from pipeline.federation.training import Progress
from pipeline.runs.advice import changed_on_validation
from pipeline.runs.metrics import accuracy_by, calibration_error, macro_f1, spread


class Tested(NamedTuple):
    """Every test row of a fold and its answer; a held-out row once for each model.

    moved  mean total variation between the gate and the uniform one; None without a gate or rows
    """

    rows: np.ndarray  # (n,) int64
    clients: np.ndarray  # (n,) int64, position in the fold's clients; -1 for held-out rows
    answers: np.ndarray  # (n,) int64
    sure: np.ndarray  # (n,) float32, the softmax's largest value
    moved: float | None = None


def outcomes(
    engine: Engine, progress: Progress, seen: dict[int, Tested] | None = None
) -> list[dict[str, Any]]:
    """The object of each fold that `federate --json` lists under "results".

    seen  filled with the adapters' answers on test rows, by the fold's position
    """
    zero_shot = zero_shot_top1(engine.cached)
    folds = range(len(engine.plan.folds))
    asked = {f: tested(engine, progress.best, f) for f in folds if progress.chosen[f]}
    if seen is not None:
        seen |= asked
    return [_outcome(engine, progress, f, zero_shot, asked.get(f)) for f in folds]


def tested(engine: Engine, adapters: Tensor, f: int) -> Tested:
    """The answers of a fold's models on their test rows; adapters (A, P), one for each model."""
    plan, cached, fold = engine.plan, engine.cached, engine.plan.folds[f]
    kind, device = plan.work.kind, cached.labels.device
    parts = [parts_of(plan, plan.models[m], "test") for m in fold.models]
    rows = [rows_of(own, "test", device) for own in parts]
    answers = answers_of(plan, adapters, cached, fold.models, rows, engine.backend)
    sure, moved = zip(*(
        confidences(kind, adapters[m], cached.features, cached.text, own, cached.logit_scale)
        for m, own in zip(fold.models, rows, strict=True)
    ), strict=True)  # fmt: skip
    place = {client.name: k for k, client in enumerate(fold.clients)}
    clients = [np.repeat(place.get(s.name, -1), len(s.test)) for own in parts for s in own]
    joined = [torch.cat(each).cpu().numpy() for each in (rows, answers, sure)]
    # NO_ROWS: without test rows no client and no held-out domain has a part.
    count = len(joined[0])
    gate = sum(itertools.chain(*moved)) / count if count and kind.released else None
    return Tested(joined[0], np.concatenate([NO_ROWS, *clients]), *joined[1:], gate)


def tested_without(engine: Engine, fold: Fold, zero_shot: Tensor) -> Tested:
    """Zero-shot CLIP's answers on the same rows; zero_shot (N,) int64 for all rows."""
    cached, device = engine.cached, engine.cached.labels.device
    rows = rows_of([*fold.clients, *fold.unseen], "test", device)

    def confidence(x: Tensor) -> Tensor:
        logits = normalize(x, dim=1) @ cached.unit_text.mT * cached.logit_scale
        return logits.softmax(dim=1).amax(dim=1)

    sure = rows_scored(cached, rows, confidence)
    clients = [np.repeat(k, len(c.test)) for k, c in enumerate(fold.clients)]
    clients += [np.repeat(-1, len(held.test)) for held in fold.unseen]
    joined = [each.cpu().numpy() for each in (rows, zero_shot[rows], sure)]
    return Tested(joined[0], np.concatenate(clients), *joined[1:])


def personalised(engine: Engine, adapters: Tensor, f: int) -> dict | None:
    """Fine-tunes each client's adapter of fold f for config.personalise epochs on its train rows.

    adapters  (A, P), one for each of the plan's models; not changed
    returns   {"epochs", "before", "after"}: accuracies on the client's own test rows, by client in
    "accuracy" and summarized as in pipeline/runs/metrics.py; None for 0 epochs

    All else (loss, fresh optimizer, batches) is as in another round after the last.
    """
    plan = engine.plan
    fold = plan.folds[f]
    epochs = fold.config.personalise
    if not epochs or not plan.method.trains:
        return None
    model_of = {k: m for m in fold.models for k in plan.models[m].clients}
    lanes = [
        Lane(fold.config, f, -1, k, client.stream, train_rows(client, fold.config))
        for k, client in enumerate(fold.clients)
        if len(client.test)
    ]
    lanes.sort(key=lambda lane: -steps_a_round(lane, epochs))
    before = adapters[[model_of[lane.client] for lane in lanes]]
    after = before.clone()
    rows = round_rows(lanes, fold.config.rounds, engine.orders, epochs)
    if rows.numel():
        lane_steps(engine, lanes, after, rows, settings_of(lanes, 0))
    return {
        "epochs": epochs,
        "before": _own_accuracies(engine, before, lanes),
        "after": _own_accuracies(engine, after, lanes),
    }


def _outcome(
    engine: Engine, progress: Progress, f: int, zero_shot: Tensor, seen: Tested | None
) -> dict[str, Any]:
    fold, cached, chosen = engine.plan.folds[f], engine.cached, progress.chosen[f]
    labels = cached.labels.cpu().numpy()
    right = zero_shot.cpu().numpy() == labels
    start = zero_shot_accuracy(fold, right)
    per_domain = _by_domain(engine, f, seen) if seen else start
    plain = tested_without(engine, fold, zero_shot)
    start_val = mean(list(zero_shot_accuracy(fold, right, "val").values()))
    worse = bool(chosen) and None not in (start_val, chosen.val_accuracy)
    worse = worse and chosen.val_accuracy < start_val
    return {
        "held_out": held_out_name(fold.held_out),
        "best_round": chosen.round if chosen else None,
        "chosen_by": fold.config.choose if chosen else None,
        "val_accuracy": chosen.val_accuracy if chosen else None,
        # Counted only if training may have done harm: it is another pass over validation rows.
        "val_changed": changed_on_validation(engine, progress.best, f, zero_shot)
        if worse
        else None,
        **({"val_loss": chosen.val_loss} if chosen and chosen.val_loss is not None else {}),
        "zero_shot": {
            **summarise(start, fold.held_out),
            "per_domain": start,
            "val_accuracy": start_val,
            **_quality(fold, plain, labels),
        },
        **summarise(per_domain, fold.held_out),
        "per_domain": per_domain,
        **_quality(fold, seen or plain, labels),
        "client_rows": _client_rows(fold, seen or plain),
        "gate": _gate(seen, zero_shot) if seen else None,
        "personalised": personalised(engine, progress.best, f) if chosen else None,
        "bytes_a_round": bytes_a_round(engine.plan, fold, engine.model),
        **({"closed_form": solved(fold)} if fold.closed_form else {}),
    }


def _quality(fold: Fold, seen: Tested, labels: np.ndarray) -> dict:
    """macro_f1 and calibration_error over all answers; clients: each one's accuracy on its rows."""
    right = seen.answers == labels[seen.rows]
    own = seen.clients >= 0
    by_client = accuracy_by(right[own], seen.clients[own])
    counts = np.bincount(seen.clients[own], minlength=len(fold.clients))
    rows = [int(counts[k]) for k in by_client]
    return {
        "macro_f1": macro_f1(labels[seen.rows], seen.answers),
        "calibration_error": calibration_error(right, seen.sure),
        "clients": {
            **spread(list(by_client.values()), rows),
            "accuracy": {fold.clients[k].name: value for k, value in by_client.items()},
        },
    }


def _client_rows(fold: Fold, seen: Tested) -> dict[str, int]:
    """Number of test rows of each client that has any."""
    counts = np.bincount(seen.clients[seen.clients >= 0], minlength=len(fold.clients))
    return {c.name: int(n) for c, n in zip(fold.clients, counts, strict=True) if n}


def bytes_a_round(plan: Plan, fold: Fold, model: str | None) -> dict:
    """Bytes that a round of a fold sends if all clients take part, and would send with all of CLIP.

    model  the features' CLIP; None: unknown, and "clip" is None
    """
    kind, config, method = plan.work.kind, fold.config, plan.method
    clients = len(fold.clients) if method.sends else 0
    count = size(kind)
    if method.keeps == "layer":
        count -= int(own_part(plan, torch.device("cpu")).sum())
    if method.solved and fold.closed_form:
        up, down = (8 * len(fold.clients) * sent for sent in fold.closed_form.sent)
        return {"up": up, "down": down, "clip": None}
    one_way = clients * len(method.sends) * payload_bytes(count, config.payload)
    clip = clip_bytes(model or "")
    return {"up": one_way, "down": one_way, "clip": clip and 2 * clients * clip}


def solved(fold: Fold) -> dict:
    """A fold's closed-form head, how it was chosen and what it sent, as JSON."""
    found = fold.closed_form
    up, down = (8 * len(fold.clients) * sent for sent in found.sent)

    def figures(tried: Tried) -> dict:
        known = {"cross_entropy": tried.loss, "accuracy": tried.accuracy} if tried.rows else {}
        return {"solver": tried.solver, "shape": tried.shape, "strength": tried.strength, **known}

    return {
        **figures(found.chosen),
        "temperature": found.chosen.temperature,
        "tuned_on": found.by,
        "rows": found.chosen.rows,
        "bytes": {"up": up, "down": down},
        "clients": len(fold.clients),
        "tried": [figures(each) for each in found.tried],
    }


def _by_domain(engine: Engine, f: int, seen: Tested) -> dict[str, float]:
    answers = [torch.from_numpy(seen.answers).to(engine.cached.labels.device)]
    adapters = engine.cached.features[:0]  # their answers are known
    return score(
        engine.plan, adapters, engine.cached, "test", engine.backend, folds=[f], answers=answers
    )[f]


def _gate(seen: Tested, zero_shot: Tensor) -> dict[str, Any]:
    """How much the adapter changes CLIP on the fold's test rows.

    distance  mean total variation between the gate and the uniform one, 0 (zero-shot) to 1; None
              for adapters without a gate on the images, and without test rows
    changed, tested  number of rows whose answer differs from zero-shot's, and of all rows
    """
    changed = int((seen.answers != zero_shot.cpu().numpy()[seen.rows]).sum())
    return {"distance": seen.moved, "changed": changed, "tested": len(seen.rows)}


def _own_accuracies(engine: Engine, adapters: Tensor, lanes: list[Lane]) -> dict:
    plan, cached = engine.plan, engine.cached
    clients = [plan.folds[lane.fold].clients[lane.client] for lane in lanes]
    rows = [torch.from_numpy(client.test).to(cached.labels.device) for client in clients]
    answers = top1(
        plan.work.kind, adapters, cached.features, cached.text, cached.unit_text, rows,
        backend=engine.backend,
    ) if rows else []  # fmt: skip
    right = [
        float((found == cached.labels[own]).float().mean())
        for found, own in zip(answers, rows, strict=True)
    ]
    by_name = {client.name: value for client, value in zip(clients, right, strict=True)}
    figures = spread(right, [len(own) for own in rows])
    return {**figures, "accuracy": dict(sorted(by_name.items()))}
