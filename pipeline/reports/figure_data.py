"""Runs and sweeps as the plain records that figures for papers are drawn from."""

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any, NamedTuple

from pipeline.errors import ConfigError
from pipeline.federation.evaluate import mean
from pipeline.json_files import content_of, word
from pipeline.reports.closed_form import Grid, maps_of
from pipeline.reports.data import Curve, FoldData, RunData, mean_curve
from pipeline.reports.figures import Band, Bar, Group, Picture, Point
from pipeline.reports.figures import bars as draw_bars
from pipeline.reports.figures import clients as draw_clients
from pipeline.reports.figures import maps as draw_maps
from pipeline.reports.figures import rounds as draw_rounds
from pipeline.reports.figures import sent as draw_sent
from pipeline.reports.spread import spread
from pipeline.reports.table_inputs import Tested, is_zero_shot, label_of, settings_of, value_word
from pipeline.reports.tables import ZERO_SHOT, Row, Table, build_table
from pipeline.reports.threads import in_order
from pipeline.reports.trials import SweepData, ranking

MOST = 24  # rows of a table that a figure has room for
LINES = 7  # by round
FIGURES = {
    "unseen": "Test accuracy, unseen domains (%)",
    "participants": "Test accuracy, participants (%)",
}


class Collected(NamedTuple):
    """Figures by the name of their files, and why some are left out."""

    pictures: dict[str, Picture]
    notes: list[str]


def collect(data: Sequence[object], folders: Sequence[str | PathLike[str]]) -> Collected:
    """All figures of these runs and sweeps; data: as page.read gives them, folders: where they lie.

    Raises ConfigError where there is nothing to draw.
    """
    runs = [one for one in data if isinstance(one, RunData)]
    sweeps = [one for one in data if isinstance(one, SweepData)]
    found: dict[str, Picture] = {}
    notes: list[str] = []
    if folders:
        try:
            found |= _of_table(build_table(folders, columns="summary"), notes)
        except ConfigError as error:
            notes.append(f"bars, clients and bytes are not drawn: {error}")
    found |= _of_rounds(runs, notes)
    for run in runs:
        for at, fold in enumerate(run.folds):
            if (
                fold.result
                and fold.result.closed_form
                and (grids := maps_of(fold.result.closed_form))
            ):
                chose = "Accuracy, rows that chose (%)"
                found[f"closed-form-{run.name}-{at}"] = Picture(draw_maps, (grids, chose))
    for sweep in sweeps:
        if len(sweep.varied) == 2 and (grid := _validation(sweep)):
            accuracy = "Validation accuracy (%)"
            found[f"validation-{sweep.name}"] = Picture(draw_maps, ([grid], accuracy))
    if not found:
        raise ConfigError(f"--figures: nothing to draw ({'; '.join(notes) or 'no run or sweep'})")
    return Collected(found, notes)


def _of_table(table: Table, notes: list[str]) -> dict[str, Picture]:
    """Bars, clients and bytes of each data set, by the rows of a table."""
    rows = [row for row in table.rows if row.settings]
    if len(rows) > MOST:
        notes.append(
            f"bars, clients and bytes are not drawn: {len(rows)} configurations, and a figure has "
            f"room for {MOST}"
        )
        return {}
    found: dict[str, Picture] = {}
    datasets = list(dict.fromkeys(column.dataset for column in table.columns))
    for at, dataset in enumerate(datasets):
        end = f"-{at}" if len(datasets) > 1 else ""
        figures = {c.figure: i for i, c in enumerate(table.columns) if c.dataset == dataset}
        figure = "unseen" if "unseen" in figures else "participants"
        column, what = figures[figure], FIGURES[figure]
        bars = [bar for row in rows if (bar := _bar(row, column))]
        start = _zero_shot(table, column)
        if bars:
            found[f"bars{end}"] = Picture(draw_bars, (bars, start, what))
        own = [t for t in table.read.tested if t.dataset == dataset and not is_zero_shot(t)]
        by_row = {row.label: [t for t in own if label_of(t, table.by) == row.label] for row in rows}
        if groups := [Group(name, values) for name, each in by_row.items()
                      if (values := _by_client(each))]:  # fmt: skip
            found[f"clients{end}"] = Picture(draw_clients, (groups,))
        points = [Point(bar.name, bytes, bar.mean, bar.std) for bar in bars
                  if (bytes := _sent(by_row[bar.name]))]  # fmt: skip
        if points:
            found[f"bytes{end}"] = Picture(draw_sent, (points, start, what))
    return found


def _bar(row: Row, column: int) -> Bar | None:
    cell = row.cells[column]
    return None if cell.mean is None else Bar(row.label, cell.mean, cell.std)


def _zero_shot(table: Table, column: int) -> float | None:
    """The one zero-shot row's mean; None where rows differ in it."""
    start = [row.cells[column].mean for row in table.rows
             if not row.settings and row.label == ZERO_SHOT]  # fmt: skip
    return start[0] if len(start) == 1 else None


def _by_client(tested: Iterable[Tested]) -> tuple[float, ...]:
    """Of each participant of each training the mean over seeds."""
    found: dict[tuple[str, str], list[float]] = {}
    for each in tested:
        for client, value in each.clients.items():
            found.setdefault((each.held_out, client), []).append(value)
    return tuple(sum(values) / len(values) for values in found.values())


def _sent(tested: Sequence[Tested]) -> float | None:
    """Bytes of a training, mean over trainings and seeds; None where one is unknown."""
    known = [each.sent for each in tested if each.sent is not None]
    return mean(known) if known and len(known) == len(tested) else None


def _of_rounds(runs: Sequence[RunData], notes: list[str]) -> dict[str, Picture]:
    """Accuracy by round: a line for each configuration, or for each fold of the only one."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        alike = {n: v for n, v in run.settings.items() if n != "seed"}
        groups.setdefault(word([run.cache.get("content_sha256"), alike]), []).append(run)
    parts = list(groups.values())
    facts = [_facts(own[0]) for own in parts]
    differ = [
        name
        for name in (facts[0] if facts else ())
        if len({word(fact[name]) for fact in facts if fact[name] is not None}) > 1
    ]
    lines: dict[str, list[FoldData]] = {}
    if len(parts) == 1 and 1 < len(parts[0][0].folds) <= LINES:
        for run in parts[0]:
            for fold in run.folds:
                lines.setdefault(f"{fold.name} held out", []).append(fold)
        trainings = {name: [[fold] for fold in folds] for name, folds in lines.items()}
    else:
        trainings = {
            ", ".join(value_word(fact[n]) for n in differ) or "adapter": [[*r.folds] for r in own]
            for fact, own in zip(facts, parts, strict=True)
        }
    found = {}
    for kind, what in (("validation", "Validation accuracy (%)"), ("test", FIGURES["unseen"])):
        bands = [b for n, seeds in trainings.items() if (b := _band(n, seeds, kind))]
        if kind == "test":
            held_out = all(fold.held_out for run in runs for fold in run.folds)
            what = what if held_out else "Test accuracy (%)"
        if len(bands) > LINES:
            notes.append(f"{kind} by round is not drawn: {len(bands)} lines are more than {LINES}")
        elif any(len(band.rounds) > 1 for band in bands):
            found[f"rounds-{kind}"] = Picture(draw_rounds, (bands, what))
    return found


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
    by_place: dict[tuple[str, str], list[float]] = {}
    for trial in sweep.trials:
        if trial.status == "done" and trial.val_accuracy is not None:
            at = word(trial.settings.get(down)), word(trial.settings.get(across))
            by_place.setdefault(at, []).append(trial.val_accuracy)
    if not by_place:
        return None
    y, x = (tuple(map(word, in_order([trial.settings.get(name) for trial in sweep.trials])))
            for name in (down, across))  # fmt: skip
    ranked = ranking(sweep)
    best = ranked[0].records[0].settings if ranked else None
    return Grid(
        "",
        across,
        down,
        x,
        y,
        tuple(tuple(spread(by_place.get((a, b), [])).mean for b in x) for a in y),
        (y.index(word(best.get(down))), x.index(word(best.get(across)))) if best else None,
    )
