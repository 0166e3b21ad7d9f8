"""What the page of one run shows."""

from pipeline.errors import ConfigError
from pipeline.extraction.rate import Rate
from pipeline.federation.methods import METHODS
from pipeline.federation.methods.privacy import not_covered
from pipeline.json_files import word
from pipeline.reports.answers import answer_figures
from pipeline.reports.charts.svg import Markup, percent
from pipeline.reports.clients import client_bars, client_spread, with_gain
from pipeline.reports.closed_form import TUNED_ON, bytes_a_client, closed_form_figures
from pipeline.reports.costs import costs_of
from pipeline.reports.data import ACCURACIES, RunData, mean_of
from pipeline.reports.maps import Answers
from pipeline.reports.render import Tile, duration, render, sentence
from pipeline.reports.rounds import FOLDS, round_figures
from pipeline.runs.advice import said_of_worse
from pipeline.runs.results import CHOSEN_BY
from pipeline.settings import from_json
from pipeline.sweeps.best import federate_command

STILL = 0.005  # a gate this near to uniform is zero-shot for every practical purpose
LABELS = {
    "unseen": "Unseen domains",
    "participants": "Participants",
    "overall": "Overall, mean over domains",
}


def run_part(
    run: RunData, anchor: str, answers: Answers | str, rate: Rate | float | None = None
) -> Markup:
    """The article about one run."""
    tested = [(f, f.result) for f in run.folds if f.result and f.result.scores.per_domain]
    return render(
        "run.html",
        anchor=anchor,
        run=run,
        title=run.title,
        command=_command(run),
        notes=[*run.notes, *_doubts(run)],
        tiles=_tiles(run),
        covered=not_covered(_choose(run), sums_of=_sums_of(run)),
        kept=CHOSEN_BY.get(_choose(run), "unknown"),
        done=[fold for fold in run.folds if fold.result],
        means=means_of(run),
        rounds=round_figures(run),
        drawn=FOLDS,
        solved=[fold for fold in run.folds if fold.result and fold.result.closed_form],
        maps=closed_form_figures(run),
        tuned_on=TUNED_ON,
        bytes_a_client=bytes_a_client,
        kept_so_far=run.settings.get("eval") == "best",
        clients=[client_bars(*each) for each in tested[:FOLDS]],
        spreads=[figure for each in tested[:FOLDS] for figure in client_spread(*each)],
        tested=len(tested),
        answers=answer_figures(run, answers),
        costs=costs_of(run, answers, rate),
    )


def means_of(run: RunData) -> list[tuple[float | None, float | None]]:
    """By figure the mean over trainings, and zero-shot's."""
    results = [fold.result for fold in run.folds if fold.result]
    return [(mean_of(results, name), mean_of(results, name, start=True)) for name in ACCURACIES]


def _solved(run: RunData) -> bool:
    method = METHODS.get(str(run.settings.get("method")))
    return method is not None and method.solved


def _sums_of(run: RunData) -> str:
    """What one release of sums hides one more or less of; "" where updates were released."""
    return ("client" if run.settings.get("clip") else "row") if _solved(run) else ""


def _choose(run: RunData) -> str:
    return word(run.settings.get("choose", "accuracy"))


def _command(run: RunData) -> str:
    """The line that trains the same run again; "" for settings that no option sets."""
    settings = {n: v for n, v in run.settings.items() if n not in ("backend", "device")}
    try:
        config = from_json(settings)
        words = federate_command(config, {}, config.seed, [str(run.cache_file or "CACHE.h5")])
    except (ConfigError, TypeError, ValueError):
        return ""
    on = [f"--{n} {run.settings[n]}" for n in ("device", "backend")
          if str(run.settings.get(n, "")).isalnum()]  # fmt: skip
    return " ".join([words, *on, *["--init-adapter FILE"] * run.first_adapter])


def _doubts(run: RunData) -> list[str]:
    said = []
    for fold in run.folds:
        result = fold.result
        if not (result and result.zero_shot):
            continue
        if worse := said_of_worse(
            fold.name, result.best_round, result.scores.val_accuracy,
            result.zero_shot.val_accuracy, result.val_changed, run.settings,
        ):  # fmt: skip
            said.append(sentence(worse))
        if result.scores.overall is None:
            said.append(f"Held out {fold.name}: no test rows, so nothing was tested.")
        gate = result.gate
        if gate and gate.distance is not None and gate.distance < STILL:
            said.append(
                f"Held out {fold.name}: the gate is still uniform (distance {gate.distance:.4f}): "
                f"all but {gate.changed} of {gate.tested} answers are those of zero-shot CLIP."
            )
    return said if len(said) <= 6 else [*said[:5], f"{len(said) - 5} more warnings of this kind."]


def _tiles(run: RunData) -> list[Tile]:
    shown = []
    for which, (value, start) in zip(ACCURACIES, means_of(run), strict=True):
        if value is not None:
            beside = "" if start is None else f"zero-shot {with_gain(start, value, start)}"
            shown.append(Tile(LABELS[which], f"{percent(value)} %", beside))
    asked = 1 if _solved(run) else run.settings.get("rounds", "?")
    shown.append(Tile("Rounds", f"{run.rounds_done:,}", f"of {asked}"))
    train, total = run.seconds.get("train"), run.seconds.get("total")
    if train is not None:
        beside = "" if total is None else f"{duration(total)} including loading"
        shown.append(Tile("Training time", duration(train), beside))
    return shown
