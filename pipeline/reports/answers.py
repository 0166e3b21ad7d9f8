"""Cards of what a run answers: confusion matrices, and features before and after the adapter."""

from collections.abc import Sequence

import numpy as np

from pipeline.reports.charts.matrix import matrix_chart
from pipeline.reports.charts.scatter import Cloud, scatter_chart
from pipeline.reports.charts.svg import COLOURS, Markup, colour, percent
from pipeline.reports.data import RunData
from pipeline.reports.maps import FOLDS, Answers, FoldAnswers, mistakes
from pipeline.reports.parts import Cell, cards, figure, key, section, table

CLASSES = 25  # up to which a confusion matrix is drawn; above it the top mistakes are listed
MISTAKES = 20
NO_ROWS = "there are no test rows."


def confusion_part(run: RunData, answers: Answers | str) -> Markup:
    """A matrix a training, or its most frequent mistakes where there are many classes."""
    title = "Confusion matrix of the kept round"
    if isinstance(answers, str) or not answers.folds:
        return section(title, f"Left out: {answers if isinstance(answers, str) else NO_ROWS}")
    if len(answers.class_names) > CLASSES:
        parts = [_mistakes(run, answers, fold) for fold in answers.folds]
        return section(
            "Most frequent mistakes of the kept round",
            f"A matrix of {len(answers.class_names)} classes is not readable; these are the "
            f"{MISTAKES} largest numbers off its diagonal, over all test rows.",
            *parts,
        )
    matrices = cards(*(_matrix(run, answers, fold) for fold in answers.folds))
    return section(
        title,
        "Over all test rows of a training, held-out ones included. A row is a true class, a column "
        f"an answer; the stronger its colour, the larger its share of "
        f"the row.{_rest(run, answers)}",
        matrices,
    )


def map_part(run: RunData, answers: Answers | str) -> Markup:
    """Two pictures a training: unit features before and after the adapter, on the same axes."""
    title = "Features before and after the adapter"
    if isinstance(answers, str) or not answers.folds:
        return section(title, f"Left out: {answers if isinstance(answers, str) else NO_ROWS}")
    if run.settings.get("mode") == "FedAtTxt":
        return section(title, "Left out: this adapter sits on the text, image features stay.")
    pairs = [picture for fold in answers.folds for picture in _pair(run, answers, fold)]
    return section(
        title,
        "Test rows at length 1 on the two leading principal axes of before and after together. "
        f"Two axes of many: distances are only hinted at.{_rest(run, answers)}",
        cards(*pairs),
    )


def _matrix(run: RunData, answers: Answers, fold: FoldAnswers) -> Markup:
    name = f"{run.folds[fold.fold].name} held out"
    counts = fold.confusions.counts
    right, before = (int(np.trace(c)) for c in (counts, fold.confusions.zero_shot))
    total = int(counts.sum())
    note = (
        f"{right:,} of {total:,} test rows right ({percent(right / max(total, 1))} %); zero-shot "
        f"{before:,}."
    )
    picture = matrix_chart(f"{name}: confusion matrix", note, answers.class_names, counts.tolist())
    keys = [key("right", "c0", "bar"), key("wrong", "c1", "bar")]
    return figure(name, picture, keys=keys, note=note)


def _mistakes(run: RunData, answers: Answers, fold: FoldAnswers) -> Markup:
    names = answers.class_names
    rows = [
        [
            Cell(names[one.true], None, "word name"),
            Cell(names[one.answered], None, "word name"),
            Cell(f"{one.count:,}", one.count),
            Cell(f"{one.of:,}", one.of),
            Cell(percent(one.count / one.of, 1), one.count / one.of),
            Cell(f"{one.zero_shot:,}", one.zero_shot),
        ]
        for one in mistakes(fold.confusions, MISTAKES)
    ]
    heads = ["true class", "answered", "rows", "of", "%", "zero-shot's rows"]
    name = f"{run.folds[fold.fold].name} held out"
    return table(name, heads, rows, caption=name)


def _pair(run: RunData, answers: Answers, fold: FoldAnswers) -> list[Markup]:
    both = np.concatenate([fold.map.before, fold.map.after])
    limits = tuple(float(v) for axis in both.T for v in (axis.min(), axis.max()))
    order = np.argsort(-np.bincount(fold.labels, minlength=len(answers.class_names)), kind="stable")
    shown = sorted(int(c) for c in order[:COLOURS])
    keys = [key(answers.class_names[c], colour(at), "dot") for at, c in enumerate(shown)]
    if len(answers.class_names) > COLOURS:
        keys.append(key(f"{len(answers.class_names) - COLOURS} more classes", "rest", "dot"))
    if fold.unseen.any():
        keys.append(key("held out", "strong", "cross"))
    name = run.folds[fold.fold].name
    note = f"{len(fold.labels)} rows; the axes hold {percent(fold.map.share, 0)} % of the variance."
    pictures = []
    for when, points in (("before", fold.map.before), ("after", fold.map.after)):
        title = f"{name} held out: {when} the adapter"
        clouds = _clouds(answers.class_names, fold, points, shown)
        picture = scatter_chart(title, note, clouds, limits)
        pictures.append(figure(title, picture, keys=keys, note=note))
    return pictures


def _clouds(
    names: Sequence[str], fold: FoldAnswers, points: np.ndarray, shown: Sequence[int]
) -> list[Cloud]:
    looks = [(names[c], colour(at), fold.labels == c) for at, c in enumerate(shown)]
    if len(names) > len(shown):
        looks.insert(0, ("other classes", "rest", ~np.isin(fold.labels, shown)))
    return [
        Cloud(name, style, crosses, points[mine & (fold.unseen == crosses)].tolist())
        for crosses in (False, True)
        for name, style, mine in looks
    ]


def _rest(run: RunData, answers: Answers) -> str:
    shown = min(len(run.folds), FOLDS)
    said = f" The first {shown} of {len(run.folds)} trainings." if shown < len(run.folds) else ""
    if len(answers.folds) < shown:
        said += " Trainings without test rows are left out."
    return said
