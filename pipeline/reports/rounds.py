"""Charts of a run by round: validation, test accuracy and loss of each training."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.groups import by_key
from pipeline.reports.charts.lines import Band, Line, Mark, line_chart
from pipeline.reports.charts.svg import Level, colour, number, percent, span
from pipeline.reports.data import Curve, FoldData, RunData, mean_curve
from pipeline.reports.render import Figure, Key
from pipeline.reports.spread import tenths

FOLDS = 12  # trainings drawn, three charts each
MANY = 20  # clients whose losses are drawn one by one; of more the median and a band
QUIET = 60  # further domains drawn in grey


class Plot(NamedTuple):
    """One chart of a training: its lines by round, and what lies among them."""

    what: str
    lines: list[Line]
    levels: Sequence[Level] = ()
    marks: Sequence[Mark] = ()
    bands: Sequence[Band] = ()
    value_text: Callable[[float], str] = number


def round_figures(run: RunData) -> list[Figure]:
    """Up to three charts of each training; charts of a kind share their axes."""
    folds = [fold for fold in run.folds if fold.validation][:FOLDS]
    names = dict.fromkeys([*run.cache["domains"], *(
        name for fold in folds for name in (*fold.validation, *fold.test, *fold.loss)
    )])  # fmt: skip
    styles = {name: colour(at) for at, name in enumerate(names)}  # the same in every chart
    curves = [c for f in folds for kind in (f.validation, f.test, f.loss) for c in kind.values()]
    last = max([run.rounds_done - 1, 0, *(curve.rounds[-1] for curve in curves)])
    limits = {which: _limits(folds, which) for which in ("validation", "test", "loss")}
    kept = run.settings.get("eval") != "every"  # where test accuracies are known at all
    found = []
    for fold in folds:
        plots = {"validation": _validation(fold, styles)}
        if fold.test:
            plots["test"] = _test(fold, styles, last, kept)
        if fold.loss:
            plots["loss"] = _loss(fold, styles)
        found += [_figure(fold.name, plot, limits[which], last) for which, plot in plots.items()]
    return found


def _validation(fold: FoldData, styles: dict[str, str]) -> Plot:
    result = fold.result
    lines = _lines(fold.validation, styles, ())
    if len(fold.validation) > 1:
        mean = mean_curve(list(fold.validation.values()))
        lines.append(Line("mean", "strong", mean.rounds, mean.values))
    zero_shot = result.zero_shot.val_accuracy if result and result.zero_shot else None
    levels = [Level("zero-shot, mean", "strong", zero_shot)] if zero_shot is not None else []
    marks = []
    if result and result.best_round is not None and result.scores.val_accuracy is not None:
        name = f"kept: round {result.best_round}"
        marks = [Mark(name, "strong", result.best_round, result.scores.val_accuracy)]
    return Plot("validation accuracy", lines, levels, marks, value_text=_percent_tick)


def _loss(fold: FoldData, styles: dict[str, str]) -> Plot:
    if len(fold.loss) <= MANY:
        return Plot("training loss", _lines(fold.loss, styles, ()))
    by_round = by_key(
        (round, value)
        for curve in fold.loss.values()
        for round, value in zip(curve.rounds, curve.values, strict=True)
        if value is not None
    )
    rounds = sorted(by_round)
    found = [tenths(by_round[round]) for round in rounds]
    median = Line("median client", "strong", rounds, [middle for _, middle, _ in found])
    band = Band("80 % of the clients", "c0", rounds, [(low, high) for low, _, high in found])
    return Plot("training loss", [median], bands=[band])


def _test(fold: FoldData, styles: dict[str, str], last: int, kept: bool) -> Plot:
    """kept: test rows were scored only when a round was the best so far."""
    curves = {n: _held(c, last) for n, c in fold.test.items()} if kept else fold.test
    result = fold.result
    start = result.zero_shot.per_domain if result and result.zero_shot else {}
    styled = _styled(fold, styles, start)
    levels = [Level(f"zero-shot, {name}", style, value) for name, style, value in styled]
    marks = []
    if result and result.best_round is not None:
        said, at = f"kept: round {result.best_round}", result.best_round
        found = _styled(fold, styles, result.scores.per_domain)
        marks = [Mark(f"{name}, {said}", style, at, value) for name, style, value in found]
    what = "test accuracy of the round kept so far" if kept else "test accuracy"
    lines = _lines(curves, styles, fold.held_out)
    return Plot(what, lines, levels, marks, value_text=_percent_tick)


def _figure(name: str, plot: Plot, limits: tuple[float, float], last: int) -> Figure:
    title, lines, levels = f"{name} held out: {plot.what}", plot.lines, plot.levels
    text = f"{len(lines)} lines by round: {', '.join(line.name for line in lines[-8:])}"
    picture = line_chart(
        title, text, lines, levels, plot.marks, value_text=plot.value_text, limits=limits,
        last_round=last, bands=plot.bands,
    )  # fmt: skip
    named = [line for line in lines if line.style != "rest"]
    named.sort(key=lambda line: (not _leads(line), line.style))
    keys = [Key(line.name, line.style, "line") for line in named]
    keys += [Key(band.name, band.style, "band") for band in plot.bands]
    grey = len(lines) - len(named)
    if grey:
        keys.append(Key(f"{grey} more", "rest", "line"))
    if levels:
        own = "zero-shot" if len(levels) == 1 else "zero-shot: level, same pattern"
        keys.append(Key(own, "strong", "level"))
    return Figure(title, picture, keys)


def _held(curve: Curve, last: int) -> Curve:
    """Each value up to the round of the next one, the last to the end: steps."""
    ends = [*curve.rounds[1:], last]
    rounds = [round for pair in zip(curve.rounds, ends, strict=True) for round in pair]
    return Curve(tuple(rounds), tuple(value for value in curve.values for _ in range(2)))


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


def _styled(
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


def _leads(line: Line) -> bool:
    return line.style.endswith(("bold", "strong"))


def _limits(folds: Sequence[FoldData], which: str) -> tuple[float, float]:
    values = [v for f in folds for c in getattr(f, which).values() for v in c.values]
    starts = [f.result.zero_shot for f in folds if f.result and f.result.zero_shot]
    if which == "validation":
        values += [start.val_accuracy for start in starts]
    if which == "test":
        values += [value for start in starts for value in start.per_domain.values()]
    known = [value for value in values if value is not None]
    low, high = span(known, least=0.0 if which == "loss" else 0.02)
    return (max(low, 0.0), high) if which == "loss" else (max(low, -0.02), min(high, 1.02))


def _percent_tick(value: float) -> str:
    return percent(value, 0 if abs(100 * value - round(100 * value)) < 1e-6 else 1)
