"""What a sweep's page draws of its trials: threads, importance, slices and history."""

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.groups import by_key
from pipeline.json_files import is_number, word
from pipeline.reports.charts.bars import Bar, bar_chart
from pipeline.reports.charts.parallel import Axis, Thread, parallel_chart
from pipeline.reports.charts.points import Dot, points_chart
from pipeline.reports.charts.svg import Level, Scale, percent, short, span
from pipeline.reports.data import mean_of
from pipeline.reports.render import Figure, Key
from pipeline.reports.trials import SweepData, Trial
from pipeline.sweeps.importance import DISTINCT, influences

AXES = 10  # settings drawn beside validation, as axes of threads
SLICES = 12  # settings drawn, a card each
THREADS = 500  # trials drawn: the best and every so many-th of the rest
SHADES = 5  # classes q0 to q4 of the style sheet
WORDS = 9  # labels of an axis
LEAST = 0.01  # of accuracy, that an axis spans

Scored = tuple[Trial, float]
"""A finished trial and its validation accuracy."""


class Plot(NamedTuple):
    """Where trials lie across a chart of their validation accuracies, and a line over them."""

    title: str
    said: str
    x: Callable[[Trial], float]
    x_title: str
    words: list[tuple[float, str]]
    line_name: str
    line: list[tuple[float, float]]


def zero_shot_validation(trials: Sequence[Trial]) -> float | None:
    """Zero-shot's mean validation accuracy, over the trials that know it."""
    known = [mean_of(trial.results, "val_accuracy", start=True) for trial in trials]
    values = [value for value in known if value is not None]
    return sum(values) / len(values) if values else None


def parallel_figures(
    sweep: SweepData, chosen: Sequence[Trial], zero_shot: float | None
) -> list[Figure]:
    """One picture of all trials with a validation accuracy; none for under two.

    zero_shot  its validation accuracy, marked on that axis
    """
    scored = [(t.val_accuracy, t) for t in sweep.trials if t.val_accuracy is not None]
    if len(scored) < 2 or not sweep.varied:
        return []
    scored.sort(key=lambda pair: pair[0])
    names = sweep.varied[:AXES]
    heights = [_evenly([trial.settings.get(name) for _, trial in scored]) for name in names]
    values = [value for value, _ in scored]
    marked = [] if zero_shot is None else [zero_shot]
    low, high = min(values[:1] + marked), max(values[-1:] + marked)
    height = Scale(low, high, 0, 1)
    axes = [Axis(name, words) for name, (_, words) in zip(names, heights, strict=True)]
    ends = ((low, percent(low)), (high, percent(high)))
    words = [(float(at == high), text) for at, text in ends if at != zero_shot]
    if zero_shot is not None:
        words.append((height(zero_shot), f"zero-shot {percent(zero_shot, 1)}"))
    axes.append(Axis("validation %", words))
    numbers = {trial.number for trial in chosen}
    threads = []
    for value, trial in scored if len(scored) <= THREADS else _some(scored):
        ups = [at[word(trial.settings.get(n))] for n, (at, _) in zip(names, heights, strict=True)]
        shade = bisect.bisect_left(values, value) * SHADES // len(values)
        style = "best" if trial.number in numbers else f"q{shade}"
        settings = ", ".join(f"{name} {word(trial.settings.get(name))}" for name in names)
        hint = f"trial {trial.number}: {settings}; validation {percent(value)} %"
        threads.append(Thread(hint, style, [*ups, height(value)]))
    threads.sort(key=lambda thread: thread.style == "best")
    title = "Settings and validation accuracy of the trials"
    text = f"{len(threads)} trials over {', '.join(names)} and validation accuracy"
    keys = [Key("chosen", "c1 best", "thread"), Key("best fifth", "q4", "thread"),
            Key("worst fifth", "q0", "thread")]  # fmt: skip
    note = "Hover over a line to see its trial."
    if len(threads) < len(scored):
        note += f" {len(threads)} of {len(scored):,} trials are drawn, the best ones among them."
    if len(names) < len(sweep.varied):
        note += f" The first {AXES} of {len(sweep.varied)} settings."
    return [Figure(title, parallel_chart(title, text, axes, threads), keys, note, full=True)]


def sweep_figures(sweep: SweepData, chosen: Sequence[Trial]) -> list[Figure]:
    """Importance of each setting, validation accuracy by setting, and by trial.

    None for fewer than three trials, or for seeds alone.

    Of more than THREADS trials every so many-th is drawn, and all that were chosen.
    """
    scored = sweep.scored
    if len(scored) < 3 or not sweep.varied:
        return []
    step = -(-len(scored) // THREADS)
    numbers = {trial.number for trial in chosen}
    drawn = [s for n, s in enumerate(scored) if n % step == 0 or s[0].number in numbers]
    drawn.sort(key=lambda one: one[0].number in numbers)  # on top
    zero_shot = zero_shot_validation([trial for trial, _ in scored])
    limits = span([v for _, v in scored] + ([] if zero_shot is None else [zero_shot]), least=LEAST)
    levels = [] if zero_shot is None else [Level("zero-shot CLIP", "strong", zero_shot)]
    keys = [Key("chosen", "c1 chosen", "dot"), Key("trial", "c2", "dot")]
    keys += [Key("zero-shot", "strong", "level")] * (zero_shot is not None)
    few = "" if len(drawn) == len(scored) else f"{len(drawn)} of {len(scored):,} trials are drawn."

    def card(plot: Plot) -> Figure:
        dots = [
            Dot(f"trial {trial.number}: {percent(value)} %",
                "c1 chosen" if trial.number in numbers else "c2", plot.x(trial), value)
            for trial, value in drawn
        ]  # fmt: skip
        picture = points_chart(
            plot.title, f"{len(drawn)} trials {plot.said}", dots, plot.line, levels,
            x_title=plot.x_title, words=plot.words, value_text=lambda v: percent(v, 1),
            limits=limits,
        )  # fmt: skip
        more = [Key(plot.line_name, "c0 strong", "line")] if plot.line else []
        return Figure(plot.title, picture, [*keys, *more], few)

    plots = [*(_slice(name, scored) for name in sweep.varied[:SLICES]), _history(scored)]
    return [*_importance(sweep, scored), *map(card, plots)]


def in_order(values: Sequence[object]) -> list[object]:
    """The distinct values, as their words tell them apart: None, then numbers, then words."""
    by_word = {word(value): value for value in values}
    return sorted(by_word.values(), key=_order)


def _importance(sweep: SweepData, scored: Sequence[Scored]) -> list[Figure]:
    settings = [
        {**{name: trial.settings.get(name) for name in sweep.varied}, "seed": trial.seed}
        for trial, _ in scored
    ]
    found = [i for i in influences(settings, [v for _, v in scored]) if i.share is not None]
    if not found:
        return []
    bars = [
        Bar(i.name, "c2", i.share or 0.0, f"{percent(i.share, 1)} %; best {short(i.best, 20)}")
        for i in found
    ]
    title = "Importance of each setting"
    note = (
        "Share of the variance of validation accuracy that a setting's values explain alone "
        "(epsilon squared); what two do only together counts for neither."
    )
    return [Figure(title, bar_chart(title, f"{len(bars)} settings", bars, high=1.0), note=note)]


def _slice(name: str, scored: Sequence[Scored]) -> Plot:
    at, words = _places([trial.settings.get(name) for trial, _ in scored])

    def x(trial: Trial) -> float:
        return at[word(trial.settings.get(name))]

    groups = by_key((x(trial), value) for trial, value in scored)
    means = [(place, sum(values) / len(values)) for place, values in sorted(groups.items())]
    return Plot(
        f"Validation accuracy by {name}", f"at {len(groups)} values of {name}", x, name, words,
        "mean", means if 1 < len(groups) <= DISTINCT * 2 else [],
    )  # fmt: skip


def _history(scored: Sequence[Scored]) -> Plot:
    last = max(max(trial.number for trial, _ in scored), 1)
    best = itertools.accumulate((value for _, value in scored), max)
    steps: list[tuple[float, float]] = []
    for (trial, _), reached in zip(scored, best, strict=True):
        if not steps or reached > steps[-1][1]:
            steps += [(trial.number / last, steps[-1][1])] if steps else []
            steps.append((trial.number / last, reached))
    steps.append((1.0, steps[-1][1]))
    return Plot(
        "Validation accuracy by trial", "in the order they were numbered",
        lambda trial: trial.number / last, "trial", [(0.0, "0"), (1.0, str(last))],
        "best so far", steps,
    )  # fmt: skip


def _places(values: Sequence[object]) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """Where each value's word lies, 0 to 1, and the words to write along the axis.

    Few values lie evenly, in order. Many numbers lie by size, by their logarithms where they are
    above 0 and the largest is 30 times the least.
    """
    ordered = in_order(values)
    numbers = [v for v in ordered if is_number(v)]
    if len(ordered) <= WORDS or len(numbers) < len(ordered):
        return _evenly(ordered)
    scale = math.log if numbers[0] > 0 and numbers[-1] >= 30 * numbers[0] else float
    low, high = scale(numbers[0]), scale(numbers[-1])
    at = {word(v): (scale(v) - low) / (high - low) for v in numbers}
    middle = numbers[len(numbers) // 2]
    shown = [v for v in (numbers[0], middle, numbers[-1])
             if v is not middle or 0.2 < at[word(v)] < 0.8]  # fmt: skip
    return at, [(at[word(v)], f"{v:.3g}") for v in shown]


def _some(scored: Sequence[tuple[float, Trial]]) -> list[tuple[float, Trial]]:
    half = THREADS // 2
    rest = scored[:-half]
    return [*rest[:: -(-len(rest) // half)], *scored[-half:]]


def _evenly(values: Sequence[object]) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """Where each value's word lies, 0 to 1, and the words to write: values evenly, in order.

    A grid's values are few and often powers of ten apart: in order, evenly, each can be told.
    Many numbers (a random search) are placed by rank for the same reason.
    """
    ordered = [word(value) for value in in_order(values)]
    last = max(len(ordered) - 1, 1)
    at = {w: (n / last if len(ordered) > 1 else 0.5) for n, w in enumerate(ordered)}
    step = max(1, -(-len(ordered) // WORDS))
    return at, [(at[w], w) for w in ordered[::step]]


def _order(value: object) -> tuple[int, float, str]:
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if is_number(value) else (2, 0.0, word(value))
