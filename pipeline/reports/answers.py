"""Cards of what a run answers: confusion matrices, and features before and after the adapter."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.reports.charts.matrix import matrix_chart
from pipeline.reports.charts.scatter import Cloud, scatter_chart
from pipeline.reports.charts.svg import COLOURS, colour, percent
from pipeline.reports.data import RunData
from pipeline.reports.maps import FOLDS, Answers, FoldAnswers, Mistake, mistakes
from pipeline.reports.render import Figure, Key

CLASSES = 25  # up to which a confusion matrix is drawn; above it the top mistakes are listed
MISTAKES = 20


class AnswerFigures(NamedTuple):
    """A matrix a training unless classes are many, and its mistakes: true, answered, counts.

    left_out  why there is none of it; no_maps: why there are no maps
    rest      a sentence on trainings that are not drawn
    """

    left_out: str
    no_maps: str
    matrices: Sequence[Figure] = ()
    many: bool = False
    mistakes: Sequence[tuple[str, list[Mistake]]] = ()
    maps: Sequence[tuple[str, list[Figure]]] = ()
    rest: str = ""
    classes: int = 0
    most: int = MISTAKES


def answer_figures(run: RunData, answers: Answers | str) -> AnswerFigures:
    """The cards of a run's answers, or the sentence that says why there are none."""
    if isinstance(answers, str) or not answers.folds:
        why = answers if isinstance(answers, str) else "there are no test rows."
        return AnswerFigures(why, why)
    names, folds = answers.class_names, answers.folds
    titled = [(f"{run.folds[fold.fold].name} held out", fold) for fold in folds]
    many = len(names) > CLASSES
    on_text = run.settings.get("mode") == "FedAtTxt"
    return AnswerFigures(
        "",
        "this adapter acts on text features; image features stay as they are." if on_text else "",
        [] if many else [_matrix(title, names, fold) for title, fold in titled],
        many,
        [(title, mistakes(fold.confusions, names, MISTAKES)) for title, fold in titled],
        [(title, _maps(title, names, answers.domain_names, fold)) for title, fold in titled],
        _rest(run, answers),
        len(names),
    )  # fmt: skip


def _matrix(title: str, names: Sequence[str], fold: FoldAnswers) -> Figure:
    counts = fold.confusions.counts
    right, before = (int(np.trace(c)) for c in (counts, fold.confusions.zero_shot))
    total = int(counts.sum())
    note = (
        f"{right:,} of {total:,} test rows right: {percent(right / max(total, 1))} %, mean over "
        f"rows; zero-shot {before:,} rows, {percent(before / max(total, 1))} %."
    )
    picture = matrix_chart(f"{title}: confusion matrix", note, names, counts.tolist())
    keys = [Key("right", "c0", "bar"), Key("wrong", "c1", "bar")]
    return Figure(f"{title}: confusion matrix", picture, keys, note)


def _maps(of: str, names: Sequence[str], domains: Sequence[str], fold: FoldAnswers) -> list[Figure]:
    """Unit features before and after the adapter by class, and by domain; on the same axes."""
    both = np.concatenate([fold.map.before, fold.map.after])
    left, right, bottom, top = (float(v) for axis in both.T for v in (axis.min(), axis.max()))
    note = f"{len(fold.labels)} rows; the axes hold {percent(fold.map.share, 0)} % of the variance."
    kinds = [("before the adapter", fold.map.before, names, fold.labels, "classes"),
             ("after the adapter", fold.map.after, names, fold.labels, "classes")]  # fmt: skip
    if len(np.unique(fold.domains)) > 1:
        kinds.append(("after it, by domain", fold.map.after, domains, fold.domains, "domains"))
    pictures = []
    for what, points, called, groups, many in kinds:
        title = f"{of}: {what}"
        clouds, keys = _clouds(called, groups, many, points, fold.unseen)
        named = [(name, *np.median(points[groups == names.index(name)], axis=0).tolist())
                 for name in dict.fromkeys(cloud.name for cloud in clouds if cloud.points)
                 if many == "classes" and name in names]  # fmt: skip
        picture = scatter_chart(title, note, clouds, (left, right, bottom, top), named)
        pictures.append(Figure(title, picture, keys, note))
    return pictures


def _clouds(
    names: Sequence[str], groups: np.ndarray, many: str, points: np.ndarray, unseen: np.ndarray
) -> tuple[list[Cloud], list[Key]]:
    """Points by group, the largest COLOURS in colours of their own; crosses are held out."""
    order = np.argsort(-np.bincount(groups, minlength=len(names)), kind="stable")
    shown = sorted(int(g) for g in order[:COLOURS])
    looks = [(names[g], colour(at), groups == g) for at, g in enumerate(shown)]
    keys = [Key(name, style, "dot") for name, style, mine in looks if mine.any()]
    if len(names) > len(shown):
        looks.insert(0, (f"other {many}", "rest", ~np.isin(groups, shown)))
        keys.append(Key(f"{len(names) - len(shown)} more {many}", "rest", "dot"))
    if unseen.any():
        keys.append(Key("held out", "strong", "cross"))
    clouds = [
        Cloud(name, style, crosses, points[mine & (unseen == crosses)].tolist())
        for crosses in (False, True)
        for name, style, mine in looks
    ]
    return clouds, keys


def _rest(run: RunData, answers: Answers) -> str:
    shown = min(len(run.folds), FOLDS)
    said = f" The first {shown} of {len(run.folds)} trainings." if shown < len(run.folds) else ""
    if len(answers.folds) < shown:
        said += " Trainings without test rows are left out."
    return said
