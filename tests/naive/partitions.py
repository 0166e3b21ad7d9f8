"""Slow twins of dealing rows to clients: numpy and math only, loops."""

import math


def largest_remainders(shares, total):
    """The allowed outcomes for one column: floors, who surely gets one more, who may (ties)."""
    exact = [share * total for share in shares]
    floors = [math.floor(e + 1e-9) for e in exact]
    rests = [e - f for e, f in zip(exact, floors, strict=True)]
    lacking = total - sum(floors)
    bar = sorted(rests, reverse=True)[lacking - 1] if lacking else math.inf
    surely = {k for k, rest in enumerate(rests) if rest > bar + 1e-9}
    maybe = {k for k, rest in enumerate(rests) if abs(rest - bar) <= 1e-9}
    return floors, surely, maybe, lacking


def can_give(totals, allowed, least):
    """Whether every client can have `least` rows of its allowed groups, by Kuhn's matching.

    totals   rows of each group
    allowed  for each client, a flag for each group
    """
    rows = [group for group, total in enumerate(totals) for _ in range(total)]
    slots = [client for client in range(len(allowed)) for _ in range(least)]
    owner = [None] * len(rows)

    def place(slot, tried):
        for row, group in enumerate(rows):
            if allowed[slots[slot]][group] and row not in tried:
                tried.add(row)
                if owner[row] is None or place(owner[row], tried):
                    owner[row] = slot
                    return True
        return False

    return all(place(slot, set()) for slot in range(len(slots)))


def few_shot(rows, labels, shots):
    """How many rows of each class are to be left."""
    counts = {}
    for row in rows:
        counts[labels[row]] = counts.get(labels[row], 0) + 1
    return {label: min(count, shots) for label, count in counts.items()}
