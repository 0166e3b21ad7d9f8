"""Deals rows of several groups to clients by given shares: rounding, repair, dealing."""

import numpy as np
from numpy.random import RandomState

from pipeline.errors import RowsError


def largest_remainders(shares: np.ndarray, totals: np.ndarray, draw: RandomState) -> np.ndarray:
    """Whole numbers near shares * totals whose columns sum to totals.

    shares   (K, G) float64, columns of sum 1; totals (G,) int64
    draw     settles ties
    returns  (K, G) int64: the floors, and one more for the largest remainders of each column
    """
    exact = np.round(shares * totals, 9)  # remainders that differ by rounding errors must tie
    counts = np.floor(exact).astype(np.int64)
    lacking = totals - counts.sum(axis=0)
    ties = draw.uniform(size=shares.shape)
    rank = np.lexsort((ties, counts - exact), axis=0).argsort(axis=0)
    return counts + (rank < lacking)


def repair(
    counts: np.ndarray, shares: np.ndarray, allowed: np.ndarray, least: int, what: str
) -> None:
    """Moves single rows, in place, until every client has `least`; each move is final.

    counts   (K, G) int64 rows
    shares   (K, G) float64; a client takes first from the group in which its share is largest
    allowed  (K, G) bool, the groups from which a client may have rows
    what     the rows, for an error
    Searches breadth first for a path of moves from a client with rows to spare, so every possible
    repair is found, with at most K * least paths. Raises RowsError if there is none.
    """
    if counts.sum() < len(counts) * least:
        raise RowsError(
            f"{what} cannot give {len(counts)} clients {least} each ({len(counts) * least} needed)"
        )
    for client in np.flatnonzero(counts.sum(axis=1) < least):
        while counts[client].sum() < least:
            for taker, giver, group in _path(counts, shares, allowed, client, least, what):
                counts[taker, group] += 1
                counts[giver, group] -= 1


def deal(
    rows: np.ndarray, where: np.ndarray, counts: np.ndarray, draw: RandomState
) -> list[np.ndarray]:
    """Shuffles each group's rows and divides them by its column of counts; where (n,) is the
    group."""
    order = draw.permutation(len(rows))
    by_group = order[np.argsort(where[order], kind="stable")]
    owner = np.repeat(np.tile(np.arange(len(counts)), counts.shape[1]), counts.T.ravel())
    return [np.sort(rows[by_group[owner == client]]) for client in range(len(counts))]


def _path(
    counts: np.ndarray, shares: np.ndarray, allowed: np.ndarray, client: int, least: int, what: str
) -> list[tuple[int, int, int]]:
    """Moves (taker, giver, group) that give `client` another row and leave all others at least
    `least`."""
    sizes = counts.sum(axis=1)
    came: dict[int, tuple[int, int]] = {}  # giver -> (taker, group)
    queue = [client]
    for taker in queue:
        gives = (counts > 0) & allowed[taker]
        gives[[client, *came]] = False
        givers = np.flatnonzero(gives.any(axis=1))
        for giver in givers[np.argsort(-sizes[givers], kind="stable")].tolist():  # richest first
            came[giver] = (taker, int(np.where(gives[giver], shares[taker], -1).argmax()))
            queue.append(giver)
            if sizes[giver] > least:
                return _back(came, giver)
    raise RowsError(
        f"{what}: client {client} gets only {sizes[client]} of the {least} it needs, as its "
        f"{allowed[client].sum()} classes have no more"
    )


def _back(came: dict[int, tuple[int, int]], giver: int) -> list[tuple[int, int, int]]:
    moves = []
    while giver in came:
        taker, group = came[giver]
        moves.append((taker, giver, group))
        giver = taker
    return moves
