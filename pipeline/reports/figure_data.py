"""Runs and sweeps as the plain records that figures for papers are drawn from."""

from collections.abc import Iterable, Sequence
from functools import partial
from os import PathLike
from typing import Any

from pipeline.errors import ConfigError
from pipeline.federation.evaluate import mean_of_all
from pipeline.groups import by_key
from pipeline.json_files import content_of, word
from pipeline.reports import figures as draw
from pipeline.reports.charts.heat import Grid
from pipeline.reports.closed_form import maps_of
from pipeline.reports.data import Curve, FoldData, RunData, mean_curve
from pipeline.reports.figures import Band, Bar, Picture
from pipeline.reports.spread import spread
from pipeline.reports.sweep_figures import in_order
from pipeline.reports.table_inputs import Tested, is_zero_shot, label_of, settings_of, value_word
from pipeline.reports.tables import ZERO_SHOT, Table, build_table
from pipeline.reports.trials import SweepData, ranking

MOST = 24  # rows of a table that a figure has room for
LINES = 7  # by round
FIGURES = {
    "unseen": "Test accuracy, unseen domains (%)",
    "participants": "Test accuracy, participants (%)",
}


Pictures = dict[str, Picture]
"""By the name of their files."""


def collect(
    data: Sequence[object], folders: Sequence[str | PathLike[str]]
) -> tuple[Pictures, list[str]]:
    """All figures of these runs and sweeps, and why some are left out.

    data     as page.read gives them;  folders  where they lie

    Raises ConfigError where there is nothing to draw.
    """
    runs = [one for one in data if isinstance(one, RunData)]
    sweeps = [one for one in data if isinstance(one, SweepData)]
    found: Pictures = {}
    notes: list[str] = []
    if folders:
        try:
            found |= _of_table(build_table(folders, columns="summary"), notes)
        except ConfigError as error:
            notes.append(f"bars, clients and bytes are not drawn: {error}")
    found |= _of_rounds(runs, notes)
    for run in runs:
        for at, fold in enumerate(run.folds):
            head = fold.result and fold.result.closed_form
            if head and (grids := maps_of(head)):
                found[f"closed-form-{run.name}-{at}"] = partial(
                    draw.maps, grids=grids, what="Accuracy, rows that chose (%)"
                )
    for sweep in sweeps:
        if len(sweep.varied) == 2 and (grid := _validation(sweep)):
            found[f"validation-{sweep.name}"] = partial(
                draw.maps, grids=[grid], what="Validation accuracy (%)"
            )
    if not found:
        raise ConfigError(f"--figures: nothing to draw ({'; '.join(notes) or 'no run or sweep'})")
    return found, notes


def _of_table(table: Table, notes: list[str]) -> Pictures:
    """Bars, clients and bytes of each data set, by the rows of a table."""
    rows = [row for row in table.rows if row.settings]
    if len(rows) > MOST:
        notes.append(
            f"bars, clients and bytes are not drawn: {len(rows)} configurations, and a figure has "
            f"room for {MOST}"
        )
        return {}
    found: Pictures = {}
    datasets = list(dict.fromkeys(column.dataset for column in table.columns))
    for at, dataset in enumerate(datasets):
        end = f"-{at}" if len(datasets) > 1 else ""
        figures = {c.figure: i for i, c in enumerate(table.columns) if c.dataset == dataset}
        figure = "unseen" if "unseen" in figures else "participants"
        column, what = figures[figure], FIGURES[figure]
        bars = [Bar(row.label, cell.mean, cell.std) for row in rows
                if (cell := row.cells[column]).mean is not None]  # fmt: skip
        start = _zero_shot(table, column)
        if bars:
            found[f"bars{end}"] = partial(draw.bars, rows=bars, zero_shot=start, what=what)
        own = [t for t in table.read.tested if t.dataset == dataset and not is_zero_shot(t)]
        by_row = {row.label: [t for t in own if label_of(t, table.by) == row.label] for row in rows}
        if groups := {n: values for n, each in by_row.items() if (values := _by_client(each))}:
            found[f"clients{end}"] = partial(draw.clients, groups=groups)
        if points := [(bytes, bar) for bar in bars if (bytes := _sent(by_row[bar.name]))]:
            found[f"bytes{end}"] = partial(draw.sent, points=points, zero_shot=start, what=what)
    return found


def _zero_shot(table: Table, column: int) -> float | None:
    """The one zero-shot row's mean; None where rows differ in it."""
    start = [row.cells[column].mean for row in table.rows
             if not row.settings and row.label == ZERO_SHOT]  # fmt: skip
    return start[0] if len(start) == 1 else None


def _by_client(tested: Iterable[Tested]) -> tuple[float, ...]:
    """Of each participant of each training the mean over seeds."""
    found = by_key(
        ((each.held_out, client), value)
        for each in tested
        for client, value in each.clients.items()
    )
    return tuple(sum(values) / len(values) for values in found.values())


def _sent(tested: Sequence[Tested]) -> float | None:
    """Bytes of a training, mean over trainings and seeds; None where one is unknown."""
    return mean_of_all(each.sent for each in tested)


def _of_rounds(runs: Sequence[RunData], notes: list[str]) -> Pictures:
    """Accuracy by round: a line for each configuration, or for each fold of the only one."""
    parts = [*by_key((_apart_from_seed(run), run) for run in runs).values()]
    facts = [_facts(own[0]) for own in parts]
    differ = [
        name
        for name in (facts[0] if facts else ())
        if len({word(fact[name]) for fact in facts if fact[name] is not None}) > 1
    ]
    if len(parts) == 1 and 1 < len(parts[0][0].folds) <= LINES:
        trainings = by_key((f"{f.name} held out", [f]) for run in parts[0] for f in run.folds)
    else:
        trainings = {
            ", ".join(value_word(fact[n]) for n in differ) or "adapter": [[*r.folds] for r in own]
            for fact, own in zip(facts, parts, strict=True)
        }
    found: Pictures = {}
    for kind, what in (("validation", "Validation accuracy (%)"), ("test", FIGURES["unseen"])):
        bands = [b for n, seeds in trainings.items() if (b := _band(n, seeds, kind))]
        if kind == "test":
            held_out = all(fold.held_out for run in runs for fold in run.folds)
            what = what if held_out else "Test accuracy (%)"
        if len(bands) > LINES:
            notes.append(f"{kind} by round is not drawn: {len(bands)} lines are more than {LINES}")
        elif any(len(band.rounds) > 1 for band in bands):
            found[f"rounds-{kind}"] = partial(draw.rounds, bands=bands, what=what)
    return found


def _apart_from_seed(run: RunData) -> str:
    """The same for runs that differ in their seed only."""
    alike = {name: value for name, value in run.settings.items() if name != "seed"}
    return word([run.cache.get("content_sha256"), alike])


def _facts(run: RunData) -> dict[str, Any]:
    """What a configuration is called by: the settings that rows of tables have, and the data."""
    with content_of(run.folder / "config.json"):
        settings = settings_of(run.settings)[1]
    held_out = "; ".join(fold.name for fold in run.folds)
    data = f"{run.cache.get('dataset')} {str(run.cache.get('content_sha256'))[:6]}"
    return {"data": data, "held_out": held_out, **settings}


def _band(name: str, seeds: Sequence[Sequence[FoldData]], kind: str) -> Band | None:
    """Mean and standard deviation over seeds of each round that all have; None for no round."""
    curves = [_by_round(folds, kind) for folds in seeds]
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if not shared:
        return None
    ends = [spread([curve[round] for curve in curves]) for round in shared]
    return Band(name, tuple(shared), tuple(e.mean or 0.0 for e in ends), tuple(e.std for e in ends))


def _by_round(folds: Sequence[FoldData], kind: str) -> dict[int, float]:
    """Mean over folds, of the mean over clients (validation) or over held-out domains (test)."""
    means = []
    for fold in folds:
        curves: dict[str, Curve] = getattr(fold, kind)
        own = [c for n, c in curves.items() if n in fold.held_out] if kind == "test" else []
        means.append(mean_curve(own or [*curves.values()]))
    found = mean_curve(means)
    return {round: value or 0.0 for round, value in zip(found.rounds, found.values, strict=True)}


def _validation(sweep: SweepData) -> Grid | None:
    """Mean validation accuracy over seeds, by the two settings that vary."""
    down, across = sweep.varied
    by_place = by_key(
        ((word(trial.settings.get(down)), word(trial.settings.get(across))), value)
        for trial, value in sweep.scored
    )
    if not by_place:
        return None
    y, x = (tuple(map(word, in_order([trial.settings.get(name) for trial in sweep.trials])))
            for name in (down, across))  # fmt: skip
    ranked = ranking(sweep)
    best = ranked[0].records[0].settings if ranked else None
    means = tuple(tuple(spread(by_place.get((a, b), [])).mean for b in x) for a in y)
    marked = (y.index(word(best.get(down))), x.index(word(best.get(across)))) if best else None
    return Grid("", across, down, x, y, means, marked)
