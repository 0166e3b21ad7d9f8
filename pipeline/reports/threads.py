"""A sweep as parallel coordinates: its settings and what they reach on validation."""

import bisect
from collections.abc import Sequence

from pipeline.json_files import word
from pipeline.reports.charts.parallel import Axis, Thread, parallel_chart
from pipeline.reports.charts.svg import Markup, percent
from pipeline.reports.parts import figure, key
from pipeline.reports.trials import SweepData, Trial

AXES = 10  # settings drawn beside validation
THREADS = 500  # trials drawn: the best and every so many-th of the rest
SHADES = 5  # classes q0 to q4 of the style sheet
WORDS = 9  # labels of an axis


def parallel_card(sweep: SweepData, chosen: Sequence[Trial]) -> Markup:
    """One picture of all trials with a validation accuracy; nothing for under two."""
    trials = [t for t in sweep.trials if t.val_accuracy is not None]
    if len(trials) < 2 or not sweep.varied:
        return Markup("")
    trials.sort(key=lambda t: t.val_accuracy)
    names = sweep.varied[:AXES]
    shown = trials if len(trials) <= THREADS else _some(trials)
    heights = [_heights([trial.settings.get(name) for trial in trials]) for name in names]
    values = [trial.val_accuracy for trial in trials]
    low, high = values[0], values[-1]
    axes = [Axis(name, words) for name, (words, _) in zip(names, heights, strict=True)]
    axes.append(Axis("validation %", [(0.0, percent(low)), (1.0, percent(high))]))
    numbers = {trial.number for trial in chosen}
    threads = []
    for trial in shown:
        ups = [at[word(trial.settings.get(n))] for n, (_, at) in zip(names, heights, strict=True)]
        ups.append((trial.val_accuracy - low) / (high - low) if high > low else 0.5)
        shade = bisect.bisect_left(values, trial.val_accuracy) * SHADES // len(values)
        style = "best" if trial.number in numbers else f"q{shade}"
        threads.append(Thread(_hint(trial, names), style, ups))
    threads.sort(key=lambda thread: thread.style == "best")
    title = "Settings of the trials, and what they reach"
    text = f"{len(shown)} trials over {', '.join(names)} and validation accuracy"
    keys = [key("chosen", "c1 best", "thread"), key("best fifth", "q4", "thread"),
            key("worst fifth", "q0", "thread")]  # fmt: skip
    note = "Hovering a line shows its trial."
    if len(shown) < len(trials):
        note += f" {len(shown)} of {len(trials):,} trials are drawn, the best ones among them."
    if len(names) < len(sweep.varied):
        note += f" The first {AXES} of {len(sweep.varied)} settings."
    picture = parallel_chart(title, text, axes, threads)
    return figure(title, picture, keys=keys, note=note, full=True)


def _some(trials: Sequence[Trial]) -> list[Trial]:
    half = THREADS // 2
    rest = trials[:-half]
    step = -(-len(rest) // half)
    return [*rest[::step], *trials[-half:]]


def _heights(values: Sequence[object]) -> tuple[list[tuple[float, str]], dict[str, float]]:
    """The words along an axis, and the height of each value's word: values evenly, in their order.

    A grid's values are few and often powers of ten apart: in order, evenly, each can be told.
    Many numbers (a random search) are placed by rank for the same reason.
    """
    by_word = {word(value): value for value in values}
    ordered = sorted(by_word, key=lambda one: _order(by_word[one]))
    last = max(len(ordered) - 1, 1)
    at = {w: (n / last if len(ordered) > 1 else 0.5) for n, w in enumerate(ordered)}
    step = max(1, -(-len(ordered) // WORDS))
    words = [(at[w], w) for n, w in enumerate(ordered) if n % step == 0]
    return words, at


def _order(value: object) -> tuple[int, float, str]:
    """None lowest, then numbers, then words."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 1, float(value), ""
    return 2, 0.0, word(value)


def _hint(trial: Trial, names: Sequence[str]) -> str:
    settings = ", ".join(f"{name} {word(trial.settings.get(name))}" for name in names)
    return f"trial {trial.number}: {settings}; validation {percent(trial.val_accuracy)} %"
