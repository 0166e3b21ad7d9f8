"""Several runs side by side: the settings in which they differ, and what they reach."""

from collections.abc import Sequence

from pipeline.reports.charts.svg import Markup
from pipeline.reports.data import ACCURACIES, RunData
from pipeline.reports.render import render
from pipeline.reports.run import mean_of
from pipeline.reports.trials import setting_heads, varied


def runs_part(runs: Sequence[RunData]) -> Markup:
    """A sortable table, a run a row; accuracies are means over its trainings."""
    names = varied([run.settings for run in runs])
    means = [
        [(mean_of(run, which), mean_of(run, which, start=True)) for which in ACCURACIES]
        for run in runs
    ]
    return render(
        "runs.html",
        anchor="compared",
        rows=list(zip(runs, means, strict=True)),
        names=names,
        heads=setting_heads(names, [run.settings for run in runs]),
        differ=len({str(run.cache.get("content_sha256")) for run in runs}) > 1,
    )
