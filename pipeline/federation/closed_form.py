"""The closed-form head of each fold, from sums that its clients send once, and its metric.

In the first exchange clients send sums of their train rows (Sums). In the second, scalars only,
they score the heads that everybody can now compute. Both are simulated here client by client; sums
are float64.
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
from pipeline.federation.methods.closed_form import (
    SENSITIVITY,
    Sums,
    clipped_sums,
    released,
    sums_of,
)
from pipeline.federation.methods.closed_form_choice import (
    SHAPES,
    SOLVERS,
    STRENGTHS,
    TEMPERATURES,
    Tried,
    best_of,
    heads_of,
    scored,
)
from pipeline.federation.plan import Fold, Plan, train_rows
from pipeline.settings import RunConfig

BLOCK = 4096  # rows at a time


@dataclass(frozen=True, eq=False)
class Metric:
    """Whitened features z = (x - mean) root of a fold's train rows, x at length 1.

    root root^T = D P / tr(P) with P = (A + eps tr(A) / D I)^-1, the precision of gda: its
    eigenvalues have mean D, so that one learning rate suits all data sets.

    root, inverse  (D, D) float32, root inverse^T = I;  mean (D,) float32
    features       (n, D) float32, z of the train rows;  labels (n,) int64
    place          (N,) int64, position of each row of the table in features; -1: none
    """

    root: Tensor
    inverse: Tensor
    mean: Tensor
    features: Tensor
    labels: Tensor
    place: Tensor

    def whitened(self, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The classifier over z that equals w (.., C, D), b (.., C) over x."""
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
    chosen  the head chosen from the grid;  tried  all of them
    by      the rows that chose it: "rows", "domain" or "validation" (setting tune_on)
    metric  for training that starts here; None if nothing trains
    sent    numbers that one client sends and receives
    """

    row: Tensor
    chosen: Tried
    tried: tuple[Tried, ...]
    by: str
    metric: Metric | None
    sent: tuple[int, int]


Known = dict[tuple[object, ...], ClosedForm]
"""Heads by everything that determines them, shared by the trials of a sweep."""


def with_closed_form(plan: Plan, cached: Cached, known: Known | None = None) -> Plan:
    """Adds the closed-form head to each fold that needs one, by its start or its method.

    Raises ConfigError if there are no rows to choose by.
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
    config = fold.config
    parts = [shortened(client_sums(cached, client.train), config) for client in fold.clients]
    sums = total_of(fold, parts)
    by = tuned_on(fold)
    tried = tried_of(fold, _found(fold, cached, parts, sums, by))
    if config.refit == "yes":
        rows = [train_rows(client, config) for client in fold.clients]
        again = [shortened(client_sums(cached, own), config) for own in rows]
        sums = sum(again[1:], again[0])
    metric = None
    if METHODS[config.method].trains:
        metric = metric_of(fold, cached, *whitening(sums, tried))
    return solved_of(fold, cached, sums, tried, by, metric)


def total_of(fold: Fold, parts: Sequence[Sums]) -> Sums:
    """The server's total of its clients' sums; with --noise it is released once."""
    sums = sum(parts[1:], parts[0])
    config = fold.config
    sigma = config.noise * (_clip(config) or SENSITIVITY)
    return released(sums, sigma, config.seed) if config.noise else sums


def solved_of(
    fold: Fold, cached: Cached, sums: Sums, tried: Sequence[Tried], by: str,
    metric: Metric | None = None,
) -> ClosedForm:  # fmt: skip
    """The best of the tried heads, computed from `sums`; reads only the text of `cached`.

    Raises ConfigError if there were no rows to choose by.
    """
    try:
        chosen = best_of(tried)
    except ValueError as error:
        raise ConfigError(
            f"closed-form: no rows to choose by (tune_on {by}); pass --tune-on rows, or "
            "all of --solver, --shape and --strength"
        ) from error
    width = sums.gram.shape[0]
    numbers = len(cached.text) * (width + 1) + width * (width + 1) // 2
    scalars = len(tried) * (len(TEMPERATURES) + 2)
    row = _row(cached, sums, chosen)
    return ClosedForm(row, chosen, tuple(tried), by, metric, (numbers + scalars, numbers))


def tuned_on(fold: Fold) -> str:
    """The rows that choose the head: with tune_on auto other domains if several train, else
    rows."""
    config = fold.config
    if config.tune_on != "auto":
        return config.tune_on
    if config.noise:
        return "validation"  # noise covers one release of the sums, not scores of train rows
    if len({client.domain for client in fold.clients}) > 1:
        return "domain"
    # Leaving a row out is exact only if it is unclipped in the sums.
    return "validation" if _clip(config) else "rows"


Found = dict[tuple[str, float, float], tuple[float, float, tuple[float, ...]]]
"""By solver, shape and strength: rows, correct ones, and summed losses at each of TEMPERATURES."""


def scores(
    config: RunConfig, cached: Cached, clients: Sequence[ClientSplit], sums: Sums, by: str,
    found: Found, weight: float = 1.0,
) -> None:  # fmt: skip
    """Adds to `found` the scores of all heads of the grid on clients' rows, weighted by `weight`.

    by  "rows": train rows, each left out of the heads, and validation rows; "validation": only
    those;
            "domain": train rows, by heads of other domains' `sums`
    """
    grid = list(heads_of(config.solver, sums, cached.logit_scale, config.shape))
    for use in {"rows": ("train", "val"), "validation": ("val",), "domain": ("train",)}[by]:
        for x, y, zero_shot in _blocks(cached, clients, use):
            for solver, shape, head in grid:
                strengths = (config.strength,) if config.strength else STRENGTHS[solver]
                added = head.left_out(x, y) if (by, use) == ("rows", "train") else head(x)
                right, losses = scored(zero_shot, added, y, strengths)
                for g, strength in enumerate(strengths):
                    key = solver, shape, strength
                    before = found.get(key, (0.0, 0.0, (0.0,) * len(TEMPERATURES)))
                    more = (weight * losses[g]).tolist()
                    found[key] = (
                        before[0] + weight * len(y), before[1] + weight * float(right[g]),
                        tuple(a + b for a, b in zip(before[2], more, strict=True)),
                    )  # fmt: skip


def tried_of(fold: Fold, found: Found) -> list[Tried]:
    """The scored heads of the grid; a fully specified one even without scores."""
    config, found = fold.config, dict(found)
    if not found and config.shape and config.strength and config.solver != "auto":
        found[config.solver, config.shape, config.strength] = 0.0, 0.0, (0.0,) * len(TEMPERATURES)
    return [Tried(*key, round(n), right, losses) for key, (n, right, losses) in found.items()]


def grid_of(config: RunConfig) -> list[tuple[str, float, float]]:
    """Solver, shape and strength of each tried head, in the order of `scores`."""
    return [
        (solver, shape, strength)
        for solver in SOLVERS[config.solver]
        for shape in ((config.shape,) if config.shape else SHAPES[solver])
        for strength in ((config.strength,) if config.strength else STRENGTHS[solver])
    ]


def domains_apart(
    fold: Fold, parts: Sequence[Sums]
) -> Iterator[tuple[list[ClientSplit], Sums, float]]:
    """For each domain its clients, the sums of all others, and the weight of its train rows.

    Domains count equally. Raises ConfigError if there is only one.
    """
    domains = sorted({client.domain for client in fold.clients})
    total = sum(len(client.train) for client in fold.clients)
    for domain in domains:
        rest = [p for c, p in zip(fold.clients, parts, strict=True) if c.domain != domain]
        if not rest:
            raise ConfigError(
                "tune_on domain needs two or more training domains; there is one: pass "
                "--tune-on rows or validation"
            )
        own = [client for client in fold.clients if client.domain == domain]
        rows = sum(len(client.train) for client in own)
        yield own, sum(rest[1:], rest[0]), total / (len(domains) * max(rows, 1))


def _found(fold: Fold, cached: Cached, parts: Sequence[Sums], sums: Sums, by: str) -> Found:
    """Scores all heads of the grid on the rows that choose."""
    found: Found = {}
    if by != "domain":
        scores(fold.config, cached, fold.clients, sums, by, found)
        return found
    for own, rest, weight in domains_apart(fold, parts):
        scores(fold.config, cached, own, rest, by, found, weight)
    return found


def _blocks(
    cached: Cached, clients: Sequence[ClientSplit], use: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields blocks of clients' unit rows (n, D) float64, classes and zero-shot logits float32."""
    for client in clients:
        rows = torch.from_numpy(getattr(client, use)).to(cached.labels.device)
        for own in rows.split(BLOCK):
            x = normalize(cached.features[own].double(), dim=1)
            yield x, cached.labels[own], cached.logit_scale * (x.float() @ cached.unit_text.mT)


def _clip(config: RunConfig) -> float:
    """The largest norm of a client's sums, 0: any; in methods that train, clip is for updates."""
    return config.clip if METHODS[config.method].solved else 0.0


def shortened(sums: Sums, config: RunConfig) -> Sums:
    """A client's sums as they are added: clipped by --clip, if it applies to sums."""
    return clipped_sums(sums, _clip(config)) if _clip(config) else sums


def client_sums(cached: Cached, rows: np.ndarray) -> Sums:
    """The sums that a client sends of its rows (n,) int64."""
    own = torch.from_numpy(rows).to(cached.labels.device)
    return sums_of(cached.features, cached.labels, len(cached.text), own)


def _row(cached: Cached, sums: Sums, chosen: Tried) -> Tensor:
    scale = cached.logit_scale
    _, _, head = next(heads_of(chosen.solver, sums, scale, chosen.shape))
    w = cached.unit_text.double() + chosen.strength / scale * head.weight
    b = chosen.strength / scale * head.bias
    return torch.cat([(chosen.temperature * w).flatten(), chosen.temperature * b]).float()


def whitening(sums: Sums, tried: Sequence[Tried]) -> tuple[Tensor, Tensor, Tensor]:
    """The metric's root, inverse and mean, float64: gda's whitening at its best eps on the grid.

    eps is 1 if gda was not tried.
    """
    of_gda = [each for each in tried if each.solver == "gda"]
    eps = best_of(of_gda).shape if of_gda else 1.0
    width, total = sums.gram.shape[0], sums.count.sum().clamp(min=1)
    mean = sums.by_class / sums.count.clamp(min=1)[:, None]
    within = sums.gram - (mean * sums.count[:, None]).T @ mean
    values, vectors = torch.linalg.eigh(within)
    values = values.clamp(min=0)
    values = values + eps * values.mean().clamp(min=1e-6 * sums.gram.trace() / width)
    scale = (1 / values / (1 / values).mean() * width).sqrt()
    return vectors * scale, vectors / scale, sums.by_class.sum(0) / total


def metric_of(fold: Fold, cached: Cached, root: Tensor, inverse: Tensor, centre: Tensor) -> Metric:
    """The metric of a fold's clients' train rows, of what `whitening` returns."""
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
    """Everything that determines a fold's head."""
    c: RunConfig = fold.config
    return (
        c.solver, c.tune_on, c.shape, c.strength, c.refit, c.noise, c.seed if c.noise else None,
        METHODS[c.method].solved, METHODS[c.method].solved and c.clip,
        tuple((k.domain, k.train.tobytes(), k.val.tobytes()) for k in fold.clients),
    )  # fmt: skip


@functools.lru_cache(maxsize=1)
def stacked(metrics: tuple[Metric, ...]) -> tuple[Tensor, Tensor]:
    """The whitened rows of several metrics, concatenated, and their classes."""
    return torch.cat([m.features for m in metrics]), torch.cat([m.labels for m in metrics])
