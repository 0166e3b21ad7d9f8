"""A sweep as parallel coordinates: its settings and what they reach on validation."""

import bisect
from collections.abc import Sequence

from pipeline.json_files import word
from pipeline.reports.charts.parallel import Axis, Thread, parallel_chart
from pipeline.reports.charts.svg import Scale, percent
from pipeline.reports.render import Figure, Key
from pipeline.reports.trials import SweepData, Trial

AXES = 10  # settings drawn beside validation
THREADS = 500  # trials drawn: the best and every so many-th of the rest
SHADES = 5  # classes q0 to q4 of the style sheet
WORDS = 9  # labels of an axis


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
    heights = [evenly([trial.settings.get(name) for _, trial in scored]) for name in names]
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


def _some(scored: Sequence[tuple[float, Trial]]) -> list[tuple[float, Trial]]:
    half = THREADS // 2
    rest = scored[:-half]
    return [*rest[:: -(-len(rest) // half)], *scored[-half:]]


def evenly(values: Sequence[object]) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """Where each value's word lies, 0 to 1, and the words to write: values evenly, in order.

    A grid's values are few and often powers of ten apart: in order, evenly, each can be told.
    Many numbers (a random search) are placed by rank for the same reason.
    """
    ordered = [word(value) for value in in_order(values)]
    last = max(len(ordered) - 1, 1)
    at = {w: (n / last if len(ordered) > 1 else 0.5) for n, w in enumerate(ordered)}
    step = max(1, -(-len(ordered) // WORDS))
    return at, [(at[w], w) for w in ordered[::step]]


def in_order(values: Sequence[object]) -> list[object]:
    """The distinct values, as their words tell them apart: None, then numbers, then words."""
    by_word = {word(value): value for value in values}
    return sorted(by_word.values(), key=_order)


def _order(value: object) -> tuple[int, float, str]:
    """None lowest, then numbers, then words."""
    if value is None:
        return 0, 0.0, ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 1, float(value), ""
    return 2, 0.0, word(value)
