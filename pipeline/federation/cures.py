"""Finds options that fix a lack of rows; each is tried on the rows before it is suggested."""

import dataclasses
import shlex
from collections.abc import Iterator
from typing import Any

from cache.table import FeatureTable
from pipeline.errors import ConflictError, RowsError
from pipeline.federation.clients import split_domain
from pipeline.settings import RunConfig

SHARES = (0.5, 0.3)
"""0.5 splits four rows, the fewest possible; with fixed_split holdout, 0.3 splits three."""
NAMED = 3  # most suggestions in a message


def cures(table: FeatureTable, config: RunConfig) -> str:
    """A sentence with options under which every client of `config` has the rows it needs.

    Each option was tried: with it, split_domain refuses no training domain. Holding out the domains
    that lack rows is tried alone and with each other option.
    """
    found: list[str] = []
    for changes in ({}, *_candidates(table, config)):
        try:
            changed = dataclasses.replace(config, **changes)
        except ConflictError:
            continue
        lacking = _lacking(table, changed)
        if not lacking and changes:
            found.append(_options(changes))
        elif lacking and not found:
            held_out = _held_out(table, config, lacking)
            found += [f"{_options(changes)} {held_out}".strip()] if held_out else []
    if not found:
        return "No setting fixes that; the cache needs more images"
    return f"Pass {', or '.join(found[:NAMED])}"


def _candidates(table: FeatureTable, config: RunConfig) -> Iterator[dict[str, Any]]:
    """Changes of settings that may help, the smallest first."""
    if config.shots:
        yield {"shots": 2}
    if config.choose != "last":
        yield {"choose": "last"}
    if table.split is not None and config.fixed_split == "keep":
        yield {"fixed_split": "holdout"}
        yield from ({"fixed_split": "holdout", "split": share} for share in SHARES)
    elif config.fixed_split == "holdout":
        yield {"fixed_split": "keep"}
        yield from ({"fixed_split": "keep", "split": share} for share in SHARES)
    if table.split is None or config.fixed_split == "holdout":
        yield from ({"split": share} for share in SHARES)
    if config.partition == "domain":
        return
    classes = len(table.class_names)
    if config.partition == "pathological":
        yield {"classes_per_client": -(-classes // config.clients)}
        yield {"clients": -(-classes // config.classes_per_client)}
    if most := _most_clients(table, config):
        yield {"clients": most}
    if config.partition == "pathological":
        yield {"classes_per_client": classes}
        if most := _most_clients(table, dataclasses.replace(config, classes_per_client=classes)):
            yield {"classes_per_client": classes, "clients": most}


def _most_clients(table: FeatureTable, config: RunConfig) -> int:
    """The most clients, fewer than requested, that the rows suffice for; 0 if not even one."""
    low, high = 0, min(config.clients, len(table.labels))
    while high - low > 1:
        middle = (low + high) // 2
        fits = not _lacking(table, dataclasses.replace(config, clients=middle))
        low, high = (middle, high) if fits else (low, middle)
    return low


def _lacking(table: FeatureTable, config: RunConfig) -> list[str]:
    """The domains that would train in a fold of `config` but lack rows."""
    always_out = set.intersection(*map(set, config.held_out))
    lacking = []
    for domain, name in enumerate(table.domain_names):
        if name not in always_out:
            try:
                split_domain(table, domain, config)
            except RowsError:
                lacking.append(name)
    return lacking


def _held_out(table: FeatureTable, config: RunConfig, lacking: list[str]) -> str:
    """config's folds with the lacking domains held out as well; "" if none is left to train."""
    names = table.domain_names
    wanted = [tuple(n for n in names if n in (*fold, *lacking)) for fold in config.held_out]
    folds = [fold for fold in dict.fromkeys(wanted) if len(fold) < len(names)]
    if any("," in name for fold in folds if len(fold) > 1 for name in fold):
        return ""  # --held-out a,b cannot name them
    return " ".join(f"--held-out {shlex.quote(','.join(fold))}" for fold in folds)


def _options(changes: dict[str, Any]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changes.items())
