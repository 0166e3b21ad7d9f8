"""What a run cost, next to the protocol that encodes every image at every step."""

from typing import NamedTuple

from pipeline.extraction.rate import Rate
from pipeline.reports.charts.bars import Bar, bar_chart
from pipeline.reports.data import RunData
from pipeline.reports.maps import Answers
from pipeline.reports.render import Figure, duration

Quantity = tuple[str, str, float | None, float | None]
"""What is counted, its unit, what this run spent and what the uncached protocol would."""


class Costs(NamedTuple):
    """Rows of a table (what, this run, uncached, their ratio), and a picture of the first.

    uncounted  why the uncached protocol's images cannot be counted; "" where they can
    rate       at which images are encoded; None: unknown
    """

    rows: list[tuple[str, str, str, str]]
    picture: Figure | None
    uncounted: str
    rate: Rate | float | None


def costs_of(run: RunData, answers: Answers | str, rate: Rate | float | None = None) -> Costs:
    """Images encoded, seconds and bytes: this run, the uncached protocol, and their ratio.

    rate  as extract measured it, or images a second that somebody named. The uncached protocol's
          seconds, which nobody measured, are images / rate; without one they are left out
    """
    here = float(run.cache["rows"])
    there = None if isinstance(answers, str) else float(answers.encodes_a_round * run.rounds_done)
    found: list[Quantity] = [("Images encoded: once, or uncached", "", here, there)]
    if rate and here and there:
        speed = rate.per_second if isinstance(rate, Rate) else rate
        name = f"Encoding time, computed at {speed:,.0f} images/s: once, or uncached"
        found.append((name, "s", here / speed, there / speed))
    found.append(("Training time, measured", "s", run.seconds.get("train"), None))
    sent = [fold.result.traffic for fold in run.folds if fold.result and fold.result.traffic]
    if both_ways := sum(one.up + one.down for one in sent):
        whole = [one.clip for one in sent]
        clip = None if None in whole else float(sum(one or 0 for one in whole))
        name = "Bytes up and down a round: adapters, or all of CLIP"
        found.append((name, "B", float(both_ways), clip))
    uncounted = answers if isinstance(answers, str) else ""
    rows = [(n, _text(a, unit), _text(b, unit), _ratio(a, b)) for n, unit, a, b in found]
    return Costs(rows, _picture(here, there) if here and there else None, uncounted, rate)


def _picture(here: float, there: float) -> Figure:
    bars = [
        Bar("this run: every image once", "c0", here, _text(here, "")),
        Bar("uncached", "c1", there, _text(there, "")),
    ]
    text = "; ".join(f"{bar.name} {bar.text}" for bar in bars)
    return Figure("Images through CLIP", bar_chart("Images through CLIP", text, bars))


def _text(value: float | None, unit: str) -> str:
    if value is None:
        return "\u2013"
    if unit == "s":
        return duration(value)
    return f"{value / 1e6:,.2f} MB" if unit == "B" else f"{value:,.0f}"


def _ratio(here: float | None, there: float | None) -> str:
    return f"{there / here:,.3g}x" if here and there else ""
