"""Slow twins of the federated rules, from the papers: numpy and math only, float64 loops."""

import math

import numpy as np


def mean(clients, shares):
    """One coordinate after the other; (K, P), (K,) -> (P,)."""
    return np.array(
        [
            sum(share * client[p] for client, share in zip(clients, shares, strict=True))
            for p in range(clients.shape[1])
        ]
    )


def median(clients):
    """(K, P) -> (P,)."""
    found = []
    for column in clients.T:
        ordered = sorted(column)
        middle = len(ordered) // 2
        even = len(ordered) % 2 == 0
        found.append((ordered[middle - 1] + ordered[middle]) / 2 if even else ordered[middle])
    return np.array(found)


def trimmed_mean(clients, cut):
    """Without the `cut` least and greatest of each coordinate; (K, P) -> (P,)."""
    kept = [sorted(column)[cut : len(column) - cut] for column in clients.T]
    return np.array([sum(column) / len(column) for column in kept])


def krum_scores(clients, byzantine):
    """Sum of squared distances to the K - f - 2 nearest others, at least one; (K, P) -> (K,)."""
    scores = []
    for k, one in enumerate(clients):
        others = [c for j, c in enumerate(clients) if j != k]
        gaps = sorted(sum((a - b) ** 2 for a, b in zip(one, c, strict=True)) for c in others)
        scores.append(sum(gaps[: max(1, len(clients) - byzantine - 2)]))
    return np.array(scores)


def krum(clients, weights, byzantine, keep):
    """The weighted mean of the `keep` clients of least score, earlier ones first in a tie."""
    scores = krum_scores(clients, byzantine)
    kept = sorted(range(len(clients)), key=lambda k: (scores[k], k))[:keep]
    total = sum(weights[k] for k in kept)
    return sum(weights[k] / total * clients[k] for k in kept)


def server_rounds(kind, server, means, lr, beta1, beta2, tau, second):
    """The server after each mean in turn, coordinate by coordinate; (R, P) -> (R, P).

    kind    fedavgm (beta1 is its momentum), fedadagrad, fedadam or fedyogi
    second  v before the first round
    """
    visited = np.zeros(np.shape(means))
    for p in range(len(server)):
        x, m, v = float(server[p]), 0.0, second
        for r, target in enumerate(means):
            d = float(target[p]) - x
            if kind == "fedavgm":
                m = beta1 * m + d
                x += lr * m
            else:
                m = beta1 * m + (1 - beta1) * d
                if kind == "fedadagrad":
                    v += d * d
                elif kind == "fedadam":
                    v = beta2 * v + (1 - beta2) * d * d
                else:
                    v -= (1 - beta2) * d * d * ((v > d * d) - (v < d * d))
                x += lr * m / (math.sqrt(v) + tau)
            visited[r, p] = x
    return visited


def scaffold(
    gradients, server, controls, control, steps, lr, server_lr, shares=None, arrives=None,
    origin=None,
):  # fmt: skip
    """One round of SCAFFOLD (option II) from gradient functions.

    gradients  K functions (P,) -> (P,); None for a client that takes no part
    lr         of this round
    shares     K, of the clients in the objective sum_k share_k f_k; None: 1/K each
    arrives    what arrives of (P,) numbers that are sent; None: they arrive as they are
    origin     (P,) what both sides know at the beginning: servers send their way from it
    returns    clients after their steps (K, P), new c_k (K, P), new c (P,), new server (P,)
    """
    everyone = len(gradients)
    shares = [1 / everyone] * everyone if shares is None else shares
    arrives = (lambda numbers: numbers) if arrives is None else arrives
    origin = np.array(server, float) if origin is None else origin
    start, correction = origin + arrives(server - origin), arrives(control)
    clients, new, moved, updates, present = [], [], 0 * server, 0 * server, 0.0
    for gradient, own, count, share in zip(gradients, controls, steps, shares, strict=True):
        y, after = np.array(start, float), np.array(own, float)
        if gradient is not None:
            for _ in range(count):
                y = y - lr * (gradient(y) - own + correction)
            if count:
                after = own + arrives(-correction + (start - y) / (count * lr))
            moved = moved + share * (after - own)
            updates, present = updates + share * arrives(y - start), present + share
        clients.append(y)
        new.append(after)
    server = server + server_lr * updates / present
    return np.array(clients), np.array(new), control + moved, server


def proximal_loss(weights, anchor, mu):
    """mu / 2 |weights - anchor|^2: what FedProx and Ditto add to a client's loss."""
    return mu / 2 * sum((w - a) ** 2 for w, a in zip(weights, anchor, strict=True))


def proximal_gradient(gradient, weights, anchor, mu):
    """gradient + mu (weights - anchor), coordinate by coordinate.

    FedProx: weights are the client's adapter, anchor the server's that it started from.
    Ditto: weights are the client's personal adapter, anchor the server's of this round.
    """
    return np.array([g + mu * (w - a) for g, w, a in zip(gradient, weights, anchor, strict=True)])


def ditto(gradient, personal, anchor, steps, lr, mu):
    """`steps` of SGD on a client's loss plus the proximal term; (P,) -> (P,)."""
    for _ in range(steps):
        personal = personal - lr * proximal_gradient(gradient(personal), personal, anchor, mu)
    return personal


def clipped(update, clip):
    """update * min(1, clip / |update|); (P,) -> (P,)."""
    length = math.sqrt(sum(u * u for u in update))
    return np.array([u * min(1.0, clip / length) if length else u for u in update])
