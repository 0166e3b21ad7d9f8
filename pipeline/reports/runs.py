"""Several runs side by side: the settings in which they differ, and what they reach."""

from collections.abc import Sequence

from pipeline.reports.charts.svg import Markup
from pipeline.reports.data import RunData
from pipeline.reports.render import render
from pipeline.reports.run import means_of
from pipeline.reports.trials import setting_heads, varied


def runs_part(runs: Sequence[RunData]) -> Markup:
    """A sortable table, a run a row; accuracies are means over its trainings."""
    names = varied([run.settings for run in runs])
    return render(
        "runs.html",
        anchor="compared",
        rows=[(run, means_of(run)) for run in runs],
        names=names,
        heads=setting_heads(names, [run.settings for run in runs]),
        differ=len({str(run.cache.get("content_sha256")) for run in runs}) > 1,
    )
