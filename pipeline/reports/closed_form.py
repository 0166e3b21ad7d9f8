"""What reports show of a closed-form head: maps of the grid it was taken from."""

from pipeline.reports.charts.heat import Grid, extremes, heat_chart
from pipeline.reports.charts.svg import percent
from pipeline.reports.data import ClosedForm, RunData
from pipeline.reports.render import Figure, Key

FOLDS = 6  # trainings whose maps are drawn, a card for each solver
TUNED_ON = {
    "rows": "train rows, each left out in turn, and validation rows",
    "domain": "each domain's train rows, by the head of the other domains",
    "validation": "validation rows",
}


def maps_of(found: ClosedForm) -> list[Grid]:
    """A grid of shape (down) and strength (across) for each solver; [] where one head was tried."""
    if len(found.tried) < 2 or all(head.accuracy is None for head in found.tried):
        return []
    return [_map(solver, found) for solver in dict.fromkeys(h.solver for h in found.tried)]


def closed_form_figures(run: RunData) -> list[Figure]:
    """The cards of the first FOLDS trainings that have a closed-form head."""
    heads = [(f.name, f.result.closed_form) for f in run.folds if f.result and f.result.closed_form]
    return [_card(name, grid) for name, found in heads[:FOLDS] for grid in maps_of(found)]


def bytes_a_client(found: ClosedForm) -> tuple[float, float] | None:
    """Up and down; None where the number of clients is unknown."""
    return (found.up / found.clients, found.down / found.clients) if found.clients else None


def _map(solver: str, found: ClosedForm) -> Grid:
    own = [head for head in found.tried if head.solver == solver]
    shapes = sorted({head.shape for head in own})
    strengths = sorted({head.strength for head in own})
    by_place = {(head.shape, head.strength): head.accuracy for head in own}
    chosen = found.chosen
    there = chosen.solver == solver and (chosen.shape, chosen.strength) in by_place
    return Grid(
        solver,
        "strength",
        "shape",
        tuple(f"{value:.3g}" for value in strengths),
        tuple(f"{value:.3g}" for value in shapes),
        tuple(tuple(by_place.get((y, x)) for x in strengths) for y in shapes),
        (shapes.index(chosen.shape), strengths.index(chosen.strength)) if there else None,
    )


def _card(name: str, grid: Grid) -> Figure:
    low, high = extremes(grid.values)
    title = f"{name} held out: {grid.name}"
    note = f"From {percent(low)} % (lightest) to {percent(high)} % (darkest)."
    text = f"accuracy over {len(grid.y)} shapes and {len(grid.x)} strengths. {note}"
    keys = [Key("chosen", "picked", "bar")] if grid.marked else []
    return Figure(title, heat_chart(title, text, grid), keys, note)
