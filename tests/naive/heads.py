"""Slow twins of heads and losses, float64, written from docs/methods.md: numpy and math only."""

import math

import numpy as np

from tests.naive.steps import adapter_scores, gate


def unit(rows):
    """Each row at length 1; a row of zeros stays zeros."""
    lengths = np.sqrt((rows * rows).sum(axis=-1, keepdims=True))
    return rows / np.where(lengths == 0, 1, lengths)


def apply_head(head, parts, rows):
    """Rows (n, D) as a head changes them, at length 1; parts by name."""
    if head == "attention":
        weights = parts["w1"], parts["b1"], parts["w2"], parts["b2"]
        return gate(rows, adapter_scores(weights, rows))
    changed = []
    for row in unit(rows):
        if head == "clip-adapter":
            inner = [max(0.0, w @ row) for w in parts["w1"]]
            outer = np.array([max(0.0, w @ np.array(inner)) for w in parts["w2"]])
            changed.append(0.2 * outer + 0.8 * row)
        elif head == "linear":
            changed.append(parts["w"] @ row + parts["b"])
        elif head == "low-rank":
            changed.append(row + parts["b"] @ (parts["a"] @ row))
        elif head == "scale":
            changed.append([(1 + s) * x for s, x in zip(parts["s"], row, strict=True)])
        else:
            raise ValueError(f"no twin of head {head}")
    return unit(np.array(changed))


def logits(mode, head, parts, x, text, scale):
    """(n, C): every row against every class."""
    images = apply_head(head, parts, x) if mode != "FedAtTxt" else unit(x)
    classes = unit(text)
    if head == "classifier":
        return scale * (images @ parts["text_w"].T + parts["text_b"])
    if head == "cosine":
        classes = unit(parts["text_w"])
    elif mode != "FedAtImg":
        own = {n[5:]: p for n, p in parts.items() if n.startswith("text_")}
        classes = apply_head(head, own, text)
    return scale * images @ classes.T


def batch_loss(loss, z, labels):
    """One batch's loss from z (n, C), by loops over its rows; see kernels/local/__init__.py."""
    n, total = len(labels), 0.0
    for i, own in enumerate(labels):
        if loss == "class":
            total += log_sum(z[i]) - z[i, own]
            continue
        by_row = log_sum([z[i, y] for y in labels])
        by_column = log_sum([z[j, own] for j in range(n)])
        if loss == "contrastive":
            total += (by_row - z[i, own] + by_column - z[i, own]) / 2
        else:
            alike = [j for j in range(n) if labels[j] == own]
            total += (by_row - log_sum([z[i, own] for _ in alike])) / 2
            total += (by_column - log_sum([z[j, own] for j in alike])) / 2
    return total / n


def log_sum(values):
    """log sum exp."""
    peak = max(values)
    return peak + math.log(sum(math.exp(v - peak) for v in values))
