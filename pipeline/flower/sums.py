"""Closed-form heads over sites: their sums in one exchange, the choice among heads in one more."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.errors import ConfigError
from pipeline.federation.clients import ClientSplit
from pipeline.federation.closed_form import (
    ClosedForm,
    Found,
    client_sums,
    domains_apart,
    grid_of,
    metric_of,
    scores,
    shortened,
    solved_of,
    total_of,
    tried_of,
    tuned_on,
    whitening,
)
from pipeline.federation.evaluate import Cached
from pipeline.federation.methods.closed_form import Sums, packed, unpacked
from pipeline.federation.methods.closed_form_choice import TEMPERATURES, Tried
from pipeline.federation.plan import Fold, train_rows
from pipeline.flower.records import Arrays, Ask, plain_array
from pipeline.settings import RunConfig

if TYPE_CHECKING:
    from pipeline.flower.answer import Client

SUMS = "sums"
"""What a site is asked first; then the rows that choose: "rows", "domain" or "validation"."""
_SLACK = 1e-6  # of what sums of unit rows can be: they were rounded when they were added


def of_site(
    config: RunConfig, cached: Cached, clients: Sequence[ClientSplit], ask: Ask
) -> dict[str, Tensor]:
    """What a site answers: packed sums (n,) of each client, or scores (G, 2 + T) by domain.

    A row of scores is that of one head of the grid: rows, right ones, summed losses at each of
    TEMPERATURES. ask.sums has the sums that heads are made of, by domain, "" for any.
    """
    if ask.solve == SUMS:
        found = {f"sums.{c.name}": packed(client_sums(cached, c.train)) for c in clients}
        if config.refit == "yes":
            again = {c.name: client_sums(cached, train_rows(c, config)) for c in clients}
            found |= {f"refit.{name}": packed(own) for name, own in again.items()}
        return found
    answers = {}
    for domain, numbers in ask.sums.items():
        own = [client for client in clients if domain in ("", client.domain_name)]
        sums = unpacked(numbers, len(cached.text), cached.features.shape[1])
        reached: Found = {}
        scores(config, cached, own, sums, ask.solve, reached)
        none = (0.0, 0.0, (0.0,) * len(TEMPERATURES))
        each = [reached.get(key, none) for key in grid_of(config)]
        rows = [[n, right, *losses] for n, right, losses in each]
        answers[f"scores.{domain}"] = torch.tensor(rows, dtype=torch.float64)
    return answers


def head_of_site(fold: Fold, cached: Cached, sent: Tensor) -> ClosedForm:
    """The head of a fold as far as training on from it at a site needs it: its metric.

    sent  ((D + 1) D,) float32, root and mean of whitening; of V S, V orthonormal, the inverse is
          V / S. Raises ConfigError for others.
    """
    width = cached.features.shape[1]
    if len(sent) != (width + 1) * width or not sent.isfinite().all():
        raise ConfigError(f"a metric of {len(sent):,} numbers came, not of width {width:,}")
    *root, mean = sent.double().to(cached.text.device).reshape(width + 1, width)
    root = torch.stack(root)
    metric = metric_of(fold, cached, root, root / root.square().sum(dim=0), mean)
    return ClosedForm(cached.text, Tried("", 0, 0, 0, 0, ()), (), "", metric, (0, 0))


def checked(
    config: RunConfig, clients: Mapping[str, "Client"], arrays: Arrays, solve: str,
    domains: Sequence[str], classes: int, width: int,
) -> dict[str, Tensor]:  # fmt: skip
    """What of_site returned, as it came. Raises ValueError for what no rows of the site can give.

    Sums: finite, as many rows as were stated, no class's sum longer than its rows, no more in the
    gram's diagonal than rows. Scores: of the rows stated, no more right ones, finite losses.
    """
    found = {}
    if solve == SUMS:
        kinds: dict[str, tuple[str, ...]] = {"sums": ("train",)}
        kinds |= {"refit": ("train", "val")} if config.refit == "yes" else {}
        count = classes * (width + 1) + width * (width + 1) // 2
        for kind, uses in kinds.items():
            for name, client in clients.items():
                numbers = _taken(arrays, f"{kind}.{name}", count)
                _check_sums(
                    unpacked(numbers, classes, width), sum(getattr(client, u) for u in uses)
                )
                found[f"{kind}.{name}"] = numbers
    else:
        uses = {"rows": ("train", "val"), "domain": ("train",), "validation": ("val",)}[solve]
        for domain in domains:
            rows = sum(
                getattr(client, use) for client in clients.values() for use in uses
                if domain in ("", client.domain)
            )  # fmt: skip
            shape = len(grid_of(config)), 2 + len(TEMPERATURES)
            numbers = _taken(arrays, f"scores.{domain}", *shape)
            if not ((numbers[:, 0] == rows).all() and (numbers >= 0).all()
                    and (numbers[:, 1] <= rows).all()):  # fmt: skip
                raise ValueError(f"scores of {rows:,} rows were expected")
            found[f"scores.{domain}"] = numbers
    if strange := sorted(set(arrays) - set(found)):
        raise ValueError(f"an array {strange[0]} was not expected")
    return found


def chosen(
    fold: Fold, text: Tensor, logit_scale: float, sums: Mapping[str, Sums],
    again: Mapping[str, Sums], answers: Sequence[Mapping[str, Tensor]],
) -> tuple[ClosedForm, Tensor]:  # fmt: skip
    """The fold's head as closed_form.closed_form makes it, of the clients whose sums came.

    The second value is what head_of_site reads.

    sums, again  of each client: of its train rows, and with refit of its validation rows too
    answers      of each site: scores
    """
    clients = tuple(client for client in fold.clients if client.name in sums)
    fold = replace(fold, clients=clients)
    by, parts = tuned_on(fold), [shortened(sums[c.name], fold.config) for c in clients]
    weights = {"": 1.0}
    if by == "domain":
        weights = {own[0].domain_name: weight for own, _, weight in domains_apart(fold, parts)}
    total = torch.zeros(len(grid_of(fold.config)), 2 + len(TEMPERATURES), dtype=torch.float64)
    for domain, weight in weights.items():
        for each in answers:
            if f"scores.{domain}" in each:
                total += weight * each[f"scores.{domain}"]
    found: Found = {
        key: (n, right, tuple(losses))
        for key, (n, right, *losses) in zip(grid_of(fold.config), total.tolist(), strict=True)
        if n
    }
    none = text.new_empty(0, text.shape[1])
    cached = Cached(none, none.long(), text, normalize(text, dim=1), logit_scale)
    last = [shortened(again[c.name], fold.config) for c in clients] if again else parts
    made = sum(last[1:], last[0]) if again else total_of(fold, parts)
    tried = tried_of(fold, found)
    root, _, mean = whitening(made, tried)
    sent = torch.cat([root.flatten(), mean]).float()
    return solved_of(fold, cached, made, tried, by), sent


def to_score(fold: Fold, sums: Mapping[str, Sums]) -> tuple[str, dict[str, Tensor]]:
    """The rows that choose, and by domain, "" for any, the packed sums that heads are made of."""
    fold = replace(fold, clients=tuple(c for c in fold.clients if c.name in sums))
    by, parts = tuned_on(fold), [shortened(sums[c.name], fold.config) for c in fold.clients]
    if by != "domain":
        return by, {"": packed(total_of(fold, parts))}
    return by, {own[0].domain_name: packed(rest) for own, rest, _ in domains_apart(fold, parts)}


def _taken(arrays: Mapping[str, Any], name: str, *shape: int) -> Tensor:
    if name not in arrays:
        raise ValueError(f"{name} did not come")
    numbers = plain_array(arrays[name], np.float64, shape)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} has numbers that are not finite")
    return torch.from_numpy(numbers)


def _check_sums(sums: Sums, rows: int) -> None:
    count, most = sums.count, sums.count * (1 + _SLACK)
    diagonal = sums.gram.diagonal()
    if not ((count >= 0).all() and (count == count.round()).all() and count.sum() == rows):
        raise ValueError(f"counts of {rows:,} rows were expected")
    if (sums.by_class.norm(dim=1) > most).any() or (diagonal < 0).any() or (
        diagonal.sum() > rows * (1 + _SLACK) or (sums.gram.abs() > rows * (1 + _SLACK)).any()
    ):  # fmt: skip
        raise ValueError(f"sums of {rows:,} rows of length 1 were expected")
