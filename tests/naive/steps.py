"""Slow twins written from the mathematics, float64: numpy and math only, nothing of ours."""

import math

import numpy as np


def gate(features, scores):
    """normalize(softmax(scores) * features); (B, D), (B, D) -> (B, D)."""
    unit = np.zeros(features.shape)
    for n, (row, row_scores) in enumerate(zip(features, scores, strict=True)):
        weights = [math.exp(s - max(row_scores)) for s in row_scores]
        gated = [w / sum(weights) * x for w, x in zip(weights, row, strict=True)]
        length = math.sqrt(sum(g * g for g in gated))
        unit[n] = [g / length if length else 0.0 for g in gated]
    return unit


def log_softmax(logits):
    """Row by row; (A, B) -> (A, B)."""
    peak = logits.max(axis=1, keepdims=True)
    return logits - peak - np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))


def contrastive_loss(unit, text, scale):
    """(cross_entropy(Z, arange) + cross_entropy(Z.T, arange)) / 2 of the B x B matrix."""
    logits = scale * unit @ text.T
    here = np.arange(len(logits))
    return -(log_softmax(logits)[here, here] + log_softmax(logits.T)[here, here]).mean() / 2


def bfloat16(x):
    """The nearest number with 8 bits of mantissa, ties to even."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 256), exponent - 8)


def adapter_scores(weights, x, cut=lambda x: x):
    """W2 tanh(W1 x + b1) + b2 for rows x (B, D); cut is what becomes of a product's factors."""
    w1, b1, w2, b2 = weights
    hidden = np.tanh(cut(x) @ cut(w1).T + b1)
    return cut(hidden) @ cut(w2).T + b2


def adapter_loss(weights, x, labels, unit_text, scale, cut=lambda x: x):
    """The loss of one batch, as the released code writes it: B text features for B rows."""
    return contrastive_loss(gate(x, adapter_scores(weights, x, cut)), unit_text[labels], scale)


def adapter_gradients(weights, x, labels, unit_text, scale, cut=lambda x: x):
    """By the chain rule, step by step, with the softmax's and the norm's full Jacobians.

    cut is what becomes of the factors of products of weights or for weights.
    """
    w1, b1, w2, _ = weights
    hidden = np.tanh(cut(x) @ cut(w1).T + b1)
    scores = adapter_scores(weights, x, cut)
    text = unit_text[labels]
    unit = gate(x, scores)
    logits = scale * unit @ text.T
    eye = np.eye(len(x))
    d_rows = np.exp(log_softmax(logits)) - eye
    d_columns = np.exp(log_softmax(logits.T)).T - eye
    d_unit = scale * (d_rows + d_columns) / (2 * len(x)) @ text
    d_scores = np.zeros(scores.shape)
    for n in range(len(x)):
        weight = np.exp(scores[n] - scores[n].max())
        weight /= weight.sum()
        gated = weight * x[n]
        length = math.sqrt(gated @ gated)
        if not length:
            continue
        d_gated = (d_unit[n] - unit[n] * (unit[n] @ d_unit[n])) / length
        jacobian = np.diag(weight) - np.outer(weight, weight)
        d_scores[n] = jacobian @ (d_gated * x[n])
    d_hidden = (cut(d_scores) @ cut(w2)) * (1 - hidden**2)
    return (
        cut(d_hidden).T @ cut(x), d_hidden.sum(axis=0),
        cut(d_scores).T @ cut(hidden), d_scores.sum(axis=0),
    )  # fmt: skip


def train(
    weights, batches, features, labels, unit_text, scale, lr, decay, beta1, beta2, eps,
    cut=lambda x: x,
):  # fmt: skip
    """Steps of Adam with coupled L2 on batches of row numbers; returns weights and losses."""
    weights = [np.array(w, float) for w in weights]
    first = [np.zeros(w.shape) for w in weights]
    second = [np.zeros(w.shape) for w in weights]
    losses = []
    for step, rows in enumerate(batches, start=1):
        x, y = features[rows].astype(float), labels[rows]
        losses.append(adapter_loss(weights, x, y, unit_text, scale, cut))
        gradients = adapter_gradients(weights, x, y, unit_text, scale, cut)
        for w, g, m, v in zip(weights, gradients, first, second, strict=True):
            g = g + decay * w
            m[:] = beta1 * m + (1 - beta1) * g
            v[:] = beta2 * v + (1 - beta2) * g * g
            w -= lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
    return weights, losses


def top1(weights, x, unit_text):
    """argmax_c of the gated unit feature against each class; (B,) int."""
    return (gate(x, adapter_scores(weights, x)) @ unit_text.T).argmax(axis=1)


def split(count, fraction, seed):
    """Train, validation and test positions of one domain's rows, as the released code cuts them."""
    np.random.seed(seed)
    order = np.arange(count)
    np.random.shuffle(order)
    train, held = int(count * fraction), int(count * round((1 - fraction) / 2, 12))
    return order[:train], order[train : train + held], order[train + held : train + 2 * held]
