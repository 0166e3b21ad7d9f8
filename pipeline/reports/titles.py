"""How pages call a run or a sweep."""

from pipeline.reports.data import RunData
from pipeline.reports.trials import SweepData
from pipeline.runs.notes import few

UNNAMED = "imported features"  # of caches of older versions that have no name of a data set


def title_of(one: RunData | SweepData) -> str:
    """FedCLIP on demo, 4 held-out domains; Sweep of lr, method on demo; with a name in front."""
    name = f"{one.label.name}: " if one.label.name else ""
    return name + (_of_run(one) if isinstance(one, RunData) else _of_sweep(one))


def _of_run(run: RunData) -> str:
    held_out = dict.fromkeys(name for fold in run.folds for name in fold.held_out)
    if len(held_out) == 1:
        which = f"{next(iter(held_out))} held out"
    else:
        which = f"{len(held_out) or 'no'} held-out domains"
    return f"FedCLIP on {run.cache.get('dataset') or UNNAMED}, {which}"


def _of_sweep(sweep: SweepData) -> str:
    tried = few(sweep.varied, 3) or "seeds"
    return f"Sweep of {tried} on {sweep.cache.get('dataset') or UNNAMED}"
