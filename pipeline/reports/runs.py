"""Several runs side by side: the settings in which they differ, and what they reach."""

from collections.abc import Sequence

from pipeline.reports.charts.svg import Markup
from pipeline.reports.data import RunData
from pipeline.reports.render import render
from pipeline.reports.run import means_of
from pipeline.reports.trials import setting_heads, varied


def runs_part(runs: Sequence[RunData]) -> Markup:
    """A sortable table, a run a row; accuracies are means over its trainings."""
    settings = [
        run.settings | {"held_out": "; ".join(fold.name for fold in run.folds)} for run in runs
    ]
    names = varied(settings)
    return render(
        "runs.html",
        anchor="compared",
        rows=[(r, means_of(r), own) for r, own in zip(runs, settings, strict=True)],
        names=names,
        heads=setting_heads(names, settings),
        differ=len({str(run.cache.get("content_sha256")) for run in runs}) > 1,
    )
