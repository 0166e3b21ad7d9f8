"""The closed-form head of each fold, from sums that its clients send once, and its metric.

Round one: clients send sums of their train rows (Sums). Round two, scalars only: they score the
heads that all can now make. Both are simulated here client by client, and add up in float64.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.errors import ConfigError
from pipeline.federation.clients import ClientSplit
from pipeline.federation.evaluate import Cached
from pipeline.federation.methods import METHODS
from pipeline.federation.methods.closed_form import Sums, sums_of
from pipeline.federation.methods.closed_form_choice import (
    STRENGTHS,
    TEMPERATURES,
    Tried,
    best_of,
    heads_of,
    scored,
)
from pipeline.federation.methods.closed_form_privacy import (
    SENSITIVITY,
    clipped_sums,
    released,
)
from pipeline.federation.plan import Fold, Plan, train_rows
from pipeline.settings import RunConfig

BLOCK = 4096  # rows at a time


@dataclass(frozen=True, eq=False)
class Metric:
    """Whitened features z = (x - mean) root of a fold's train rows, x at length 1.

    root root^T = D P / tr(P) with P = (A + eps tr(A) / D I)^-1, the precision of gda: the mean of
    its eigenvalues is D, so that one learning rate fits data sets.

    root, inverse  (D, D) float32, root inverse^T = I;  mean (D,) float32
    features       (n, D) float32, z of the train rows;  labels (n,) int64
    place          (N,) int64, where a row of the table lies in features; -1: nowhere
    """

    root: Tensor
    inverse: Tensor
    mean: Tensor
    features: Tensor
    labels: Tensor
    place: Tensor

    def whitened(self, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The classifier over z that answers as w (.., C, D), b (.., C) do over x."""
        return w @ self.inverse, b + w @ self.mean

    def plain(self, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of whitened."""
        w = v @ self.root.mT
        return w, c - w @ self.mean


@dataclass(frozen=True)
class ClosedForm:
    """A fold's closed-form head.

    row     (P,) float32, a classifier's numbers: w = t (text + strength W / s) and
            b = t strength B / s, t the temperature, s the logit scale, (W, B) what the solver adds
    chosen  the head of the grid that was taken;  tried: all of them
    by      the rows that chose it: "rows", "domain" or "validation" (setting tune_on)
    metric  for training on from here; None where nothing does
    sent    numbers that one client sends and receives
    """

    row: Tensor
    chosen: Tried
    tried: tuple[Tried, ...]
    by: str
    metric: Metric | None
    sent: tuple[int, int]


Known = dict[tuple[object, ...], ClosedForm]
"""Heads by all that decides them, for the trials of a sweep to share."""


def with_closed_form(plan: Plan, cached: Cached, known: Known | None = None) -> Plan:
    """The plan with the head of each fold whose config starts at one, or has that method.

    Raises ConfigError where there is no row to choose by.
    """
    known = {} if known is None else known
    folds = []
    for fold in plan.folds:
        if METHODS[fold.config.method].solved or fold.config.start == "closed-form":
            key = _key(fold)
            if key not in known:
                known[key] = closed_form(fold, cached)
            fold = replace(fold, closed_form=known[key])
        folds.append(fold)
    return replace(plan, folds=tuple(folds))


def closed_form(fold: Fold, cached: Cached) -> ClosedForm:
    """The head of one fold: its clients' sums, the choice among heads, and the metric."""
    config, classes = fold.config, len(cached.text)
    clip = config.clip if METHODS[config.method].solved else 0.0  # else it bounds updates
    parts = [_sums(cached, client.train, clip) for client in fold.clients]
    sums = sum(parts[1:], parts[0])
    if config.noise:
        sums = released(sums, config.noise * (clip or SENSITIVITY), config.seed)
    by = tuned_on(fold)
    tried = _tried(fold, cached, parts, sums, by)
    try:
        chosen = best_of(tried)
    except ValueError as error:
        raise ConfigError(
            f"closed-form: there is no row to choose by (tune_on {by}); pass --tune-on rows, or "
            "all of --solver, --shape and --strength"
        ) from error
    if config.refit == "yes":
        again = [_sums(cached, train_rows(client, config), clip) for client in fold.clients]
        sums = sum(again[1:], again[0])
    row = _row(cached, sums, chosen)
    trains = METHODS[config.method].trains
    width = cached.features.shape[1]
    numbers = classes * (width + 1) + width * (width + 1) // 2
    scalars = len(tried) * (len(TEMPERATURES) + 2)
    return ClosedForm(
        row, chosen, tuple(tried), by, _metric(fold, cached, sums, tried) if trains else None,
        (numbers + scalars, numbers),
    )  # fmt: skip


def tuned_on(fold: Fold) -> str:
    """The rows that choose: with tune_on auto other domains where several train, else rows."""
    config = fold.config
    if config.tune_on != "auto":
        return config.tune_on
    if config.noise:
        return "validation"  # the release covers the sums once: scores of train rows are not in it
    if len({client.domain for client in fold.clients}) > 1:
        return "domain"
    # A left-out row is exact only where it is whole in the sums.
    return "validation" if config.clip and METHODS[config.method].solved else "rows"


def _tried(fold: Fold, cached: Cached, parts: Sequence[Sums], sums: Sums, by: str) -> list[Tried]:
    """All heads of the grid, scored on the rows that choose."""
    config, found = fold.config, {}
    for zero_shot, y, heads, weight in _rows_to_score(fold, cached, parts, sums, by):
        for (solver, shape), added in heads:
            strengths = (config.strength,) if config.strength else STRENGTHS[solver]
            right, losses = scored(zero_shot, added, y, strengths)
            for g, strength in enumerate(strengths):
                key = solver, shape, strength
                before = found.get(key, (0.0, 0.0, (0.0,) * len(TEMPERATURES)))
                more = (weight * losses[g]).tolist()
                found[key] = (
                    before[0] + weight * len(y), before[1] + weight * float(right[g]),
                    tuple(a + b for a, b in zip(before[2], more, strict=True)),
                )  # fmt: skip
    if not found and config.shape and config.strength and config.solver != "auto":
        found[config.solver, config.shape, config.strength] = 0.0, 0.0, (0.0,) * len(TEMPERATURES)
    return [Tried(*key, round(n), *reached) for key, (n, *reached) in found.items()]


Scorable = tuple[Tensor, Tensor, Iterator[tuple[tuple[str, float], Tensor]], float]
"""Zero-shot logits (n, C) and classes (n,) of some rows, what each head adds to them, and what each
row counts."""


def _rows_to_score(
    fold: Fold, cached: Cached, parts: Sequence[Sums], sums: Sums, by: str
) -> Iterator[Scorable]:
    config, scale = fold.config, cached.logit_scale
    if by == "domain":
        domains = sorted({client.domain for client in fold.clients})
        for domain in domains:
            rest = [p for c, p in zip(fold.clients, parts, strict=True) if c.domain != domain]
            if not rest:
                raise ConfigError(
                    "tune_on domain needs two training domains or more; there is one: pass "
                    "--tune-on rows or validation"
                )
            heads = list(heads_of(config.solver, sum(rest[1:], rest[0]), scale, config.shape))
            own = [c for c in fold.clients if c.domain == domain]
            rows = sum(len(c.train) for c in own)
            weight = float(sums.count.sum()) / (len(domains) * max(rows, 1))  # domains count alike
            for x, y, plain in _blocks(cached, own, "train"):
                yield plain, y, (((s, p), head(x)) for s, p, head in heads), weight
        return
    heads = list(heads_of(config.solver, sums, scale, config.shape))
    if by == "rows":
        for x, y, plain in _blocks(cached, fold.clients, "train"):
            yield plain, y, (((s, p), head.left_out(x, y)) for s, p, head in heads), 1.0
    for x, y, plain in _blocks(cached, fold.clients, "val"):
        yield plain, y, (((s, p), head(x)) for s, p, head in heads), 1.0


def _blocks(
    cached: Cached, clients: Sequence[ClientSplit], use: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Unit rows (n, D) float64, classes and zero-shot logits float32 of clients, in blocks."""
    for client in clients:
        rows = torch.from_numpy(getattr(client, use)).to(cached.labels.device)
        for own in rows.split(BLOCK):
            x = normalize(cached.features[own].double(), dim=1)
            yield x, cached.labels[own], cached.logit_scale * (x.float() @ cached.unit_text.mT)


def _sums(cached: Cached, rows: np.ndarray, clip: float) -> Sums:
    """What a client sends: the sums over its rows; clip 0: whole."""
    own = torch.from_numpy(rows).to(cached.labels.device)
    sums = sums_of(cached.features, cached.labels, len(cached.text), own)
    return clipped_sums(sums, clip) if clip else sums


def _row(cached: Cached, sums: Sums, chosen: Tried) -> Tensor:
    scale = cached.logit_scale
    _, _, head = next(heads_of(chosen.solver, sums, scale, chosen.shape))
    w = cached.unit_text.double() + chosen.strength / scale * head.weight
    b = chosen.strength / scale * head.bias
    return torch.cat([(chosen.temperature * w).flatten(), chosen.temperature * b]).float()


def _metric(fold: Fold, cached: Cached, sums: Sums, tried: Sequence[Tried]) -> Metric:
    """The whitening of gda at its best eps on the grid, at 1 where gda was not tried."""
    of_gda = [each for each in tried if each.solver == "gda"]
    eps = best_of(of_gda).shape if of_gda else 1.0
    width, total = cached.features.shape[1], sums.count.sum().clamp(min=1)
    mean = sums.by_class / sums.count.clamp(min=1)[:, None]
    within = sums.gram - (mean * sums.count[:, None]).T @ mean
    values, vectors = torch.linalg.eigh(within)
    values = values.clamp(min=0)
    values = values + eps * values.mean().clamp(min=1e-6 * sums.gram.trace() / width)
    scale = (1 / values / (1 / values).mean() * width).sqrt()
    root, inverse = vectors * scale, vectors / scale
    centre = sums.by_class.sum(0) / total
    rows = np.concatenate([train_rows(client, fold.config) for client in fold.clients])
    own = torch.from_numpy(rows).to(cached.labels.device)
    place = torch.full((len(cached.labels),), -1, dtype=torch.int64)
    place[torch.from_numpy(rows)] = torch.arange(len(rows))
    parts = [
        ((normalize(cached.features[part].double(), dim=1) - centre) @ root).float()
        for part in own.split(BLOCK)
    ]
    features = torch.cat(parts) if parts else cached.features[own]
    return Metric(
        root.float(), inverse.float(), centre.float(), features, cached.labels[own], place
    )


def _key(fold: Fold) -> tuple[object, ...]:
    """All that decides a fold's head."""
    c: RunConfig = fold.config
    return (
        c.solver, c.tune_on, c.shape, c.strength, c.refit, c.noise, c.seed if c.noise else None,
        METHODS[c.method].solved, METHODS[c.method].solved and c.clip,
        tuple((k.domain, k.train.tobytes(), k.val.tobytes()) for k in fold.clients),
    )  # fmt: skip


@functools.lru_cache(maxsize=1)
def stacked(metrics: tuple[Metric, ...]) -> tuple[Tensor, Tensor]:
    """Whitened rows of several metrics one after another, and their classes."""
    return torch.cat([m.features for m in metrics]), torch.cat([m.labels for m in metrics])
