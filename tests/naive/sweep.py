"""Slow twins of what a sweep computes, written from the sentences; math only."""

import math


def survivors(trials, scores, eta):
    """Ids that stay: rank configurations (here by lr) by mean, drop the diverged, keep n // eta."""
    rates = {t.settings["lr"] for t in trials}
    by_rate = {}
    for rate in rates:
        own = [scores[t.id] for t in trials if t.settings["lr"] == rate]
        if all(a is not None and math.isfinite(a) for a in own):
            by_rate[rate] = math.fsum(own) / len(own)
    first = {r: min(t.number for t in trials if t.settings["lr"] == r) for r in rates}
    stay = set()
    while by_rate and len(stay) < max(1, len(rates) // eta):
        best = max(by_rate.values())
        rate = min((r for r, mean in by_rate.items() if mean == best), key=first.get)
        stay.add(rate)
        del by_rate[rate]
    return {t.id for t in trials if t.settings["lr"] in stay}


def epsilon_squared(groups, scores):
    """One-way analysis of variance: (SSB - (k - 1) SSW / (n - k)) / SST, not below 0."""
    n, k = len(scores), len(set(groups))
    mean = math.fsum(scores) / n
    between = within = 0.0
    for group in set(groups):
        own = [s for g, s in zip(groups, scores, strict=True) if g == group]
        own_mean = math.fsum(own) / len(own)
        between += len(own) * (own_mean - mean) ** 2
        within += math.fsum((s - own_mean) ** 2 for s in own)
    return max(0.0, (between - (k - 1) * within / (n - k)) / (between + within))
