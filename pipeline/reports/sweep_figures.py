"""What a sweep's page draws of its trials: importance, slices and history of the search."""

import itertools
import math
from collections.abc import Sequence

from pipeline.json_files import word
from pipeline.reports.charts.bars import Bar, bar_chart
from pipeline.reports.charts.points import Dot, points_chart
from pipeline.reports.charts.svg import Level, percent, short, span
from pipeline.reports.data import mean_of
from pipeline.reports.render import Figure, Key
from pipeline.reports.threads import THREADS, in_order
from pipeline.reports.trials import SweepData, Trial
from pipeline.sweeps.importance import DISTINCT, influences

SLICES = 12  # settings drawn
MARKS = 9  # labels of an axis
LEAST = 0.01  # of accuracy, that an axis spans

Scored = tuple[Trial, float]
"""A finished trial and its validation accuracy."""


def zero_shot_validation(trials: Sequence[Trial]) -> float | None:
    """Zero-shot's mean validation accuracy, over the trials that know it."""
    known = [mean_of(trial.results, "val_accuracy", start=True) for trial in trials]
    values = [value for value in known if value is not None]
    return sum(values) / len(values) if values else None


def sweep_figures(sweep: SweepData, chosen: Sequence[Trial]) -> list[Figure]:
    """Importance of each setting, validation accuracy by setting, and by trial.

    None for fewer than three trials, or for seeds alone.

    Of more than THREADS trials every so many-th is drawn, and all that were chosen.
    """
    scored = [
        (t, t.val_accuracy)
        for t in sweep.trials
        if t.status == "done" and t.val_accuracy is not None
    ]
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
    found = _importance(sweep, scored)
    found += [
        _slice(name, drawn, scored, numbers, levels, limits, keys, few)
        for name in sweep.varied[:SLICES]
    ]
    return [*found, _history(drawn, scored, numbers, levels, limits, keys, few)]


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


def _slice(
    name: str, drawn: Sequence[Scored], scored: Sequence[Scored], numbers: set[int],
    levels: Sequence[Level], limits: tuple[float, float], keys: Sequence[Key], few: str,
) -> Figure:  # fmt: skip
    at, words = _places([trial.settings.get(name) for trial, _ in scored])
    groups: dict[float, list[float]] = {}
    for trial, value in scored:
        groups.setdefault(at[word(trial.settings.get(name))], []).append(value)
    means = [(x, sum(values) / len(values)) for x, values in sorted(groups.items())]
    some = len(groups) <= DISTINCT * 2
    title = f"Validation accuracy by {name}"
    picture = points_chart(
        title, f"{len(drawn)} trials at {len(groups)} values of {name}",
        [_dot(trial, value, at[word(trial.settings.get(name))], numbers) for trial, value in drawn],
        means if some and len(means) > 1 else [], levels,
        x_title=name, words=words, value_text=lambda v: percent(v, 1), limits=limits,
    )  # fmt: skip
    more = [Key("mean", "c0 strong", "line")] if some and len(means) > 1 else []
    return Figure(title, picture, [*keys, *more], few)


def _history(
    drawn: Sequence[Scored], scored: Sequence[Scored], numbers: set[int],
    levels: Sequence[Level], limits: tuple[float, float], keys: Sequence[Key], few: str,
) -> Figure:  # fmt: skip
    last = max(max(trial.number for trial, _ in scored), 1)
    best = itertools.accumulate((value for _, value in scored), max)
    steps: list[tuple[float, float]] = []
    for (trial, _), reached in zip(scored, best, strict=True):
        if not steps or reached > steps[-1][1]:
            steps += [(trial.number / last, steps[-1][1])] if steps else []
            steps.append((trial.number / last, reached))
    steps.append((1.0, steps[-1][1]))
    title = "Validation accuracy by trial"
    picture = points_chart(
        title, f"{len(drawn)} trials in the order they were numbered",
        [_dot(trial, value, trial.number / last, numbers) for trial, value in drawn], steps, levels,
        x_title="trial", words=[(0.0, "0"), (1.0, str(last))],
        value_text=lambda v: percent(v, 1), limits=limits,
    )  # fmt: skip
    return Figure(title, picture, [*keys, Key("best so far", "c0 strong", "line")], few)


def _dot(trial: Trial, value: float, x: float, numbers: set[int]) -> Dot:
    name = f"trial {trial.number}: {percent(value)} %"
    return Dot(name, "c1 chosen" if trial.number in numbers else "c2", x, value)


def _places(values: Sequence[object]) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """Where each value's word lies, 0 to 1, and the words to write along the axis.

    Few values lie evenly, in order. Many numbers lie by size, by their logarithms where they are
    above 0 and the largest is 30 times the least.
    """
    ordered = in_order(values)
    numbers = [v for v in ordered if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(ordered) <= MARKS or len(numbers) < len(ordered):
        last = max(len(ordered) - 1, 1)
        at = {word(v): n / last if len(ordered) > 1 else 0.5 for n, v in enumerate(ordered)}
        step = -(-len(ordered) // MARKS)
        return at, [(at[word(v)], word(v)) for n, v in enumerate(ordered) if n % step == 0]
    scale = math.log if numbers[0] > 0 and numbers[-1] >= 30 * numbers[0] else float
    low, high = scale(numbers[0]), scale(numbers[-1])
    at = {word(v): (scale(v) - low) / (high - low) for v in numbers}
    middle = numbers[len(numbers) // 2]
    shown = [v for v in (numbers[0], middle, numbers[-1])
             if v is not middle or 0.2 < at[word(v)] < 0.8]  # fmt: skip
    return at, [(at[word(v)], f"{v:.3g}") for v in shown]
