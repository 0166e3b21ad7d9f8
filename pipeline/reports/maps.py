"""What the answers of a run look like: a confusion matrix, and features before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import eigh

from cache.store import read_table
from cache.table import CacheError, FeatureTable, domain_index
from kernels.cpu.threads import one_thread
from pipeline.errors import ConfigError
from pipeline.federation.evaluate import Cached
from pipeline.federation.training import to_device
from pipeline.reports.data import RunData
from pipeline.reports.predictions import (
    Kept,
    Predictions,
    encodes_a_round,
    predictions,
    read_kept,
)
from pipeline.runs.outcomes import Tested

FOLDS = 8  # trainings of a run whose answers are drawn


class Confusions(NamedTuple):
    """Counts of answers by true class; zero-shot's on the same rows."""

    counts: np.ndarray  # (C, C) int64, [true, answered]
    zero_shot: np.ndarray  # (C, C) int64


class FeatureMap(NamedTuple):
    """Features in the plane in which they spread most, before and after the adapter."""

    before: np.ndarray  # (m, 2) float64
    after: np.ndarray  # (m, 2) float64
    share: float  # of the variance, that the plane holds


class Mistake(NamedTuple):
    """A true class and a wrong answer to it."""

    true: str
    answered: str
    count: int
    of: int  # test rows of the true class
    zero_shot: int  # how often zero-shot makes it


def confusions(found: Predictions, classes: int) -> Confusions:
    """counts[a, b] = how many rows of class a are answered b."""
    return Confusions(
        *(
            np.bincount(found.labels * classes + answers, minlength=classes**2).reshape(classes, -1)
            for answers in (found.predicted, found.zero_shot)
        )
    )


def mistakes(of: Confusions, names: Sequence[str], most: int) -> list[Mistake]:
    """The `most` frequent wrong answers, most frequent first."""
    wrong = of.counts - np.diag(np.diag(of.counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = (divmod(int(at), len(wrong)) for at in order)
    totals = of.counts.sum(axis=1)
    return [
        Mistake(names[a], names[b], int(wrong[a, b]), int(totals[a]), int(of.zero_shot[a, b]))
        for a, b in pairs
        if wrong[a, b]
    ]


def feature_map(before: np.ndarray, after: np.ndarray) -> FeatureMap:
    """Both sets on the two leading principal axes of their union.

    before, after  (m, D) float32. Each axis points to where its largest loading is positive.
    """
    both = np.concatenate([before, after]).astype(np.float64)
    both -= both.mean(axis=0)
    spread = both.T @ both
    last = len(spread) - 1
    # Two of D eigenvectors: a third of the time of all at D 512.
    values, vectors = eigh(spread, subset_by_index=(max(last - 1, 0), last))
    axes = vectors[:, ::-1]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(axes[largest, range(axes.shape[1])] < 0, -1.0, 1.0)
    plane = np.zeros((len(both), 2))
    plane[:, : axes.shape[1]] = both @ axes
    total = np.trace(spread)
    share = float(values.sum() / total) if total > 0 else 1.0
    return FeatureMap(plane[: len(before)], plane[len(before) :], share)


@dataclass(frozen=True)
class FoldAnswers:
    """What the chosen adapter of one fold makes of its test rows."""

    fold: int
    confusions: Confusions
    map: FeatureMap
    labels: np.ndarray  # (m,) int64, of the rows in the map
    domains: np.ndarray  # (m,) int64, of the rows in the map
    unseen: np.ndarray  # (m,) bool: rows of held-out domains


@dataclass(frozen=True)
class Answers:
    """What a report shows of a run beyond its files' numbers."""

    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    folds: tuple[FoldAnswers, ...]  # those of the first FOLDS that have test rows
    encodes_a_round: int


def answers_of(
    run: RunData, cache: Path | None = None, known: Mapping[int, Tested] | None = None
) -> Answers | str:
    """The run's adapters asked again, or the sentence that says why they could not be.

    cache  where the features lie now; None looks where the run read them
    known  what it answered on its test rows, by fold, where that is at hand
    """
    adapter_file = run.folder / "adapter.safetensors"
    if not adapter_file.exists():
        return "the run has no adapter.safetensors: nothing was trained, or not saved yet."
    file = cache or run.cache_file
    if file is None:
        return "summary.json does not name the cache with the features; pass --cache."
    if not file.exists():
        return f"the cache with the features is missing ({file}); pass --cache if it has moved."
    try:
        table = read_table(file)
        if table.content_sha256 != run.cache.get("content_sha256"):
            return f"{file} holds features other than those of this run."
        kept = read_kept(adapter_file)
        if any(run.settings.get(k) != v for k, v in kept.settings.items()):
            return f"{adapter_file} belongs to a run with other settings."
        cached = to_device(table, torch.device("cpu"))
        found = [
            _fold(run, table, cached, kept, f, (known or {}).get(f))
            for f in range(min(len(run.folds), FOLDS))
        ]
        return Answers(
            table.class_names,
            table.domain_names,
            tuple(fold for fold in found if fold),
            encodes_a_round(table, kept.config),
        )
    except (CacheError, ConfigError) as error:
        return str(error)


def _fold(
    run: RunData, table: FeatureTable, cached: Cached, kept: Kept, fold: int, known: Tested | None
) -> FoldAnswers | None:
    found = predictions(table, cached, kept, fold, known)
    if not len(found.rows):
        return None
    domains = table.domains[found.rows[found.mapped]]
    held_out = [domain_index(table, name) for name in run.folds[fold].held_out]
    with one_thread():
        plane = feature_map(found.before, found.after)
    return FoldAnswers(
        fold,
        confusions(found, len(table.class_names)),
        plane,
        found.labels[found.mapped],
        domains,
        np.isin(domains, held_out),
    )
