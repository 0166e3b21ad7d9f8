"""Metrics of answers: accuracy by domain and client, macro F1, calibration."""

from collections.abc import Sequence

import numpy as np

BINS = 15  # Guo et al., arXiv:1706.04599


def accuracy_by(right: np.ndarray, groups: np.ndarray) -> dict[int, float]:
    """Accuracy of each group that has rows, in the groups' order.

    right   (n,) bool, labels == predictions
    groups  (n,) int64: domains or clients
    """
    present, where = np.unique(groups, return_inverse=True)
    sums = np.bincount(where, weights=right, minlength=len(present))
    means = sums / np.maximum(np.bincount(where, minlength=len(present)), 1)
    return dict(zip(present.tolist(), means.tolist(), strict=True))


def spread(accuracies: Sequence[float], rows: Sequence[int]) -> dict[str, float | None]:
    """Summarizes clients or domains with `rows` rows each; fractions, each None without any.

    mean, and std, the population's;  weighted: by rows, so the accuracy over all rows
    worst, and worst_decile: the mean of the worst tenth, rounded down, of at least one
    The names follow FederatedScope's fairness results, where worst_decile is bottom10%.
    """
    if len(accuracies) != len(rows):
        raise ValueError(f"spread: {len(accuracies)} accuracies and {len(rows)} row counts")
    if not len(accuracies):
        return dict.fromkeys(("mean", "weighted", "std", "worst", "worst_decile"))
    ranked = np.sort(accuracies)
    return {
        "mean": float(np.mean(ranked)),
        "weighted": float(np.average(accuracies, weights=rows)),
        "std": float(np.std(ranked)),
        "worst": float(ranked[0]),
        "worst_decile": float(np.mean(ranked[: max(1, len(ranked) // 10)])),
    }


def mean_and_std(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and sample standard deviation of the values that are not None; None if too few."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
    }


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float | None:
    """Mean over classes of 2 TP / (2 TP + FP + FN); None without rows.

    labels, predictions  (n,) int64
    Classes that are neither a label nor a prediction do not count, as in sklearn.metrics.f1_score.
    """
    if not len(labels):
        return None
    size = int(max(labels.max(), predictions.max())) + 1
    hits = np.bincount(labels[labels == predictions], minlength=size)
    ends = np.bincount(labels, minlength=size) + np.bincount(predictions, minlength=size)
    return float(np.mean(2 * hits[ends > 0] / ends[ends > 0]))


def calibration_error(right: np.ndarray, confidences: np.ndarray, bins: int = BINS) -> float | None:
    """Expected calibration error: sum over bins of rows/n |accuracy - mean confidence|.

    right        (n,) bool
    confidences  (n,) float in [0, 1], the greatest softmax probability of each row
    Bins are of equal width, open below and closed above, ((b - 1)/bins, b/bins], 0 in the first.
    None without rows. Raises ValueError for confidences outside [0, 1].
    Source: Guo et al., arXiv:1706.04599, equation 3.
    """
    if not len(right):
        return None
    # Written so that NaN fails as well; a float32 softmax may exceed 1 by a rounding error.
    if not (confidences.min() >= 0 and confidences.max() <= 1 + 1e-5):
        low, high = confidences.min(), confidences.max()
        raise ValueError(f"calibration_error: confidences must be in [0, 1]; got {low} to {high}")
    place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidences, side="left")
    gaps = np.bincount(place, weights=right - confidences.astype(float), minlength=bins)
    return float(np.abs(gaps).sum() / len(right))
