"""A sweep's trials by round: the best in colours, the others in grey, or as median and band."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.groups import by_key
from pipeline.json_files import word
from pipeline.reports.charts.lines import Band, Line, line_chart
from pipeline.reports.charts.svg import Level, colour, number, percent, short, span
from pipeline.reports.data import Curve
from pipeline.reports.render import Figure, Key
from pipeline.reports.spread import tenths
from pipeline.reports.trials import SweepData, Trial, curve_of, ranking
from pipeline.sweeps.trials import configuration_id

BEST = 5  # configurations with a colour
GREY = 60  # configurations drawn one by one; of more the median and a band
ENDS = 4  # rounds at which halving cut, that are named
FEW = 10  # configurations in a round, for a median of them
LETTERS = 80  # of a configuration in the legend
LEAST = 0.01  # of accuracy, that an axis spans


class Drawn(NamedTuple):
    """A configuration: its trials, what it is called, its mean curve, and its place if ranked."""

    trials: tuple[Trial, ...]
    name: str
    curve: Curve
    place: int | None

    @property
    def line(self) -> Line:
        """Its line, in a colour if it is among the best; the best of all in bold."""
        best = self.place is not None and self.place < BEST
        style = colour(self.place or 0) if best else "rest"
        return Line(
            self.name, f"{style} bold" if self.place == 0 else style,
            self.curve.rounds, self.curve.values,
        )  # fmt: skip


def trial_curves(sweep: SweepData, zero_shot: float | None) -> list[Figure]:
    """Validation accuracy by round, and the loss where rounds are chosen by it.

    A line is a configuration: the mean over its seeds, in the rounds that all of them reached.
    None for sweeps of older versions, which kept no curves, and where none has two rounds.
    """
    ranked = [configuration_id(each.records[0].settings) for each in ranking(sweep)]
    places = {id: at for at, id in enumerate(ranked)}
    groups = by_key((configuration_id(t.settings), t) for t in sweep.trials if t.curves)
    found = []
    for kind, what in (("val_accuracy", "Validation accuracy"), ("val_loss", "Validation loss")):
        drawn = [
            Drawn(tuple(own), _called(own, sweep.varied), curve, places.get(id))
            for id, own in groups.items()
            if (curve := curve_of(own, kind))
        ]
        if any(len(each.curve.rounds) > 1 for each in drawn):
            level = zero_shot if kind == "val_accuracy" else None
            found.append(_figure(f"{what} by round", drawn, level, kind == "val_accuracy"))
    return found


def _figure(
    title: str, drawn: Sequence[Drawn], zero_shot: float | None, is_fraction: bool
) -> Figure:
    best = sorted((d for d in drawn if d.place is not None and d.place < BEST),
                  key=lambda each: -(each.place or 0))  # fmt: skip
    others = [each for each in drawn if each not in best]
    many = len(others) > GREY
    limits = _limits(drawn, best, [] if zero_shot is None else [zero_shot])
    bands, lines = _many(drawn, limits) if many else ([], [each.line for each in others])
    lines += [_end(each) for each in ([] if many else others) if _early([each])]
    lines += [each.line for each in best]  # the best of all last, on top
    levels = [] if zero_shot is None else [Level("zero-shot CLIP", "strong", zero_shot)]
    write = (lambda v: percent(v, 1)) if is_fraction else number
    picture = line_chart(
        title, f"{len(drawn)} configurations by round", lines,
        levels, value_text=write, limits=limits,
        last_round=max(each.curve.rounds[-1] for each in drawn), bands=bands,
    )  # fmt: skip
    keys = [Key(each.name, each.line.style, "line") for each in reversed(best)]
    if many:
        keys += [Key("median", "strong", "line"), Key("80 % of all", "rest", "band")]
    elif others:
        keys.append(Key(f"{len(others)} more" if best else "configurations", "rest", "line"))
    keys += [Key("zero-shot", "strong", "level")] * (zero_shot is not None)
    far = sum(
        not limits[0] <= v <= limits[1] for d in drawn for v in d.curve.values[-1:] if v is not None
    )
    said = f"A line is one of {len(drawn)} configurations; hover over it to see which."
    if many:
        said = f"Lines: the best {len(best)} of {len(drawn)} configurations; median and band: all, "
        said += f"as long as {FEW} train."
    notes = [said, *_early(drawn)]
    notes += [f"{far} end outside the axis, which spans the best and the median."] * (far > 0)
    return Figure(title, picture, keys, " ".join(notes))


def _limits(
    drawn: Sequence[Drawn], best: Sequence[Drawn], more: Sequence[float]
) -> tuple[float, float]:
    """What the best and the median of all need: bad trials would flatten the rest."""
    every = sorted(v for each in drawn for v in each.curve.values if v is not None)
    shown = [v for each in best for v in each.curve.values if v is not None]
    return span([*shown, every[len(every) // 2], *more], least=LEAST)


def _many(drawn: Sequence[Drawn], limits: tuple[float, float]) -> tuple[list[Band], list[Line]]:
    """Median and the middle 80 % of those that reached each round, between kept rounds linear."""
    there = Counter(round for each in drawn for round in each.curve.rounds)
    rounds = sorted(round for round, count in there.items() if count >= FEW)
    curves = np.array([
        np.interp(
            rounds, each.curve.rounds, np.array(each.curve.values, float), left=np.nan, right=np.nan
        )
        for each in drawn
    ])  # fmt: skip
    found = [tenths([v for v in column if not np.isnan(v)]) for column in curves.T.tolist()]
    ends = [(max(low, limits[0]), min(high, limits[1])) for low, _, high in found]
    band = Band("80 % of all", "rest", rounds, ends)
    return [band], [Line("median", "strong", rounds, [middle for _, middle, _ in found])]


def _end(each: Drawn) -> Line:
    """A dot where a line ends early."""
    said = f"{each.name}: {_early([each])[0]}"
    return Line(said, "rest", each.curve.rounds[-1:], each.curve.values[-1:])


def _early(drawn: Sequence[Drawn]) -> list[str]:
    """Why lines end before the others: a sentence; or []."""
    cut = Counter(max(t.rounds or 0 for t in each.trials) for each in drawn
                  if any(trial.status == "pruned" for trial in each.trials))  # fmt: skip
    died = sum(any(trial.status == "diverged" for trial in each.trials) for each in drawn)
    said = [f"{count:,} after {rounds:,}" for rounds, count in sorted(cut.items())[:ENDS]]
    more = sum(count for _, count in sorted(cut.items())[ENDS:])
    said += [f"{more:,} later"] if more else []
    parts = [f"cut by halving: {', '.join(said)} rounds"] if said else []
    parts += [f"diverged: {died:,}"] if died else []
    return [f"Ended early: {'; '.join(parts)}."] if parts else []


def _called(trials: Sequence[Trial], varied: Sequence[str]) -> str:
    """Its trials and settings, in one line."""
    numbers = ", ".join(str(trial.number) for trial in trials)
    settings = ", ".join(f"{n} {word(trials[0].settings.get(n))}" for n in varied)
    return short(f"trial{'s' * (len(trials) > 1)} {numbers}: {settings}", LETTERS)
