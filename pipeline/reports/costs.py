"""What a run cost, beside the protocol that encodes every image at every step."""

from typing import NamedTuple

from pipeline.extraction.rate import Rate
from pipeline.reports.charts.bars import Bar, bar_chart
from pipeline.reports.charts.svg import Markup, printable
from pipeline.reports.data import RunData
from pipeline.reports.maps import Answers
from pipeline.reports.parts import Cell, cards, figure, section, table


class Cost(NamedTuple):
    """One thing that was spent here, and that the other way would spend."""

    name: str
    unit: str
    here: float | None
    there: float | None


def costs_part(run: RunData, answers: Answers | str, rate: Rate | float | None = None) -> Markup:
    """Images encoded, seconds and bytes: this run, the uncached protocol, and their ratio.

    rate  at which images are encoded: as extract measured it, or images a second that somebody
          named. The uncached protocol's seconds, which nobody measured, are images / rate; without
          one they are left out
    """
    images = _images(run, answers)
    costs = [images, *_seconds(run, images, rate), *_bytes(run)]
    lead = Markup(
        "Uncached is the released code's loop: it encodes a train row once a local epoch, and "
        "every row once more a round for the accuracies. {}"
    ).format(_rate_in_words(answers, rate))
    rows = [
        [Cell(cost.name, None, "word"), Cell(_text(cost.here, cost.unit)),
         Cell(_text(cost.there, cost.unit)), Cell(_ratio(cost))]
        for cost in costs
    ]  # fmt: skip
    return section(
        "Cost against the uncached protocol",
        lead,
        table("Costs", ["", "this run", "otherwise", "ratio"], rows, sortable=False),
        _picture(images),
    )


def _rate_in_words(answers: Answers | str, rate: Rate | float | None) -> Markup:
    if isinstance(answers, str):
        return Markup("Its images cannot be counted here: {}").format(printable(answers))
    if rate is None:
        return Markup(
            "Its seconds cannot be worked out: no measured rate lies beside the cache (it was "
            "imported, merged or copied alone). <code>--images-per-second</code> with the rate "
            "that extract printed adds what the encoding alone would take."
        )
    if isinstance(rate, Rate):
        return Markup(
            "Its seconds of encoding are computed: images over the rate that extract measured, "
            "{} images in {} on {}."
        ).format(f"{rate.images:,}", duration(rate.seconds), printable(rate.device))
    return Markup("Its seconds of encoding are computed from the rate that was named.")


def _images(run: RunData, answers: Answers | str) -> Cost:
    here = float(run.cache["rows"])
    there = None if isinstance(answers, str) else float(answers.encodes_a_round * run.rounds_done)
    return Cost("Images encoded: once, or uncached", "", here, there)


def _seconds(run: RunData, images: Cost, rate: Rate | float | None) -> list[Cost]:
    costs = [Cost("Seconds of training, measured", "s", run.seconds.get("train"), None)]
    if rate and images.here and images.there:
        speed = rate.per_second if isinstance(rate, Rate) else rate
        name = f"Seconds of encoding, computed at {speed:,.0f} images/s: once, or uncached"
        costs.insert(0, Cost(name, "s", images.here / speed, images.there / speed))
    return costs


def _bytes(run: RunData) -> list[Cost]:
    sent = [fold.result.traffic for fold in run.folds if fold.result and fold.result.traffic]
    here = sum(one.up + one.down for one in sent)
    if not here:
        return []
    whole = [one.clip for one in sent]
    there = None if None in whole else float(sum(whole))
    return [Cost("Bytes up and down a round: adapters, or all of CLIP", "B", float(here), there)]


def _picture(images: Cost) -> Markup:
    if not (images.here and images.there):
        return Markup("")
    bars = [
        Bar("this run: every image once", "c0", images.here, _text(images.here, "")),
        Bar("uncached", "c1", images.there, _text(images.there, "")),
    ]
    text = "; ".join(f"{bar.name} {bar.text}" for bar in bars)
    return cards(figure("Images through CLIP", bar_chart("Images through CLIP", text, bars)))


def _text(value: float | None, unit: str) -> str:
    if value is None:
        return "\u2013"
    if unit == "s":
        return duration(value)
    if unit == "B":
        return f"{value / 1e6:,.2f} MB"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """14.3 s, 3 min 20 s, 7 h 18 min."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60:,} h {minutes % 60} min" if minutes >= 120 else f"{minutes} min {rest} s"
    )


def seconds_cell(seconds: float | None) -> Cell:
    """Seconds with two decimals; a dash for None."""
    return Cell("\u2013", "") if seconds is None else Cell(f"{seconds:.2f}", seconds)


def _ratio(cost: Cost) -> str:
    return f"{cost.there / cost.here:,.3g}x" if cost.here and cost.there else ""
