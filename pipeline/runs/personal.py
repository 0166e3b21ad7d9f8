"""Personalised accuracy: what each client has of the chosen adapter after tuning it on its own."""

import torch
from torch import Tensor

from kernels.answers import top1
from pipeline.federation.local import Engine, lane_steps
from pipeline.federation.plan import Lane, round_rows, settings_of, steps_a_round, train_rows
from pipeline.runs.metrics import spread_or_none


def personalised(engine: Engine, adapters: Tensor, f: int) -> dict | None:
    """Fine-tunes each client's adapter of fold f for config.personalise epochs on its train rows.

    adapters  (A, P), one for each of the plan's models; not changed
    returns   {"epochs", "before", "after"}: accuracies on the client's own test rows, by client in
              "accuracy" and put together as in pipeline/runs/metrics.py; None for 0 epochs

    Everything else is as in a round after the last one: loss, fresh optimizer, batches.
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
        "before": _accuracies(engine, before, lanes),
        "after": _accuracies(engine, after, lanes),
    }


def _accuracies(engine: Engine, adapters: Tensor, lanes: list[Lane]) -> dict:
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
    figures = spread_or_none(right, [len(own) for own in rows])
    return {**figures, "accuracy": dict(sorted(by_name.items()))}
