"""Partitions one domain's rows into clients; the kinds are named as in flwr-datasets."""

from collections.abc import Mapping

import numpy as np
from numpy.random import RandomState

from pipeline.errors import ConfigError, RowsError
from pipeline.federation.dealing import deal, largest_remainders, repair

KINDS = ("iid", "dirichlet", "pathological", "quantity")
LEAST = {"train": 2, "val": 1}  # a batch of one row is skipped; val rows choose the round
_SHARES, _FEW_SHOT = 30, 31  # streams: separate these draws from others of the same seed


def partition(
    labels: np.ndarray,
    uses: Mapping[str, np.ndarray],
    kind: str,
    clients: int,
    seed: int,
    domain: int = 0,
    *,
    alpha: float = 0.5,
    classes_per_client: int = 2,
    least: Mapping[str, int] = LEAST,
    name: str = "the domain",
) -> list[dict[str, np.ndarray]]:
    """Assigns every row to exactly one client; all uses have the same shares of each class.

    labels   (N,) int64 class of each row of the table
    uses     {"train": (n,) int64 row numbers, "val": ..., "test": ...}, disjoint, of one domain
    kind     iid           random rows, sizes equal up to one
             dirichlet     each class's shares of the clients ~ Dirichlet(alpha), arXiv:1905.12022
                           and 2102.02079; sizes follow
             pathological  classes_per_client classes a client (all there are, if fewer), every
                           class at equal shares to its clients; arXiv:1602.05629
             quantity      random rows, sizes ~ Dirichlet(alpha); arXiv:2102.02079
    least    least rows of a use for every client, by single moves after rounding
    name     name of the rows in errors
    returns  for each client {use: (n,) int64 rows, ascending}
    Draws depend on (seed, domain) and the arguments. Shares are rounded by largest remainder,
    ties at random. No step is retried: the work is bounded by rows and clients. Raises RowsError
    for too few rows for the clients or their classes, ConfigError for an invalid kind or setting.
    """
    _check(kind, clients, alpha, classes_per_client, name)
    groups = labels if kind in ("dirichlet", "pathological") else np.zeros_like(labels)
    everything = np.concatenate([*uses.values(), np.empty(0, np.int64)])
    present = np.unique(groups[everything])
    draw = RandomState([seed, domain, KINDS.index(kind), _SHARES])
    shares = _shares(draw, kind, clients, len(present), alpha, classes_per_client, name)
    # Only classes that were dealt out limit a client; a Dirichlet share of 0 is a rounded one.
    allowed = shares > 0 if kind == "pathological" else np.ones_like(shares, bool)
    dealt: list[dict[str, np.ndarray]] = [{} for _ in range(clients)]
    for use, rows in uses.items():
        where = np.searchsorted(present, groups[rows])
        counts = largest_remainders(shares, np.bincount(where, minlength=len(present)), draw)
        repair(counts, shares, allowed, least.get(use, 0), f"{name}: {len(rows)} {use} rows")
        for client, part in enumerate(deal(rows, where, counts, draw)):
            dealt[client][use] = part
    return dealt


def few_shot(
    rows: np.ndarray, labels: np.ndarray, shots: int, seed: int, client: int = 0
) -> np.ndarray:
    """At most `shots` rows of each class, drawn by (seed, client); fewer shots are a subset of
    more.

    rows     (n,) int64 row numbers; labels (N,) int64 of the table
    returns  (m,) int64, in the order of `rows`
    """
    order = RandomState([seed, client, _FEW_SHOT]).permutation(len(rows))
    by_class = order[np.argsort(labels[rows[order]], kind="stable")]
    classes = labels[rows[by_class]]
    place = np.arange(len(rows)) - np.searchsorted(classes, classes)  # 0, 1, ... in each class
    return rows[np.sort(by_class[place < shots])]


def _shares(
    draw: RandomState,
    kind: str,
    clients: int,
    groups: int,
    alpha: float,
    classes_per_client: int,
    name: str,
) -> np.ndarray:
    """(K, G) float64: each client's share of each group's rows; columns sum to 1."""
    if kind == "iid":
        return np.full((clients, groups), 1 / clients)
    if kind == "pathological":
        holds = _classes(draw, clients, groups, min(classes_per_client, groups), name)
        return holds / np.maximum(holds.sum(axis=0), 1)
    return _dirichlet(draw, alpha, clients, groups)


def _dirichlet(draw: RandomState, alpha: float, clients: int, groups: int) -> np.ndarray:
    """Columns ~ Dirichlet(alpha), in logarithms: numpy's gives 0 / 0 below alpha 0.001."""
    # Gamma(alpha) = Gamma(alpha + 1) * U^(1 / alpha)
    power = np.log(1 - draw.uniform(size=(clients, groups))) / alpha
    logs = np.log(draw.standard_gamma(alpha + 1, size=(clients, groups))) + power
    weights = np.exp(logs - logs.max(axis=0, initial=-np.inf))
    return weights / weights.sum(axis=0)


def _classes(draw: RandomState, clients: int, classes: int, each: int, name: str) -> np.ndarray:
    """(K, C) bool: `each` classes for every client; classes' numbers of clients differ by at most
    1.

    Each client in turn takes the classes with the fewest clients so far, ties at random.
    """
    if clients * each < classes:
        raise RowsError(
            f"{name}: {clients} clients of {each} classes hold at most {clients * each} of its "
            f"{classes} classes"
        )
    holds = np.zeros((clients, classes), bool)
    for client in range(clients):
        order = np.lexsort((draw.uniform(size=classes), holds.sum(axis=0)))
        holds[client, order[:each]] = True
    return holds


def _check(kind: str, clients: int, alpha: float, classes_per_client: int, name: str) -> None:
    if kind not in KINDS:
        raise ConfigError(f"partition {kind!r} is unknown; there are {', '.join(KINDS)}")
    if clients < 1 or classes_per_client < 1:
        raise ConfigError(
            f"{name}: clients and classes_per_client must be 1 or more; got {clients} and "
            f"{classes_per_client}"
        )
    if not 1e-100 <= alpha <= 1e100:
        raise ConfigError(f"{name}: alpha must be 1e-100 to 1e100; got {alpha}")
