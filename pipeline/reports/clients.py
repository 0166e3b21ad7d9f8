"""What a page shows of a training's clients: bars of few; of many the extremes, gains and rows."""

import bisect
import math
from collections.abc import Sequence
from statistics import median

from pipeline.reports.charts.bars import Bar, bar_chart
from pipeline.reports.charts.points import Dot, points_chart
from pipeline.reports.charts.svg import Scale, percent, span, ticks
from pipeline.reports.data import FoldData, Result, Scores
from pipeline.reports.render import Figure, Key, points

CLIENTS = 30  # bars of a training; of more clients 8 of the largest losses and gains each
ENDS = 8
BINS = 10  # of a histogram, about
LEAST = 0.001  # of accuracy, that a bin is wide
TINY = 1e-8  # differences of rounding
DOTS = 1000

Known = tuple[str, float, float | None]
"""A domain or client, its accuracy and zero-shot's on the same rows."""


def client_bars(fold: FoldData, result: Result) -> Figure:
    """Test accuracy of each held-out domain and client, beside zero-shot's."""
    known = _known(fold, result)
    note = ""
    if len(known) > CLIENTS:
        unseen = [one for one in known if one[0] in fold.held_out][:ENDS]
        others = sorted((one for one in known if one[0] not in fold.held_out),
                        key=lambda one: one[1] - (one[2] or 0.0))  # fmt: skip
        note = f"The {ENDS} smallest and {ENDS} largest gains of {len(others)} clients."
        known = [*unseen, *others[:ENDS], *others[-ENDS:]]
    bars = [
        Bar(name, "c1" if name in fold.held_out else "c0", value, with_gain(value, value, zero),
            zero)
        for name, value, zero in known
    ]  # fmt: skip
    keys = [Key("held out", "c1", "bar")] if any(b.style == "c1" for b in bars) else []
    keys += [Key("participant", "c0", "bar")] if any(b.style == "c0" for b in bars) else []
    keys += [Key("zero-shot", "", "mark")] if result.zero_shot else []
    return bar_figure(f"{fold.name} held out: test accuracy", bars, keys, note, high=1.0)


def client_spread(fold: FoldData, result: Result) -> list[Figure]:
    """For more than CLIENTS clients: the histogram of their gains, and accuracy by test rows."""
    known = [one for one in _known(fold, result) if one[0] not in fold.held_out]
    if len(known) <= CLIENTS - ENDS:
        return []
    found = []
    gains = [value - zero for _, value, zero in known if zero is not None]
    if gains:
        found.append(_histogram(fold.name, gains))
    sized = [one for one in known if one[0] in result.client_rows]
    if len(sized) > 1:
        found.append(_by_rows(fold.name, sized, result.client_rows))
    return found


def with_gain(shown: float, value: float, start: float | None) -> str:
    """75.00 (+1.25)"""
    return percent(shown) if start is None else f"{percent(shown)} ({points(value, start):+.2f})"


def bar_figure(
    title: str, bars: Sequence[Bar], keys: Sequence[Key] = (), note: str = "", **options: float
) -> Figure:
    """A card of bars; its first ten are read out by screen readers."""
    text = "; ".join(f"{bar.name} {bar.text}" for bar in bars[:10])
    return Figure(title, bar_chart(title, text, bars, **options), keys, note)


def _histogram(fold: str, gains: Sequence[float]) -> Figure:
    """Clients by points gained; a bin holds its lower end. The one that holds 0 begins there."""
    edges = ticks(min(gains), max(gains), BINS)
    step = max(edges[1] - edges[0] if len(edges) > 1 else 0.01, LEAST)
    first, last = (math.floor((end + TINY) / step) for end in (min(gains), max(gains)))
    edges = [k * step for k in range(first, last + 2)]
    counts = [0] * (len(edges) - 1)
    for gain in gains:
        counts[min(bisect.bisect_right(edges, gain + TINY), len(counts)) - 1] += 1
    bars = [
        Bar(f"{_signed(low)} to {_signed(high)}", "wrong" if low < -TINY else "right", count,
            f"{count} of {len(gains)}")
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]  # fmt: skip
    worse, same = sum(g < 0 for g in gains), sum(g == 0 for g in gains)
    note = (
        f"{len(gains)} clients: {worse} lose, {same} stay, {len(gains) - worse - same} gain; "
        f"median {100 * median(gains):+.2f} points."
    )
    keys = [Key("loses", "wrong", "bar"), Key("stays or gains", "right", "bar")]
    return bar_figure(f"{fold} held out: clients by points gained", bars, keys, note)


def _signed(gain: float) -> str:
    value = round(100 * gain, 6)
    return f"{value:+g}" if value else "0"


def _by_rows(fold: str, known: Sequence[Known], rows: dict[str, int]) -> Figure:
    sizes = [math.log(rows[name]) for name, _, _ in known]
    low, high = min(sizes), max(sizes)
    step, x = -(-len(known) // DOTS), Scale(low, high, 0, 1)
    dots = [
        Dot(f"{name}: {percent(value)} % of {rows[name]:,} rows", "c0", x(size), value)
        for (name, value, _), size in zip(known[::step], sizes[::step], strict=True)
    ]
    ends = sorted({round(math.exp(low)), round(math.exp((low + high) / 2)), round(math.exp(high))})
    words = [(x(math.log(n)), f"{n:,}") for n in ends]
    title = f"{fold} held out: accuracy by a client's test rows"
    low_value, high_value = span([value for _, value, _ in known], least=0.02)
    picture = points_chart(
        title, f"{len(dots)} clients", dots, [], [], x_title="test rows", words=words,
        value_text=lambda v: percent(v, 0),
        limits=(max(low_value, -0.02), min(high_value, 1.02)),
    )  # fmt: skip
    note = "A dot is a client; few rows make accuracies coarse. Hover over one to see it."
    return Figure(title, picture, note=note)


def _known(fold: FoldData, result: Result) -> list[Known]:
    start = _by_client(fold, result.zero_shot) if result.zero_shot else {}
    reached = _by_client(fold, result.scores)
    return [(n, v, start.get(n)) for n, v in reached.items() if v is not None]


def _by_client(fold: FoldData, scores: Scores) -> dict[str, float | None]:
    """Held-out domains, then clients; a client is a domain where the files name domains only."""
    unseen = {n: v for n, v in scores.per_domain.items() if n in fold.held_out}
    return unseen | (scores.per_client or scores.per_domain) | unseen
