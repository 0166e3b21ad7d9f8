"""Slow twins of the metrics, row by row: numpy and math only."""

import math


def accuracy_by(labels, predictions, groups):
    """{group: share of its rows that are right}."""
    found = {}
    for label, answer, group in zip(labels, predictions, groups, strict=True):
        found.setdefault(int(group), []).append(label == answer)
    return {group: sum(right) / len(right) for group, right in sorted(found.items())}


def spread(accuracies, rows):
    """mean, weighted by rows, std, worst, mean of the worst tenth."""
    count = len(accuracies)
    mean = sum(accuracies) / count
    weighted = sum(a * r for a, r in zip(accuracies, rows, strict=True)) / sum(rows)
    std = math.sqrt(sum((a - mean) ** 2 for a in accuracies) / count)
    tenth = sorted(accuracies)[: max(1, int(count / 10))]
    return mean, weighted, std, min(accuracies), sum(tenth) / len(tenth)


def macro_f1(labels, predictions):
    """Over the classes seen, from precision and recall."""
    scores = []
    for c in {*labels, *predictions}:
        hits = sum(a == b == c for a, b in zip(labels, predictions, strict=True))
        asked, answered = sum(a == c for a in labels), sum(b == c for b in predictions)
        recall, precision = hits / max(asked, 1), hits / max(answered, 1)
        scores.append(2 * recall * precision / (recall + precision) if hits else 0.0)
    return sum(scores) / len(scores)


def calibration_error(right, confidences, bins):
    """Bin by bin: share of rows times |accuracy - mean confidence|."""
    error = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        here = [k for k, c in enumerate(confidences) if low < c <= high or (b == 0 and c == 0)]
        if here:
            accuracy = sum(right[k] for k in here) / len(here)
            confidence = sum(confidences[k] for k in here) / len(here)
            error += len(here) / len(right) * abs(accuracy - confidence)
    return error
