"""Splits a domain's rows into clients, and a client's rows into train, validation and test."""

from dataclasses import dataclass, replace

import numpy as np

from cache.table import FeatureTable
from pipeline.errors import RowsError
from pipeline.federation.methods import METHODS
from pipeline.federation.partitions import few_shot, partition
from pipeline.settings import RunConfig

TRAIN, VAL, TEST = 0, 1, 2
NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True)
class ClientSplit:
    """One client: its domain, and its rows by use."""

    name: str
    domain: int
    domain_name: str
    stream: int  # seeds its row orders
    train: np.ndarray  # (n,) int64
    val: np.ndarray  # (n,) int64
    test: np.ndarray  # (n,) int64


def split_domain(table: FeatureTable, domain: int, config: RunConfig) -> list[ClientSplit]:
    """The clients that own the rows of one domain: one, or config.clients of them.

    A split that the cache fixes is kept; with fixed_split "holdout" its train rows train, except a
    share of (1 - split) / 2 of them that validate, and all others test. Otherwise the domain's n
    rows, in the table's order, are shuffled by a new RandomState(seed) for each domain; int(split *
    n) train, and int((1 - split) / 2 * n) each validate and test: not stratified, up to two rows
    unused. Partitions (pipeline/federation/partitions.py) divide the rows of each use in the same
    way.

    Raises RowsError for "holdout" if the cache fixes no split, and for a client that cannot train
    or choose rounds: under two train rows (a batch of one row is skipped), or no validation row in
    the whole domain unless choose is "last". Method zero-shot accepts any rows; closed-form needs
    one train row in each domain.
    Source: PersonalizedFL fedclip/datautil/datasplit, np.random.seed(seed) for each data set.
    """
    name = table.domain_names[domain]
    rows = np.flatnonzero(table.domains == domain)
    train, val, test = _uses(table, rows, config)
    whole = ClientSplit(name, domain, name, domain, train, val, test)
    least = needed(config)
    if any(len(getattr(whole, part)) < count for part, count in least.items()):
        fixed = "" if table.split is None else " by the cache's own split"
        raise RowsError(
            f"{table.source}: client {name!r} has {len(rows)} rows, of which{fixed} {len(train)} "
            f"train, {len(val)} validate and {len(test)} test; it needs at least "
            + " and ".join(f"{count} {part} rows" for part, count in least.items() if count)
        )
    clients = [whole] if config.partition == "domain" else _share_out(table, whole, config)
    if config.shots:
        clients = [
            replace(c, train=few_shot(c.train, table.labels, config.shots, config.seed, c.stream))
            for c in clients
        ]
        most = max(len(client.train) for client in clients)
        if most < least.get("train", 0):
            raise RowsError(
                f"{table.source}: domain {name!r}: of {config.shots} shots a class no client has "
                f"more than {most} train rows; one needs at least {least['train']}"
            )
    return clients


def needed(config: RunConfig) -> dict[str, int]:
    """The least rows of each use that every domain must have."""
    method = METHODS[config.method]
    if not method.trains:
        return {"train": 1} if method.solved else {}
    return {"train": 2, "val": 0 if config.choose == "last" else 1}


def _uses(table: FeatureTable, rows: np.ndarray, config: RunConfig) -> list[np.ndarray]:
    # without round(), (1 - 0.6) / 2 of 5 rows would be no row instead of one
    rest = round((1 - config.split) / 2, 12)
    order = np.arange(len(rows))
    shuffle = np.random.RandomState(config.seed).shuffle
    if table.split is None:
        if config.fixed_split == "holdout":
            raise RowsError(
                f"{table.source}: fixed_split holdout needs a cache that fixes a split; this one "
                "fixes none"
            )
        shuffle(order)
        train, held = int(len(rows) * config.split), int(len(rows) * rest)
        return [rows[order[a:b]] for a, b in _spans(train, held)]
    parts = [rows[table.split[rows] == part] for part in (TRAIN, VAL, TEST)]
    if config.fixed_split == "keep":
        return parts
    order = order[: len(parts[TRAIN])]
    shuffle(order)
    held = int(len(order) * rest)
    own = parts[TRAIN][order]
    return [own[held:], own[:held], np.sort(np.concatenate([parts[VAL], parts[TEST]]))]


def _share_out(table: FeatureTable, whole: ClientSplit, config: RunConfig) -> list[ClientSplit]:
    uses = {"train": whole.train, "val": whole.val, "test": whole.test}
    dealt = partition(
        table.labels,
        uses,
        config.partition,
        config.clients,
        config.seed,
        whole.domain,
        alpha=config.alpha,
        classes_per_client=config.classes_per_client,
        # A client without rows sends sums of zeros; one that trains needs a batch.
        least={"train": 0 if METHODS[config.method].solved else needed(config).get("train", 0)},
        name=f"{table.source}: domain {whole.name!r}",
    )
    first = len(table.domain_names) + 1 + whole.domain * config.clients  # after the domains' own
    return [
        replace(whole, name=f"{whole.name}/{k}", stream=first + k,
                train=own["train"], val=own["val"], test=own["test"])
        for k, own in enumerate(dealt)
    ]  # fmt: skip


def _spans(train: int, held: int) -> list[tuple[int, int]]:
    return [(0, train), (train, train + held), (train + held, train + 2 * held)]
