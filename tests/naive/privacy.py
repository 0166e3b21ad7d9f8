"""Slow twins of the privacy figures, from the papers: numpy and math only."""

import math


def gaussian_delta(epsilon, noise, rounds):
    """The exact delta of `rounds` Gaussian mechanisms, arXiv:1805.06530 theorem 5."""
    mu = math.sqrt(rounds) / noise

    def normal(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    beyond = normal(-mu / 2 - epsilon / mu)
    # exp(epsilon) overflows where the probability beside it is 0
    return normal(mu / 2 - epsilon / mu) - (math.exp(epsilon) * beyond if beyond else 0.0)


def gaussian_epsilon(noise, rounds, delta):
    """The exact epsilon, by bisection."""
    low, high = 0.0, 600.0
    for _ in range(200):
        middle = (low + high) / 2
        if gaussian_delta(middle, noise, rounds) > delta:
            low = middle
        else:
            high = middle
    return high


def sampled_gaussian_epsilon(noise, fraction, rounds, delta):
    """By Renyi divergences of whole orders (arXiv:1908.10530 section 3.3; arXiv:2004.00010)."""
    best = math.inf
    for order in range(2, 300):
        logs = []
        for k in range(order + 1):
            chance = (order - k) * math.log1p(-fraction) + k * math.log(fraction)
            ways = math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
            logs.append(ways + chance + (k * k - k) / (2 * noise**2))
        peak = max(logs)
        moment = peak + math.log(sum(math.exp(x - peak) for x in logs))
        divergence = rounds * moment / (order - 1)
        slack = math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1)
        best = min(best, divergence + slack)
    return best


def sampled_gaussian_round(noise, fraction, delta):
    """The exact epsilon of one round of the Poisson-sampled Gaussian, adding or leaving a client.

    By the trade-off of (1 - q) N(0, z^2) + q N(1, z^2) with N(0, z^2): delta of an epsilon is the
    hockey-stick divergence, whose sets are half-lines on either side; the larger of both ways.
    """

    def above(x):
        return math.erfc(x / noise / math.sqrt(2)) / 2

    def deltas(epsilon):
        mixed = lambda x: (1 - fraction) * above(x) + fraction * above(x - 1)  # noqa: E731
        found = [0.0]
        # mixed / plain = 1 - q + q exp((2 x - 1) / (2 z^2)) rises with x
        inside = (math.exp(epsilon) - 1 + fraction) / fraction
        x = noise**2 * math.log(inside) + 0.5
        found.append(mixed(x) - math.exp(epsilon) * above(x))
        inside = (math.exp(-epsilon) - 1 + fraction) / fraction
        if inside > 0:
            x = noise**2 * math.log(inside) + 0.5
            found.append((1 - above(x)) - math.exp(epsilon) * (1 - mixed(x)))
        return max(found)

    low, high = 0.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        if deltas(middle) > delta:
            low = middle
        else:
            high = middle
    return high
