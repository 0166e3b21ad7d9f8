"""RunConfigs x folds x clients, laid out as lanes that train side by side.

A fold is one choice of held-out domains. Its clients' adapters are averaged into servers: one for
each fold, or one for each client if clients train alone. Models are what is scored: the servers,
or, if clients keep something of their own (ditto, fedper), one for each client. A run is a sweep of
one: plans of many configs join into a longer plan (pipeline/federation/joint.py).
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from cache.table import FeatureTable, domain_index
from kernels.heads.plain import Kind
from kernels.local import Settings, Work
from pipeline.errors import ConfigError, RowsError
from pipeline.federation.clients import NO_ROWS, ClientSplit, split_domain
from pipeline.federation.cures import cures
from pipeline.federation.methods import METHODS
from pipeline.federation.methods.method import Method
from pipeline.settings import RunConfig

if TYPE_CHECKING:
    from pipeline.federation.closed_form import ClosedForm

Orders = Callable[[int, int, int, int, int], np.ndarray]
"""(seed, round, local epoch, stream, n) -> a permutation of n: positions in the train rows."""

Shares = tuple[tuple[str, ...], tuple[ClientSplit, ...], tuple[ClientSplit, ...]]
"""One fold: its held-out domains, its clients, and the held-out rows."""


@dataclass(frozen=True)
class Lane:
    """One client's training in one fold."""

    config: RunConfig
    fold: int
    server: int
    client: int | None  # position in the fold's clients; None for all of them (central)
    stream: int  # seeds the row orders; a domain's number if the domain is one client
    train: np.ndarray  # (n,) int64 row numbers
    personal: bool = False  # a client's second adapter, which is not averaged

    @cached_property
    def train_digest(self) -> bytes:
        """A digest of the train rows in their order."""
        return hashlib.sha256(self.train.tobytes()).digest()


@dataclass(frozen=True)
class Server:
    """One adapter that lanes start from and are averaged into."""

    fold: int
    lanes: tuple[int, ...]  # in client order
    weights: tuple[float, ...]  # of those lanes; sum 1


@dataclass(frozen=True)
class Model:
    """One adapter that is scored: a server's, or a client's own."""

    fold: int
    server: int
    lane: int | None  # that provides the client's own part; None: the server's adapter
    clients: tuple[int, ...]  # positions of the fold's clients whose rows it answers
    unseen: bool  # whether it answers the held-out domains


@dataclass(frozen=True)
class Fold:
    """One leave-domains-out training of one config."""

    config: RunConfig
    held_out: tuple[str, ...]
    clients: tuple[ClientSplit, ...]
    unseen: tuple[ClientSplit, ...]  # the held-out domains; all rows test
    models: tuple[int, ...]
    closed_form: "ClosedForm | None" = None  # set by closed_form.with_closed_form


class Asked(NamedTuple):
    """The rows of one use that a model answers, concatenated."""

    rows: np.ndarray  # (n,) int64
    domains: tuple[str, ...]  # of each client or held-out domain with rows
    sizes: tuple[int, ...]  # their numbers of rows


@dataclass(frozen=True)
class Plan:
    """What trains: lanes sorted by steps per round, most first, so that active ones come first."""

    work: Work
    folds: tuple[Fold, ...]
    servers: tuple[Server, ...]
    models: tuple[Model, ...]
    lanes: tuple[Lane, ...]

    @property
    def method(self) -> Method:
        """The method, which all its configs share."""
        return METHODS[self.folds[0].config.method]

    @cached_property
    def steps(self) -> np.ndarray:
        """(L,) int64: training steps of each lane in a full round."""
        return np.array([steps_a_round(lane) for lane in self.lanes], np.int64)

    @cached_property
    def _asked(self) -> dict[str, list[Asked]]:
        return {}

    def asked(self, use: str) -> list[Asked]:
        """The rows of use "train", "val" or "test" that each model answers; gathered once."""
        if use not in self._asked:
            self._asked[use] = [_end_to_end(parts_of(self, m, use), use) for m in self.models]
        return self._asked[use]


def build_plan(table: FeatureTable, config: RunConfig) -> Plan:
    """Folds, servers, models and lanes of one config on one table.

    Raises ConfigError for a fold without clients or a client that cannot be trained, CacheError for
    a domain that the table does not have.
    """
    try:
        shares = [(held_out, *_take_part(table, config, held_out)) for held_out in config.held_out]
    except RowsError as error:
        raise RowsError(f"{error}. {cures(table, config)}") from error
    return plan_of(config, kind_of(table, config), len(table.domain_names), shares)


def plan_of(config: RunConfig, kind: Kind, domains: int, shares: Sequence[Shares]) -> Plan:
    """build_plan for known shares of rows; domains: their total number."""
    folds: list[Fold] = []
    groups: list[list[Lane]] = []  # the lanes of each server
    drafts: list[tuple[int, int, Lane | None, tuple[int, ...], bool]] = []  # of models
    for held_out, clients, unseen in shares:
        start = len(drafts)
        for lanes in _groups(domains, config, clients, len(folds), len(groups)):
            drafts += _models(config, lanes, len(folds), len(groups), len(clients))
            groups.append(lanes)
        folds.append(Fold(config, held_out, clients, unseen, tuple(range(start, len(drafts)))))
    lanes = sorted((lane for group in groups for lane in group), key=lambda e: -steps_a_round(e))
    place = {id(lane): at for at, lane in enumerate(lanes)}
    servers = []
    for group in groups:
        averaged = [lane for lane in group if not lane.personal]
        places = tuple(place[id(lane)] for lane in averaged)
        servers.append(Server(group[0].fold, places, _weights(averaged)))
    models = tuple(
        Model(fold, server, None if own is None else place[id(own)], answered, unseen)
        for fold, server, own, answered, unseen in drafts
    )
    work = Work(kind, config.loss, config.optimizer)
    return Plan(work, tuple(folds), tuple(servers), models, tuple(lanes))


def kind_of(table: FeatureTable, config: RunConfig) -> Kind:
    """The adapter of a config on a table."""
    return adapter_kind(config, table.features.shape[1], len(table.class_names))


def adapter_kind(config: RunConfig, width: int, classes: int) -> Kind:
    """The adapter of a config at a width and a number of classes."""
    if METHODS[config.method].solved:
        return Kind("FedAtTxt", "classifier", width, classes)
    return Kind(config.mode, config.head, width, classes, config.rank)


def steps_a_round(lane: Lane, epochs: int | None = None) -> int:
    """Training steps of a lane in a round: batches of two rows or more, times local epochs.

    Solved methods have none, unless `epochs` is given for fine-tuning.
    """
    if METHODS[lane.config.method].solved and epochs is None:
        return 0
    full, rest = divmod(len(lane.train), lane.config.batch)
    return (full + (rest > 1)) * (epochs or lane.config.local_epochs)


def train_rows(client: ClientSplit, config: RunConfig) -> np.ndarray:
    """The rows a client trains on; with refit its validation rows follow its train rows."""
    return np.concatenate([client.train, client.val]) if config.refit == "yes" else client.train


def rounds_of(config: RunConfig) -> int:
    """The rounds of a run: its setting, or 1 for solved methods."""
    return 1 if METHODS[config.method].solved else config.rounds


def settings_of(lanes: Sequence[Lane], round: int) -> Settings:
    """The optimizer's settings in a round, a value for each lane, float64; lr is the round's."""

    of_config: dict[int, list[float]] = {}
    for lane in lanes:
        config = lane.config
        if id(config) not in of_config:
            now = vars(config) | {"lr": rate(config, round)}
            of_config[id(config)] = [float(now[name]) for name in Settings._fields]
    table = np.array([of_config[id(lane.config)] for lane in lanes], np.float64)
    found = dict(zip(Settings._fields, table.reshape(len(lanes), -1).T.copy(), strict=True))
    methods = [METHODS[lane.config.method] for lane in lanes]
    pulled = [
        method.proximal and lane.personal == (method.keeps == "adapter")
        for method, lane in zip(methods, lanes, strict=True)
    ]
    found["mu"] = np.where(pulled, found["mu"], 0.0)
    return Settings(**{name: torch.from_numpy(values) for name, values in found.items()})


def rate(config: RunConfig, round: int) -> float:
    """The clients' learning rate in a round: lr, or with schedule cosine
    lr * (1 + cos(pi * round / rounds)) / 2.
    """
    if config.schedule == "cosine":
        return config.lr * ((1 + math.cos(math.pi * round / config.rounds)) / 2)
    return config.lr


def round_rows(
    lanes: Sequence[Lane], round: int, orders: Orders, epochs: int | None = None
) -> torch.Tensor:
    """Row numbers of every step of a round: (T, L, B) int32, shorter batches padded with -1.

    Each local epoch shuffles a lane's train rows and cuts them into batches; a shorter last one
    counts unless it is a single row. epochs: in place of each config's local_epochs.
    """
    steps = max((steps_a_round(lane, epochs) for lane in lanes), default=0)
    width = max((lane.config.batch for lane in lanes), default=0)
    rows = np.full((steps, len(lanes), width), -1, np.int32)
    alike: dict[tuple[int, int, int, int, bytes], list[int]] = {}  # lanes with equal rows
    for at, lane in enumerate(lanes):
        c = lane.config
        key = (c.seed, lane.stream, c.batch, epochs or c.local_epochs, lane.train_digest)
        alike.setdefault(key, []).append(at)
    for places in alike.values():
        made = _batches(lanes[places[0]], round, orders, epochs)
        rows[: len(made), places, : made.shape[1]] = made[:, None]
    return torch.from_numpy(rows)


def _batches(lane: Lane, round: int, orders: Orders, epochs: int | None) -> np.ndarray:
    """(T, B) int32: the rows of each of a lane's steps, shorter batches padded with -1."""
    batch, count = lane.config.batch, len(lane.train)
    steps = steps_a_round(lane, 1)
    taken = min(count, steps * batch)  # a single last row is skipped
    made = []
    for epoch in range(epochs or lane.config.local_epochs):
        order = orders(lane.config.seed, round, epoch, lane.stream, count)
        flat = np.full(steps * batch, -1, np.int32)
        flat[:taken] = lane.train[order][:taken]
        made.append(flat.reshape(steps, batch))
    return np.concatenate(made)


def seeded_order(seed: int, round: int, epoch: int, stream: int, count: int) -> np.ndarray:
    """A permutation of `count` that depends only on these five numbers."""
    # NEP 19 guarantees that RandomState's stream never changes.
    return np.random.RandomState([seed, round, epoch, stream]).permutation(count)


def parts_of(plan: Plan, model: Model, use: str) -> list[ClientSplit]:
    """The splits with rows of one use that a model answers."""
    fold = plan.folds[model.fold]
    splits = [fold.clients[k] for k in model.clients]
    if use == "test" and model.unseen:
        splits += fold.unseen
    return [split for split in splits if len(getattr(split, use))]


def _end_to_end(parts: Sequence[ClientSplit], use: str) -> Asked:
    rows = [getattr(split, use) for split in parts]
    return Asked(
        np.concatenate(rows) if rows else NO_ROWS,
        tuple(split.domain_name for split in parts),
        tuple(map(len, rows)),
    )


def _take_part(
    table: FeatureTable, config: RunConfig, held_out: tuple[str, ...]
) -> tuple[tuple[ClientSplit, ...], tuple[ClientSplit, ...]]:
    out = {domain_index(table, name) for name in held_out}
    if len(out) == len(table.domain_names):
        raise ConfigError(
            f"{table.source}: all of its domains ({', '.join(table.domain_names)}) are held out; "
            "no domain is left to train. Hold out fewer, or pass --held-out none"
        )
    clients: list[ClientSplit] = []
    unseen = []
    for domain, name in enumerate(table.domain_names):
        if domain in out:
            rows = np.flatnonzero(table.domains == domain)
            unseen.append(ClientSplit(name, domain, name, domain, NO_ROWS, NO_ROWS, rows))
        else:
            clients += split_domain(table, domain, config)
    return tuple(clients), tuple(unseen)


def _groups(
    domains: int, config: RunConfig, clients: tuple[ClientSplit, ...], fold: int, first: int
) -> list[list[Lane]]:
    """The lanes of each of a fold's servers; servers are numbered from `first`."""
    method = METHODS[config.method]
    if method.lanes == "none":
        return []
    if method.lanes == "pooled":
        rows = np.concatenate([train_rows(client, config) for client in clients])
        return [[Lane(config, fold, first, None, domains, rows)]]
    alone = method.lanes == "alone"
    lanes = [
        Lane(config, fold, first + k * alone, k, client.stream, train_rows(client, config))
        for k, client in enumerate(clients)
    ]
    if alone:
        return [[lane] for lane in lanes]
    if method.keeps == "adapter":
        lanes += [replace(lane, personal=True) for lane in lanes]
    return [lanes]


def _models(
    config: RunConfig, lanes: list[Lane], fold: int, server: int, count: int
) -> list[tuple[int, int, Lane | None, tuple[int, ...], bool]]:
    """The models of one server's lanes: fold, server, lane, clients, unseen."""
    method = METHODS[config.method]
    if method.lanes == "alone":
        return [(fold, server, None, _client_of(lanes[0]), True)]
    if method.keeps == "layer":
        return [(fold, server, lane, _client_of(lane), True) for lane in lanes]
    if method.keeps == "adapter":
        own = [(fold, server, lane, _client_of(lane), False) for lane in lanes if lane.personal]
        return [(fold, server, None, (), True), *own]
    return [(fold, server, None, tuple(range(count)), True)]


def _client_of(lane: Lane) -> tuple[int, ...]:
    return () if lane.client is None else (lane.client,)


def _weights(lanes: Sequence[Lane]) -> tuple[float, ...]:
    if lanes[0].config.weighting == "uniform":
        return (1 / len(lanes),) * len(lanes)
    total = sum(len(lane.train) for lane in lanes) or 1  # 0 before sites report their rows
    return tuple(len(lane.train) / total for lane in lanes)
