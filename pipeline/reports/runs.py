"""Several runs beside each other: the settings in which they differ, and what they reach."""

from collections.abc import Sequence

from pipeline.reports.charts.svg import Markup
from pipeline.reports.costs import seconds_cell
from pipeline.reports.data import ACCURACIES, RunData
from pipeline.reports.parts import Cell, accuracy, gain, section, setting, table
from pipeline.reports.run import mean_of
from pipeline.reports.trials import varied


def runs_part(runs: Sequence[RunData]) -> Markup:
    """A sortable table, a run a row; accuracies are means over its trainings."""
    names = varied([run.settings for run in runs])
    heads = ["run", "finished"]
    for which in ACCURACIES:
        heads += [which, "gain"]
    heads += ["seconds", *names]
    rows = []
    for run in runs:
        cells = [Cell(run.name, None, "word name")]
        cells.append(Cell("yes" if run.finished else "no"))
        for which in ACCURACIES:
            value, start = mean_of(run, which), mean_of(run, which, start=True)
            cells += [accuracy(value), gain(value, start)]
        cells.append(seconds_cell(run.seconds.get("train")))
        rows.append([*cells, *(setting(run.settings.get(name)) for name in names)])
    different = {str(run.cache.get("content_sha256")) for run in runs}
    lead = "Mean accuracies over held-out domains, in %; gain: points above zero-shot CLIP."
    if len(different) > 1:
        lead += " These runs read different features: their numbers do not compare."
    return section("Runs compared", lead, table("Runs", heads, rows), level="h2")
