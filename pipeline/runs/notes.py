"""Warnings about the rows of a run, before training."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from cache.table import FeatureTable
from kernels.heads import HEADS
from pipeline.errors import ConfigError
from pipeline.federation.clients import ClientSplit
from pipeline.federation.methods import METHODS
from pipeline.federation.plan import Fold, Plan, build_plan, steps_a_round
from pipeline.settings import RunConfig

NAMED = 5  # most names in a line
LINES = 6  # most lines of a kind
SAMPLE = 256  # rows whose length is measured
RAW = 10  # approximate length of ViT-B/32's raw features


def few(names: Sequence[str], most: int = NAMED) -> str:
    """Lists the first names, and how many more there are."""
    left = len(names) - most
    return ", ".join(names[:most]) + (f" and {left} more" if left > 0 else "")


def row_notes(table: FeatureTable, plan: Plan) -> list[str]:
    """Sentences on missing rows that do not stop the run; what several folds share is listed once.

    Reports: no test rows, clients that never train or have no validation or test rows, held-out
    domains without rows, classes without train rows, folds of one client, fewer classes than
    requested, a proximal term that is zero in every step.
    """
    clients = {client.name: client for fold in plan.folds for client in fold.clients}
    said = [
        *_untested(table, plan),
        *_clients_without(plan, list(clients.values())),
        *_empty_held_out(plan),
        *_bounded(list(_classes_without(table, plan))),
        *_bounded(list(_alone(plan))),
        *_bounded(list(_fewer_classes(table, plan, list(clients.values())))),
        *_never_pulled(plan),
    ]
    return list(dict.fromkeys(said))


def length_warning(table: FeatureTable, config: RunConfig) -> str | None:
    """A warning if the attention head trains on image features of length 1; else None.

    Only this head depends on a feature's length (docs/methods.md): W1 x grows with |x|, and the
    released adapter was designed for raw features. Measures up to SAMPLE rows, spread over the
    table.
    """
    if not HEADS[config.head].raw or config.mode == "FedAtTxt" or not METHODS[config.method].trains:
        return None
    if not len(table.features):
        return None
    some = np.unique(np.linspace(0, len(table.features) - 1, SAMPLE).astype(np.int64))
    lengths = np.linalg.norm(np.asarray(table.features[some], np.float64), axis=1)
    if not np.allclose(lengths, 1, atol=0.01):  # float16 rounds a length by up to 0.0005
        return None
    return (
        "features have length 1; the released adapter was designed for CLIP's raw features "
        f"(length about {RAW} for ViT-B/32); results differ: import with --feature-scale"
    )


def _untested(table: FeatureTable, plan: Plan) -> Iterator[str]:
    config = plan.folds[0].config
    if all(map(_has_test_rows, plan.folds)):
        return
    lacking = [_name(fold) for fold in plan.folds if not _has_test_rows(fold)]
    cure = ""
    for changes in ({"fixed_split": "holdout"}, {"split": 0.5}):
        try:
            other = build_plan(table, dataclasses.replace(config, **changes))
        except ConfigError:
            continue
        if all(map(_has_test_rows, other.folds)):
            name, value = next(iter(changes.items()))
            cure = f"; --{name.replace('_', '-')} {value} gives test rows"
            break
    yield f"held out {few(lacking)}: no test rows, so nothing is tested{cure}"


def _has_test_rows(fold: Fold) -> bool:
    return any(len(split.test) for split in (*fold.clients, *fold.unseen))


def _clients_without(plan: Plan, clients: Sequence[ClientSplit]) -> Iterator[str]:
    """Uses of which some clients, but not all, have no rows."""
    if plan.method.trains:
        lanes = [lane for lane in plan.lanes if lane.client is not None]
        idle = {
            plan.folds[lane.fold].clients[lane.client].name
            for lane in lanes
            if not steps_a_round(lane)
        }
        if idle:
            yield f"{few(sorted(idle))}: fewer than two train rows, so no training step"
    for part, why in (("val", "does not choose the round"), ("test", "is not tested")):
        if part == "val" and not plan.method.learns:
            continue
        without = [c.name for c in clients if not len(getattr(c, part))]
        if 0 < len(without) < len(clients):
            yield (
                f"{len(without)} of {len(clients)} clients: no {part} rows, so each {why}: "
                + few(without)
            )


def _empty_held_out(plan: Plan) -> Iterator[str]:
    held = {s.name: len(s.test) for fold in plan.folds for s in fold.unseen}
    empty = [name for name, rows in held.items() if not rows]
    if empty:
        yield f"held-out domains without rows, not tested: {few(empty)}"


def _classes_without(table: FeatureTable, plan: Plan) -> Iterator[str]:
    if not plan.method.learns:
        return
    for fold in plan.folds:
        rows = np.concatenate([client.train for client in fold.clients])
        counts = np.bincount(table.labels[rows], minlength=len(table.class_names))
        without = [table.class_names[c] for c in np.flatnonzero(counts == 0)]
        if without:
            yield (
                f"held out {_name(fold)}: {len(without)} of {len(counts)} classes have no train "
                f"rows: {few(without)}"
            )


def _alone(plan: Plan) -> Iterator[str]:
    for fold in plan.folds:
        if plan.method.averages and len(fold.clients) == 1:
            name = fold.clients[0].name
            yield f"held out {_name(fold)}: {name} is the only client, so nothing is averaged"


def _fewer_classes(
    table: FeatureTable, plan: Plan, clients: Sequence[ClientSplit]
) -> Iterator[str]:
    config = plan.folds[0].config
    if config.partition != "pathological":
        return
    for name in dict.fromkeys(client.domain_name for client in clients):
        own = [c for c in clients if c.domain_name == name]
        rows = np.concatenate([part for c in own for part in (c.train, c.val, c.test)])
        present = len(np.unique(table.labels[rows]))
        if not config.shots and present < config.classes_per_client:
            yield (
                f"domain {name}: {config.classes_per_client} classes per client requested, but "
                f"there are {present}: each client has all of them"
            )


def _never_pulled(plan: Plan) -> Iterator[str]:
    """mu (w - server's adapter) is 0 in a client's first step, where w is the server's adapter."""
    method = plan.method
    if method.proximal and method.keeps != "adapter" and max(map(steps_a_round, plan.lanes)) == 1:
        yield (
            f"mu {plan.folds[0].config.mu:g} changes nothing: every client makes one step a round, "
            "and the proximal term acts from the second on; a smaller --batch or more "
            "--local-epochs make more steps"
        )


def _bounded(lines: Sequence[str]) -> list[str]:
    left = len(lines) - LINES
    return [*lines[:LINES], *([f"and {left} more like these"] if left > 0 else [])]


def _name(fold: Fold) -> str:
    return ",".join(fold.held_out) or "none"
