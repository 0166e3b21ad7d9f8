"""Charts of a run by round: validation, test accuracy and loss of each training."""

from collections.abc import Sequence

from pipeline.reports.charts.lines import Level, Line, Mark, line_chart
from pipeline.reports.charts.svg import Markup, colour, percent, span
from pipeline.reports.data import Curve, FoldData, RunData
from pipeline.reports.parts import cards, figure, key, section

FOLDS = 12  # trainings drawn, three charts each
QUIET = 60  # further domains drawn in grey

Limits = tuple[float, float]


def rounds_part(run: RunData) -> Markup:
    """Two charts a training and one of its loss; charts of a kind share their axis."""
    folds = [fold for fold in run.folds if fold.validation]
    left = len(folds) - FOLDS
    folds = folds[:FOLDS]
    styles = styles_of(run.cache["domains"], folds)
    val, test, loss = (_limits(folds, which) for which in ("validation", "test", "loss"))
    last = max(max(run.rounds_done, 1) - 1, *(c.rounds[-1] for f in folds for c in _curves(f)), 0)
    accuracies = [
        chart
        for fold in folds
        for chart in (_validation(fold, styles, val, last), _test(fold, styles, test, last))
        if chart
    ]
    losses = [chart for fold in folds if (chart := _loss(fold, styles, loss, last))]
    lead = (
        "In %, by client and domain. A ring is the round that is kept: the earliest best on "
        "validation; test rows are scored when a round is the best so far. Dashed: zero-shot CLIP "
        "on the same rows."
    )
    if left > 0:
        lead += f" The first {FOLDS} trainings are drawn; {left} more are in the table above."
    return section("Accuracy by round", lead, cards(*accuracies)) + section(
        "Training loss by round", "Mean over a client's steps of the round.", cards(*losses)
    )


def styles_of(domains: Sequence[str], folds: Sequence[FoldData]) -> dict[str, str]:
    """A colour for each domain and client, the same in every chart; grey beyond seven."""
    names = dict.fromkeys(domains)
    for fold in folds:
        names |= dict.fromkeys([*fold.validation, *fold.test, *fold.loss])
    return {name: colour(at) for at, name in enumerate(names)}


def _validation(fold: FoldData, styles: dict[str, str], limits: Limits, last: int) -> Markup:
    result = fold.result
    mean = _mean(list(fold.validation.values()))
    lines = _lines(fold.validation, styles, ())
    if len(fold.validation) > 1:
        lines.append(Line("mean", "strong", mean.rounds, mean.values))
    zero_shot = result.zero_shot.val_accuracy if result and result.zero_shot else None
    levels = [Level("zero-shot, mean", "strong", zero_shot)] if zero_shot is not None else []
    marks = []
    if result and result.best_round is not None and result.scores.val_accuracy is not None:
        name = f"kept: round {result.best_round}"
        marks = [Mark(name, "strong", result.best_round, result.scores.val_accuracy)]
    return _card("validation", fold, lines, levels, marks, limits, last)


def _test(fold: FoldData, styles: dict[str, str], limits: Limits, last: int) -> Markup:
    if not fold.test:
        return Markup("")
    lines = _lines(fold.test, styles, fold.held_out)
    result = fold.result
    start = result.zero_shot.per_domain if result and result.zero_shot else {}
    levels = [Level(f"zero-shot, {n}", style, v) for n, style, v in _told(fold, styles, start)]
    marks = []
    if result and result.best_round is not None:
        said, at = f"kept: round {result.best_round}", result.best_round
        found = _told(fold, styles, result.scores.per_domain)
        marks = [Mark(f"{name}, {said}", style, at, value) for name, style, value in found]
    return _card("test", fold, lines, levels, marks, limits, last)


def _loss(fold: FoldData, styles: dict[str, str], limits: Limits, last: int) -> Markup:
    if not fold.loss:
        return Markup("")
    return _card("training loss", fold, _lines(fold.loss, styles, ()), [], [], limits, last)


def _card(
    what: str,
    fold: FoldData,
    lines: list[Line],
    levels: list[Level],
    marks: list[Mark],
    limits: Limits,
    last: int,
) -> Markup:
    title = f"{fold.name} held out: {what}"
    text = f"{len(lines)} lines by round: {', '.join(line.name for line in lines[-8:])}"
    loss = what == "training loss"
    picture = line_chart(
        title, text, lines, levels, marks, limits=limits,
        last_round=last,
        **({} if loss else {"value_text": _percent_tick}),
    )  # fmt: skip
    named = [line for line in lines if line.style != "rest"]
    named.sort(key=lambda line: (not _leads(line), line.style))
    keys = [key(line.name, line.style, "line") for line in named]
    grey = sum(line.style == "rest" for line in lines)
    if grey:
        keys.append(key(f"{grey} more", "rest", "line"))
    if levels:
        same = "zero-shot" if what == "validation" else "zero-shot, in the domain's colour"
        keys.append(key(same, "strong", "level"))
    return figure(title, picture, keys=keys)


def _lines(
    curves: dict[str, Curve], styles: dict[str, str], held_out: tuple[str, ...]
) -> list[Line]:
    """Grey lines lowest, then the coloured, then the held-out domains' in bold."""
    lines = [
        Line(name, _style(name, styles, held_out), curve.rounds, curve.values)
        for name, curve in curves.items()
    ]
    grey = [line for line in lines if line.style == "rest"][:QUIET]
    coloured = [line for line in lines if line.style != "rest"]
    return grey + sorted(coloured, key=lambda line: (_leads(line), line.style))


def _told(
    fold: FoldData, styles: dict[str, str], values: dict[str, float | None]
) -> list[tuple[str, str, float]]:
    """Name, style and value of the domains that have a colour of their own."""
    styled = ((name, _style(name, styles, fold.held_out), v) for name, v in values.items())
    return [(name, style, v) for name, style, v in styled if v is not None and style != "rest"]


def _style(name: str, styles: dict[str, str], held_out: tuple[str, ...]) -> str:
    style = styles.get(name, "rest")
    if name not in held_out:
        return style
    return "strong" if style == "rest" else f"{style} bold"


def _curves(fold: FoldData) -> list[Curve]:
    return [*fold.validation.values(), *fold.test.values(), *fold.loss.values()]


def _leads(line: Line) -> bool:
    return line.style.endswith(("bold", "strong"))


def _limits(folds: Sequence[FoldData], which: str) -> Limits:
    values = [
        v for f in folds for c in getattr(f, which).values() for v in c.values if v is not None
    ]
    starts = [f.result.zero_shot for f in folds if f.result and f.result.zero_shot]
    if which == "validation":
        values += [start.val_accuracy for start in starts if start.val_accuracy is not None]
    if which == "test":
        values += [v for start in starts for v in start.per_domain.values() if v is not None]
    low, high = span(values, least=0.0 if which == "loss" else 0.02)
    return (max(low, 0.0), high) if which == "loss" else (max(low, -0.02), min(high, 1.02))


def _mean(curves: Sequence[Curve]) -> Curve:
    """The plain mean over clients, None where one has no number."""
    by_round: dict[int, list[float | None]] = {}
    for curve in curves:
        for round, value in zip(curve.rounds, curve.values, strict=True):
            by_round.setdefault(round, []).append(value)
    means = [
        sum(values) / len(values) if len(values) == len(curves) and None not in values else None
        for values in by_round.values()
    ]
    return Curve(tuple(by_round), tuple(means))


def _percent_tick(value: float) -> str:
    return percent(value, 0 if abs(100 * value - round(100 * value)) < 1e-6 else 1)
