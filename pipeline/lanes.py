"""RunConfigs x folds x clients, laid out as lanes that train side by side.

A fold is one choice of held-out domains. Its clients' adapters are averaged into servers: one a
fold, or one a client when nothing is averaged (method local). A run is a sweep of one: one config
or hundreds give the same plan, only longer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from cache.table import FeatureTable, domain_index
from kernels.adapter import AdamSettings
from pipeline.config import ConfigError, RunConfig
from pipeline.splits import ClientSplit, split_domain

Orders = Callable[[int, int, int, int, int], np.ndarray]
"""(seed, round, local epoch, client, n) -> a permutation of n: positions in the train rows."""


@dataclass(frozen=True)
class Lane:
    """One client's training in one fold."""

    config: RunConfig
    fold: int
    server: int
    client: int  # names the stream of row orders: the domain, or the number of domains for all
    train: np.ndarray  # (n,) int64 row numbers


@dataclass(frozen=True)
class Server:
    """One adapter that lanes start from, are averaged into, and that is scored."""

    fold: int
    lanes: tuple[int, ...]  # in client order
    weights: tuple[float, ...]  # of those lanes; sum 1
    clients: tuple[int, ...]  # positions in the fold's clients whose rows it is scored on


@dataclass(frozen=True)
class Fold:
    """One leave-domains-out training of one config."""

    config: RunConfig
    held_out: tuple[str, ...]
    clients: tuple[ClientSplit, ...]
    unseen: tuple[ClientSplit, ...]  # the held-out domains; all rows test
    servers: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """What trains: lanes sorted by steps a round, most first, so that the live ones lead."""

    folds: tuple[Fold, ...]
    servers: tuple[Server, ...]
    lanes: tuple[Lane, ...]


def build_plan(table: FeatureTable, configs: Sequence[RunConfig]) -> Plan:
    """Folds, servers and lanes of `configs` on one table.

    Raises ConfigError for a fold without clients or a client that cannot be trained, CacheError
    for a domain that the table does not have.
    """
    folds: list[Fold] = []
    groups: list[tuple[int, list[int], list[Lane]]] = []  # a server: fold, clients, its lanes
    for config in configs:
        for held_out in config.held_out:
            clients, unseen = _take_part(table, config, held_out)
            first = len(groups)
            for members, lanes in _groups(table, config, clients):
                lanes = [_with(lane, fold=len(folds), server=len(groups)) for lane in lanes]
                groups.append((len(folds), members, lanes))
            servers = tuple(range(first, len(groups)))
            folds.append(Fold(config, held_out, clients, unseen, servers))
    lanes = [lane for _, _, members in groups for lane in members]
    order = sorted(range(len(lanes)), key=lambda i: (-steps_a_round(lanes[i]), i))
    place = {id(lanes[i]): at for at, i in enumerate(order)}
    servers = [
        Server(fold, tuple(place[id(lane)] for lane in members), _weights(members), tuple(clients))
        for fold, clients, members in groups
    ]
    return Plan(tuple(folds), tuple(servers), tuple(lanes[i] for i in order))


def steps_a_round(lane: Lane) -> int:
    """Training steps of a lane in a round: batches of two rows or more, times local epochs."""
    full, rest = divmod(len(lane.train), lane.config.batch)
    return (full + (rest > 1)) * lane.config.local_epochs


def adam_settings(lanes: Sequence[Lane]) -> AdamSettings:
    """The optimizer's settings, one value a lane, float64."""
    return AdamSettings(
        *(
            torch.tensor([getattr(lane.config, name) for lane in lanes], dtype=torch.float64)
            for name in AdamSettings._fields
        )
    )


def round_rows(lanes: Sequence[Lane], round: int, orders: Orders) -> torch.Tensor:
    """Row numbers of every step of a round: (T, L, B) int32, -1 behind shorter batches.

    Each local epoch shuffles a lane's train rows and cuts them into batches; the last, shorter
    one is trained on unless it is a single row.
    """
    shuffled = cache(orders)  # lanes of one client and seed share their order
    steps = max((steps_a_round(lane) for lane in lanes), default=0)
    width = max((lane.config.batch for lane in lanes), default=0)
    rows = np.full((steps, len(lanes), width), -1, np.int32)
    for at, lane in enumerate(lanes):
        step, batch, count = 0, lane.config.batch, len(lane.train)
        for epoch in range(lane.config.local_epochs):
            order = shuffled(lane.config.seed, round, epoch, lane.client, count)
            epoch_rows = lane.train[order]
            for start in range(0, count - 1, batch):  # count - 1: a lone last row is skipped
                part = epoch_rows[start : start + batch]
                rows[step, at, : len(part)] = part
                step += 1
    return torch.from_numpy(rows)


def seeded_order(seed: int, round: int, epoch: int, client: int, count: int) -> np.ndarray:
    """A permutation of `count` that depends on these five numbers and nothing else."""
    # RandomState is the generator whose stream numpy promises never to change (NEP 19).
    return np.random.RandomState([seed, round, epoch, client]).permutation(count)


def _take_part(
    table: FeatureTable, config: RunConfig, held_out: tuple[str, ...]
) -> tuple[tuple[ClientSplit, ...], tuple[ClientSplit, ...]]:
    out = {domain_index(table, name) for name in held_out}
    if len(out) == len(table.domain_names):
        raise ConfigError(
            f"{table.source}: all of its domains ({', '.join(table.domain_names)}) are held out; "
            "nobody is left to train. Hold out fewer, or none"
        )
    none = np.empty(0, np.int64)
    clients, unseen = [], []
    for domain, name in enumerate(table.domain_names):
        if domain in out:
            rows = np.flatnonzero(table.domains == domain)
            unseen.append(ClientSplit(name, domain, none, none, rows))
        else:
            clients.append(split_domain(table, domain, config.split, config.seed))
    return tuple(clients), tuple(unseen)


def _groups(
    table: FeatureTable, config: RunConfig, clients: tuple[ClientSplit, ...]
) -> list[tuple[list[int], list[Lane]]]:
    """For each server of a fold: the clients it is scored on, and its lanes."""
    everyone = list(range(len(clients)))
    if config.method == "central":
        rows = np.concatenate([client.train for client in clients])
        return [(everyone, [Lane(config, -1, -1, len(table.domain_names), rows)])]
    lanes = [Lane(config, -1, -1, client.domain, client.train) for client in clients]
    if config.method == "local":
        return [([k], [lane]) for k, lane in enumerate(lanes)]
    if config.method == "zero-shot":
        return []
    return [(everyone, lanes)]


def _with(lane: Lane, *, fold: int, server: int) -> Lane:
    return Lane(lane.config, fold, server, lane.client, lane.train)


def _weights(lanes: Sequence[Lane]) -> tuple[float, ...]:
    if lanes[0].config.weighting == "uniform":
        return (1 / len(lanes),) * len(lanes)
    total = sum(len(lane.train) for lane in lanes)
    return tuple(len(lane.train) / total for lane in lanes)
