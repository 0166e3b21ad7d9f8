"""Runs and sweeps -> a table of test accuracies: rows are settings, columns data set x domain."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

from pipeline.errors import ConfigError
from pipeline.federation.evaluate import mean
from pipeline.federation.methods import METHODS
from pipeline.frames import Records
from pipeline.groups import by_key
from pipeline.reports.data import ACCURACIES
from pipeline.reports.spread import interval, spread
from pipeline.reports.table_inputs import Read, Tested, is_zero_shot, label_of, read_tested
from pipeline.runs.notes import few
from pipeline.sweeps.trials import has_own_adapters

ZERO_SHOT = "zero-shot"
COLUMNS = ("domains", "summary")
SHOWN = 10
"""Rows and names that a message lists."""
NOT_ROWS = {
    "seed": "cells are means over seeds",
    "held_out": "held-out domains are columns",
    "dataset": "data sets are columns",
}


@dataclass(frozen=True)
class Column:
    """What a column shows: the mean of its parts, which a seed must have all of."""

    dataset: str
    name: str
    figure: str  # unseen, participants or overall
    parts: tuple[tuple[str, str, str], ...]  # data set, held-out domains, figure


@dataclass(frozen=True)
class Cell:
    """Over seeds: fractions. None for what too few seeds do not have.

    place       1 for the best mean of its column, 2 for the second; equal means share one; rows
                with own adapters are placed among themselves
    difference  mean over `pairs` seeds of this row less the named one, low..high its t-interval
    """

    seeds: tuple[int, ...]
    mean: float | None
    std: float | None
    place: int | None = None
    pairs: int = 0
    difference: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One row: its settings by name, none of the zero-shot row, and a cell a column."""

    label: str
    settings: dict[str, Any]
    cells: tuple[Cell, ...]
    own_adapters: bool = False  # each client is answered by its own: placed among such rows

    @property
    def seeds(self) -> tuple[int, ...]:
        """All that any of its cells has."""
        return tuple(sorted({seed for cell in self.cells for seed in cell.seeds}))


@dataclass(frozen=True)
class Table:
    """A table, and what was read for it; pipeline/reports/table_words.py has its sentences.

    best_by  settings for each of whose values a sweep's best was chosen; None: all are shown
    """

    by: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    against: str | None
    best_by: tuple[str, ...] | None
    read: Read

    @property
    def is_marked(self) -> bool:
        """Whether any column has a best."""
        return any(cell.place for row in self.rows for cell in row.cells)


Values = dict[tuple[str, str, str], dict[int, float]]
"""By data set, held-out domains and figure: by seed the accuracy."""


@dataclass
class _Group:
    """The trainings of a row, and zero-shot CLIP on the same rows of the data sets."""

    label: str
    settings: dict[str, Any]
    own_adapters: bool = False
    values: Values = field(default_factory=dict)
    zero_shot: Values = field(default_factory=dict)


def records(
    paths: Sequence[str | PathLike[str]],
    *,
    by: Sequence[str] = (),
    columns: str = "domains",
    best: bool = False,
    against: str | None = None,
) -> Records:
    """The cells of `build_table` as flat objects; their to_frame() is a pandas.DataFrame.

    One for each row and column: the settings of `by`; row, dataset, column, figure (unseen,
    participants, overall); seeds ("0 1 2"), n, mean and std (fractions, of test accuracy), place
    (1 best, 2 second of the column); with `against` also against, pairs, difference, low, high.
    Raises as build_table does.
    """
    return records_of(build_table(paths, by=by, columns=columns, best=best, against=against))


def build_table(
    paths: Sequence[str | PathLike[str]],
    *,
    by: Sequence[str] = (),
    columns: str = "domains",
    best: bool = False,
    against: str | None = None,
) -> Table:
    """Test accuracies of finished runs and trials, mean and sample std over seeds.

    paths    run folders, sweep folders, and folders of these
    by       settings that make a row; (): all that differ, or the method where none does
    columns  "domains": accuracy on each held-out domain, and their mean; "summary": unseen,
             participants and overall, means over the held-out domains' trainings
    best     of each sweep only the configuration of the best validation accuracy, or with `by` one
             for each row
    against  a row's label, or "zero-shot": differences from it, paired by seed, d_1 .. d_n with
             mean d and sample std s, and the interval d +- t(n - 1) s / sqrt(n) of LEVEL

    Raises ConfigError, in one line, for paths that are neither, where nothing has finished, for
    settings that differ and are not in `by`, and for two results of one configuration and seed.
    """
    if columns not in COLUMNS:
        raise ConfigError(f"columns {columns!r} is unknown; there are {', '.join(COLUMNS)}")
    named = _named(by)
    best_by = named if best else None
    read = read_tested(paths, best_by=best_by)
    trained = [each for each in read.tested if not is_zero_shot(each)]
    rows_by = named or varied(trained) or ("method",)
    _refuse_mixed(trained, rows_by, best)
    groups = _groups(trained, rows_by)
    start = _zero_shot_groups(groups, [*filter(is_zero_shot, read.tested)])
    every = [*start, *groups]
    shown = (_domains if columns == "domains" else _summary)([group.values for group in every])
    if against is not None:
        against = _named_row(every, against)
    references = _references(every, against)
    rows = [_row(g, shown, reference) for g, reference in zip(every, references, strict=True)]
    placed = tuple(_with_places(rows, len(shown)))
    return Table(rows_by, tuple(shown), placed, against, best_by, read)


def records_of(table: Table) -> Records:
    """See `records`."""
    found = Records()
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            one = {
                **{name: row.settings.get(name) for name in table.by},
                "row": row.label,
                "dataset": column.dataset,
                "column": column.name,
                "figure": column.figure,
                "seeds": " ".join(map(str, cell.seeds)),
                "n": len(cell.seeds),
                **{name: getattr(cell, name) for name in ("mean", "std", "place")},
            }
            if table.against is not None:
                compared = ("pairs", "difference", "low", "high")
                one |= {"against": table.against, **{n: getattr(cell, n) for n in compared}}
            found.append(one)
    return found


def varied(trained: Sequence[Tested]) -> tuple[str, ...]:
    """Settings with more than one value; a setting that plays no part (None) has none."""
    names = trained[0].settings if trained else ()
    return tuple(
        name
        for name in names
        if len({_key(e.settings[name]) for e in trained if e.settings[name] is not None}) > 1
    )


def _key(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _named(by: Sequence[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().replace("-", "_") for name in by))
    for name in names:
        if name in NOT_ROWS:
            raise ConfigError(f"--by {name}: {NOT_ROWS[name]}; name another setting")
    return names


def _refuse_mixed(trained: Sequence[Tested], by: Sequence[str], best: bool) -> None:
    """ConfigError for an unknown --by, or one that leaves out settings that differ."""
    known = trained[0].settings if trained else {}
    differ = varied(trained)
    unknown = [name for name in by if known and name not in known]
    if unknown:
        raise ConfigError(
            f"--by {unknown[0]!r}: no such setting; these differ here: "
            f"{', '.join(differ) or 'none'}"
        )
    if best:  # a configuration was chosen for each row: only within a row none may differ
        parts = by_key((_key([e.dataset, *(e.settings[n] for n in by)]), e) for e in trained)
        differ = tuple(dict.fromkeys(name for part in parts.values() for name in varied(part)))
    mixed = [name for name in differ if name not in by]
    if mixed:
        raise ConfigError(
            f"--by {','.join(by)}: the inputs also differ in {', '.join(mixed)}; add "
            f"{'it' if len(mixed) == 1 else 'them'} to --by, or leave --by out for a row each"
        )


def _groups(trained: Sequence[Tested], by: Sequence[str]) -> list[_Group]:
    """The rows, methods in the order of the settings, numbers by size, words by letter."""
    groups: dict[str, _Group] = {}
    seen: dict[tuple[str, str, str, int], Tested] = {}
    for each in trained:
        settings = {name: each.settings[name] for name in by}
        key = _key(settings)
        label = label_of(each, by)
        group = groups.setdefault(key, _Group(label, settings, has_own_adapters(each.settings)))
        first = seen.setdefault((key, each.dataset, each.held_out, each.seed), each)
        if first.accuracy != each.accuracy:
            raise ConfigError(
                f"{first.source} and {each.source} have different accuracies of one configuration "
                f"and seed {each.seed} (row {label}, {each.held_out} held out): they differ in "
                "backend, device or first adapter; name one of them"
            )
        _add(group.values, each, each.accuracy)
        _add(group.zero_shot, each, each.zero_shot)
    return sorted(groups.values(), key=lambda group: [*map(_rank, group.settings.values())])


def _add(values: Values, each: Tested, figures: Mapping[str, float | None]) -> None:
    for figure, value in figures.items():
        if value is not None:
            by_seed = values.setdefault((each.dataset, each.held_out, figure), {})
            by_seed[each.seed] = value


def _rank(value: object) -> tuple[int, float, str]:
    if isinstance(value, str):
        names = list(METHODS)
        return (2, names.index(value) if value in names else len(names), value)
    return (0, 0.0, "") if value is None else (1, float(value), "")  # type: ignore[arg-type]


def _zero_shot_groups(groups: Sequence[_Group], alone: Sequence[Tested]) -> list[_Group]:
    """One zero-shot row; one for each row where these differ, as other splits or models make them.

    alone  runs of method zero-shot
    """
    own = _Group(ZERO_SHOT, {})
    for each in alone:
        _add(own.values, each, each.accuracy)
    parts = [*(group.zero_shot for group in groups), own.values]
    joined: Values = {}
    for part in parts:
        for key, by_seed in part.items():
            there = joined.setdefault(key, {})
            if any(there.setdefault(seed, value) != value for seed, value in by_seed.items()):
                found = [
                    _Group(f"{ZERO_SHOT} of {g.label}", {}, False, g.zero_shot) for g in groups
                ]
                return [group for group in [own, *found] if group.values]
    return [replace(own, values=joined)] if joined else []


def _domains(rows: Sequence[Values]) -> list[Column]:
    """A column for each held-out fold, then their mean; participants where nothing is held out."""
    found = []
    for dataset in _datasets(rows):
        folds = sorted({key[1] for row in rows for key in row if key[0] == dataset})
        unseen = [
            Column(dataset, fold, "unseen", ((dataset, fold, "unseen"),)) for fold in folds if fold
        ]
        found += unseen
        if len(unseen) > 1:
            parts = tuple(part for column in unseen for part in column.parts)
            name = "mean" if "mean" not in folds else "(mean)"
            found.append(Column(dataset, name, "unseen", parts))
        if "" in folds:
            alone = ((dataset, "", "participants"),)
            found.append(Column(dataset, "none", "participants", alone))
    return found


def _summary(rows: Sequence[Values]) -> list[Column]:
    found = []
    for dataset in _datasets(rows):
        keys = sorted({key for row in rows for key in row if key[0] == dataset})
        for figure in ACCURACIES:
            parts = tuple(key for key in keys if key[2] == figure)
            if parts:
                found.append(Column(dataset, figure, figure, parts))
    return found


def _datasets(rows: Sequence[Values]) -> list[str]:
    return sorted({key[0] for row in rows for key in row})


def _by_seed(values: Values, column: Column) -> dict[int, float]:
    """The column's figure of each seed that has all its parts."""
    parts = [values.get(part, {}) for part in column.parts]
    seeds = sorted(set.intersection(*(set(part) for part in parts)))
    return {s: m for s in seeds if (m := mean([part[s] for part in parts])) is not None}


def _row(group: _Group, columns: Sequence[Column], reference: Values) -> Row:
    """The group's cells; reference: values of the row to compare with, {} for none."""
    cells = []
    for column in columns:
        own, other = _by_seed(group.values, column), _by_seed(reference, column)
        pairs = [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]
        low, high = interval(pairs) or (None, None)
        mean, std = spread(list(own.values()))
        cells.append(Cell(tuple(own), mean, std, None, len(pairs), spread(pairs).mean, low, high))
    return Row(group.label, group.settings, tuple(cells), group.own_adapters)


def _named_row(groups: Sequence[_Group], against: str) -> str:
    """The label that was meant; ConfigError where no row, or several, have it."""
    labels = [group.label for group in groups]
    named = [name for name in labels if name.replace(", ", ",") == against.replace(", ", ",")]
    if len(named) == 1 or against == ZERO_SHOT:
        return named[0] if named else against
    raise ConfigError(
        f"--against {against!r}: {len(named) or 'no'} rows have this name; the rows are "
        f"{few([*map(repr, labels)], SHOWN)}"
    )


def _references(groups: Sequence[_Group], against: str | None) -> list[Values]:
    """What each row is compared with: the named row; of zero-shot each row's own."""
    named = next((group.values for group in groups if group.label == against), {})
    return [
        {} if against is None or group.label == against
        else group.zero_shot if against == ZERO_SHOT else named
        for group in groups
    ]  # fmt: skip


def _with_places(rows: Sequence[Row], columns: int) -> list[Row]:
    """The rows with the best and the second of each column of several known means.

    One adapter for all and one for each client are two measures, each with places of its own.
    """
    cells = [list(row.cells) for row in rows]
    for own, at in itertools.product((False, True), range(columns)):
        mine = [each for each, row in zip(cells, rows, strict=True) if row.own_adapters is own]
        # Means that differ by the rounding of their sums are equal.
        means = [None if (m := each[at].mean) is None else round(m, 12) for each in mine]
        best = sorted({m for m in means if m is not None}, reverse=True)[:2]
        if sum(m is not None for m in means) > 1:
            for each, m in zip(mine, means, strict=True):
                if m in best:
                    each[at] = replace(each[at], place=1 + best.index(m))
    return [replace(row, cells=tuple(own)) for row, own in zip(rows, cells, strict=True)]
