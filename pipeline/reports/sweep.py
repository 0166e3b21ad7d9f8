"""What the page of a sweep shows."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from pipeline.errors import ConfigError
from pipeline.groups import by_key
from pipeline.json_files import word
from pipeline.reports.charts.svg import Markup, percent
from pipeline.reports.data import ACCURACIES, data_name, mean_of
from pipeline.reports.render import Tile, duration, render, sentence
from pipeline.reports.reproduced import (
    read_reproduced,
    reproduced_figures,
    reproduced_tiles,
)
from pipeline.reports.spread import Spread, spread
from pipeline.reports.sweep_figures import (
    parallel_figures,
    sweep_figures,
    zero_shot_validation,
)
from pipeline.reports.trial_curves import trial_curves
from pipeline.reports.trials import STATUSES, SweepData, Trial, ranking, setting_heads
from pipeline.settings import from_json
from pipeline.sweeps.best import (
    Candidate,
    by_measure,
    failures,
    federate_command,
    nothing_chosen,
    said_of_ties,
    tied,
    two_measures,
    without_effect,
)
from pipeline.sweeps.trials import has_own_adapters
from pipeline.terminal import counted

LISTED = 2000  # trials in the table; the rest are in trials.csv


class Configuration(NamedTuple):
    """The finished trials of one configuration: validation, and by figure test and zero-shot."""

    settings: dict[str, object]
    seeds: int
    validation: Spread
    ends: tuple[float, float]
    tested: list[tuple[Spread, float | None]]


def sweep_part(sweep: SweepData, anchor: str) -> Markup:
    """The article about one sweep."""
    ranked = ranking(sweep)
    best, (_, own) = ranked[0] if ranked else None, by_measure(ranked)
    chosen = best.records if best else ()
    found = _configurations(sweep)
    zero_shot = zero_shot_validation(sweep.trials)
    again = read_reproduced(sweep.folder)
    return render(
        "sweep.html",
        anchor=anchor,
        sweep=sweep,
        title=again.title if again else sweep.title,
        about=_about(sweep),
        oracle=sweep.select == "oracle",
        notes=[*sweep.notes, *_doubts(sweep, ranked)],
        tiles=reproduced_tiles(again) if again else _tiles(sweep, ranked) if sweep.trials else [],
        command=_command(sweep, chosen),
        own_command=_command(sweep, own[0].records) if own else "",
        reproduced=again,
        compared=reproduced_figures(again) if again else [],
        chosen=chosen,
        called=_called(chosen),
        numbers={trial.number for trial in chosen},
        settings=_settings(sweep, chosen),
        chosen_tested=_tested(chosen),
        failures=failures(sweep.trials)[:LISTED],
        curves=trial_curves(sweep, zero_shot),
        threads=parallel_figures(sweep, chosen, zero_shot),
        searched=sweep_figures(sweep, chosen),
        configurations=found[:LISTED],
        heads=setting_heads(sweep.varied, [trial.settings for trial in sweep.trials]),
        trials=sorted(sweep.trials, key=lambda t: (_rank(t), t.number))[:LISTED],
        listed=LISTED,
    )


def _about(sweep: SweepData) -> str:
    """Data set, model, held-out domains, partition and rounds, as far as spec.json has them."""
    facts, base = (sweep.spec.get(name) for name in ("cache", "base"))
    said = []
    if isinstance(facts, dict):
        model, rows = facts.get("model") or "no name", word(facts.get("rows"))
        said.append(f"Data set {data_name(facts)}, model {model}, {rows} rows")
    if isinstance(base, dict):
        held_out = base.get("held_out")
        if isinstance(held_out, list):
            said.append(f"{counted(len(held_out), 'training')} a trial")
        for name in ("method", "partition", "rounds"):
            swept = name in sweep.varied
            said.append(f"{name} {'swept' if swept else word(base.get(name))}")
    return "; ".join(said)


def _doubts(sweep: SweepData, ranked: Sequence[Candidate[Trial]]) -> list[str]:
    odd = [t for t in sweep.trials if t.status not in STATUSES]
    lost = [t for t in sweep.trials if t.status in ("diverged", "failed")]
    said = [f"{len(lost)} of {len(sweep.trials)} trials diverged or failed."] if lost else []
    done = [
        (t.settings, t.seed, (t.val_accuracy, [r.scores.means for r in t.results]))
        for t in sweep.trials
        if t.status == "done"
    ]
    if sweep.trials and not ranked:
        said.append(sentence(nothing_chosen(len(done), sweep.select)))
    said += map(sentence, [*two_measures(ranked), *without_effect(done)])
    if len(ties := [each.records[0].number for each in tied(ranked)]) > 1:
        said.append(sentence(said_of_ties(ties[0], ties[1:])))
    if odd:
        said.append(f"{len(odd)} trials have an unknown status: {odd[0].status}.")
    return said


def _tiles(sweep: SweepData, ranked: Sequence[Candidate[Trial]]) -> list[Tile]:
    counts = {name: sum(t.status == name for t in sweep.trials) for name in STATUSES}
    others = ", ".join(f"{counts[name]:,} {name}" for name in STATUSES[1:] if counts[name])
    shown = [Tile("Trials done", f"{counts['done']:,}", others or "none ended early")]
    done = sorted(value for _, value in sweep.scored)
    name = "Best by oracle (test)" if sweep.select == "oracle" else "Best on validation"
    for group, apart in zip(by_measure(ranked), ("", ", own adapters"), strict=True):
        if group:
            mean, std = spread(group[0].scores)
            beside = _called(group[0].records) + ("" if std is None else f", std {percent(std)}")
            shown.append(Tile(name + apart, f"{percent(mean)} %", beside))
    if done:
        worst = f"worst {percent(done[0])} %"
        shown.append(Tile("Median trial, validation", f"{percent(median(done))} %", worst))
    spent = [t.seconds for t in sweep.trials if t.seconds is not None]
    if spent:
        shown.append(Tile("Training time, all trials", duration(sum(spent)), "less side by side"))
    return shown


def _called(chosen: Sequence[Trial]) -> str:
    many = "trials" if len(chosen) > 1 else "trial"
    return f"{many} {', '.join(str(trial.number) for trial in chosen)}"


def _settings(sweep: SweepData, chosen: Sequence[Trial]) -> str:
    if not chosen:
        return ""
    found = chosen[0].settings
    return ", ".join(f"{n} {word(found.get(n))}" for n in sweep.varied or sorted(found))


def _command(sweep: SweepData, chosen: Sequence[Trial]) -> str:
    """The line that trains the best configuration again; "" where spec.json does not say it."""
    if not chosen or "base" not in sweep.spec:
        return ""
    try:
        base = from_json(sweep.spec["base"])
        return federate_command(base, chosen[0].settings, chosen[0].seed or 0, sweep.cache_words)
    except (ConfigError, TypeError, ValueError):
        return ""


def _configurations(sweep: SweepData) -> list[Configuration]:
    """Those with a finished trial, the best mean validation first."""
    groups = by_key(
        (tuple(word(trial.settings.get(name)) for name in sweep.varied), (trial, value))
        for trial, value in sweep.scored
    )
    found = []
    for group in groups.values():
        trials, values = zip(*group, strict=True)
        ends = (min(values), max(values))
        settings = {name: trials[0].settings.get(name) for name in sweep.varied}
        found.append(Configuration(settings, len(group), spread(values), ends, _tested(trials)))
    return sorted(found, key=lambda c: (has_own_adapters(c.settings), -(c.validation.mean or 0.0)))


def _tested(trials: Sequence[Trial]) -> list[tuple[Spread, float | None]]:
    """By figure what the trials reach on test rows, over seeds, and zero-shot's mean."""

    def over_seeds(which: str, start: bool) -> Spread:
        means = [mean_of(trial.results, which, start) for trial in trials]
        return spread([value for value in means if value is not None])

    return [(over_seeds(name, False), over_seeds(name, True).mean) for name in ACCURACIES]


def _rank(trial: Trial) -> tuple[bool, bool, float]:
    known = trial.status == "done" and trial.val_accuracy is not None
    return not known, has_own_adapters(trial.settings), -(trial.val_accuracy or 0.0)
