"""What is said above and below a table: of which data, selected by which figures, paired how."""

from collections.abc import Iterator, Sequence

from pipeline.federation.methods import METHODS
from pipeline.groups import by_key
from pipeline.reports.data import ACCURACIES
from pipeline.reports.spread import LEVEL
from pipeline.reports.table_inputs import is_zero_shot, label_of
from pipeline.reports.tables import SHOWN, Row, Table
from pipeline.runs.results import CHOSEN_BY


def head(table: Table) -> tuple[str, ...]:
    """What the figures are, of which data, and what was selected by which figures."""
    tested = table.read.tested
    models = sorted({str(each.settings["model"]) for each in tested})
    seeds = ", ".join(map(str, sorted({each.seed for each in tested})))
    unseen = any(column.figure == "unseen" for column in table.columns)
    what = "; unseen: domains that no client trains on" if unseen else ""
    if any(column.figure == "participants" and column.name == "none" for column in table.columns):
        what += "; none: no domain is held out, so participants' accuracy"
    chosen = sorted({str(e.settings["choose"]) for e in tested if e.settings["choose"]})
    rounds = " / ".join(CHOSEN_BY.get(name, name) for name in chosen) or "nothing is trained"
    chose = "configurations: none, all are shown"
    if table.best_by is not None:
        each = f" and {', '.join(table.best_by)}" if table.best_by else ""
        chose = f"configurations: of each sweep{each} the best by validation"
    return (
        f"Test accuracy in %, mean \u00b1 sample standard deviation over seeds{what}.",
        f"Data: {', '.join(dict.fromkeys(c.dataset for c in table.columns))}; model: "
        f"{', '.join(models)}; seeds: {seeds}.",
        f"Selected: rounds: {rounds}; {chose}. Test accuracy selected nothing.",
    )


def foot(table: Table) -> Iterator[str]:
    """What the marks and differences mean, and which rows are not measured as the others are."""
    if table.is_marked:
        yield "The best and the second mean of a column are marked: compared, not selected."
    yield from _unequal_seeds(table.rows)
    yield from _equal_rows(table)
    if left_out := table.read.left_out:
        yield f"Left out: {left_out} runs or trials that did not finish; means are over the others."
    methods = {str(e.settings["method"]) for e in table.read.tested if not is_zero_shot(e)}
    own = sorted(n for n in methods if n in METHODS and METHODS[n].personal)
    if own and len(methods) > len(own):
        yield (
            f"{', '.join(own)}: each client's own adapter answers that client's rows, and all of "
            "them held-out rows; other methods have one adapter. The two kinds are marked apart."
        )
    if table.against is not None:
        yield (
            f"Differences from {table.against}: percentage points, paired by seed, with the "
            f"{LEVEL:.0%} t-interval."
        )


def _equal_rows(table: Table) -> Iterator[str]:
    """A sentence on rows whose trainings all reach the same accuracies, if there are such."""
    rows = by_key(
        (label_of(each, table.by), (
            each.dataset, each.held_out, each.seed, *(each.accuracy.get(n) for n in ACCURACIES)
        ))
        for each in table.read.tested
        if not is_zero_shot(each)
    )  # fmt: skip
    groups = by_key((frozenset(trainings), label) for label, trainings in rows.items())
    same = [" = ".join(labels) for labels in groups.values() if len(labels) > 1]
    if same:
        yield (
            "The same accuracies (unseen, participants, overall) in every training: "
            f"{_first(same)}. What these rows differ in changes nothing here."
        )


def _unequal_seeds(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence where rows, or columns of a row, have not the same seeds."""
    fewest = {row.label: min((cell.seeds for cell in row.cells), key=len) for row in rows}
    most = max((cell.seeds for row in rows for cell in row.cells), key=len)
    odd = [
        f"{label} ({', '.join(map(str, seeds)) or 'none'})"
        for label, seeds in fewest.items()
        if seeds != most
    ]
    if odd:
        yield f"Unequal seeds: not {', '.join(map(str, most))} in all columns: {_first(odd)}."


def _first(said: Sequence[str]) -> str:
    more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return f"{'; '.join(said[:SHOWN])}{more}"
