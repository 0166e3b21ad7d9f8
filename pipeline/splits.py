"""Which rows of a client train, choose the round, and test."""

from dataclasses import dataclass

import numpy as np

from cache.table import FeatureTable
from pipeline.config import ConfigError

TRAIN, VAL, TEST = 0, 1, 2


@dataclass(frozen=True)
class ClientSplit:
    """One client: a domain of the table, and its row numbers by use."""

    name: str
    domain: int
    train: np.ndarray  # (n,) int64
    val: np.ndarray  # (n,) int64
    test: np.ndarray  # (n,) int64


def split_domain(table: FeatureTable, domain: int, fraction: float, seed: int) -> ClientSplit:
    """The client that owns one domain.

    A split that the cache fixes is kept. Otherwise the domain's n rows, in the table's order, are
    shuffled by numpy's RandomState(seed), afresh for each domain; int(fraction * n) train, and
    int((1 - fraction) / 2 * n) each validate and test: not stratified, up to two rows unused.

    Raises ConfigError for a client that could not be trained or chosen by: under two train rows (a
    batch of one row is skipped), or no validation row.
    Source: PersonalizedFL fedclip/datautil/datasplit, np.random.seed(seed) for each data set.
    """
    name = table.domain_names[domain]
    rows = np.flatnonzero(table.domains == domain)
    if table.split is not None:
        parts = [rows[table.split[rows] == part] for part in (TRAIN, VAL, TEST)]
    else:
        order = np.arange(len(rows))
        np.random.RandomState(seed).shuffle(order)
        # round() mends (1 - 0.6) / 2 style remainders: 0.2 of 5 rows must be one row, not none
        rest = round((1 - fraction) / 2, 12)
        train, held = int(len(rows) * fraction), int(len(rows) * rest)
        parts = [rows[order[a:b]] for a, b in _spans(train, held)]
    client = ClientSplit(name, domain, *parts)
    for part, least in (("train", 2), ("val", 1)):
        if len(getattr(client, part)) < least:
            raise ConfigError(
                f"{table.source}: client {name!r} has {len(rows)} rows, of which "
                f"{len(client.train)} train and {len(client.val)} validate; it needs at least 2 "
                "and 1. Give it more images, another --split, or hold it out"
            )
    return client


def _spans(train: int, held: int) -> list[tuple[int, int]]:
    return [(0, train), (train, train + held), (train + held, train + 2 * held)]
