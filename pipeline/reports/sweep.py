"""The part of a report that tells of a sweep."""

from collections.abc import Sequence

from pipeline.json_files import word
from pipeline.reports.charts.svg import Markup, element, percent
from pipeline.reports.costs import duration, seconds_cell
from pipeline.reports.parts import (
    GAINS,
    Cell,
    accuracy,
    cards,
    facts,
    gains,
    section,
    setting,
    table,
    tiles,
    warnings,
)
from pipeline.reports.reproduced import reproduced_part
from pipeline.reports.threads import parallel_card
from pipeline.reports.trials import STATUSES, SweepData, Trial, ranking
from pipeline.sweeps.best import (
    Candidate,
    failures,
    nothing_chosen,
    said_of_ties,
    tied,
    two_measures,
)

LISTED = 2000  # trials in the table; the rest are in trials.csv


def sweep_part(sweep: SweepData, anchor: str) -> Markup:
    """Everything about one sweep, under a heading with its name."""
    ranked = ranking(sweep)
    best = ranked[0] if ranked else None
    trials = best.records if best else ()
    threads = parallel_card(sweep, trials)
    return element(
        "article",
        element("h2", f"Sweep {sweep.name}"),
        element("p", _lead(sweep), class_="lead"),
        warnings([*sweep.notes, *_doubts(sweep, ranked)]),
        tiles(_tiles(sweep, best)) if sweep.trials else "",
        reproduced_part(sweep.folder),
        _chosen(sweep, trials),
        _failed(sweep),
        section("Settings and validation accuracy", "Each line is a trial.", cards(threads))
        if threads
        else "",
        _seeds(sweep),
        section("Trials", _listed(sweep), _table(sweep, trials)) if sweep.trials else "",
        section("Specification", "", element("details", element("summary", "spec.json"),
                facts(list(sweep.spec.items()))))
        if sweep.spec
        else "",
        id=anchor,
    )  # fmt: skip


def _lead(sweep: SweepData) -> str:
    names = ", ".join(sweep.varied) or "nothing but the seed"
    by = (
        "Chosen by ORACLE, by accuracy on test rows: an upper bound, and no result."
        if sweep.select == "oracle"
        else "Chosen on validation alone."
    )
    return f"{len(sweep.trials):,} trials ended; they differ in {names}. {by}"


def _doubts(sweep: SweepData, ranked: Sequence[Candidate[Trial]]) -> list[str]:
    odd = [t for t in sweep.trials if t.status not in STATUSES]
    lost = [t for t in sweep.trials if t.status in ("diverged", "failed")]
    said = [f"{len(lost)} of {len(sweep.trials)} trials diverged or failed."] if lost else []
    if sweep.trials and not ranked:
        done = sum(t.status == "done" for t in sweep.trials)
        said.append(_sentence(nothing_chosen(done, sweep.select)))
    base = sweep.spec.get("base")
    method = base.get("method") if isinstance(base, dict) else None
    said += map(_sentence, two_measures(ranked, method))
    if len(ties := [each.records[0].number for each in tied(ranked)]) > 1:
        said.append(_sentence(said_of_ties(ties[0], ties[1:])))
    if odd:
        said.append(f"{len(odd)} trials have a status that is not known here: {odd[0].status}.")
    return said


def _sentence(words: str) -> str:
    words = words.strip()
    return f"{words[:1].upper()}{words[1:]}."


def _failed(sweep: SweepData) -> Markup:
    """Why trials failed: each reason with how many."""
    why = failures(sweep.trials)
    if not why:
        return Markup("")
    rows = [[Cell(each["error"], None, "word"), Cell(each["trials"])] for each in why[:LISTED]]
    lead = "Settings that conflict, or that the rows do not suffice for. Nothing was trained."
    return section("Failed trials", lead, table("Failed trials", ["reason", "trials"], rows))


def _tiles(sweep: SweepData, best: Candidate[Trial] | None) -> list[tuple[str, str, str]]:
    counts = {name: sum(t.status == name for t in sweep.trials) for name in STATUSES}
    others = ", ".join(f"{counts[name]:,} {name}" for name in STATUSES[1:] if counts[name])
    shown = [("Trials done", f"{counts['done']:,}", others or "none stopped early")]
    done = sorted(t.val_accuracy for t in sweep.trials
                  if t.status == "done" and t.val_accuracy is not None)  # fmt: skip
    if best:
        mean, spread = _mean_and_deviation(best.scores)
        beside = _called(best.records) + ("" if spread is None else f", std {percent(spread)}")
        name = "Best by oracle (test)" if sweep.select == "oracle" else "Best on validation"
        shown.append((name, f"{percent(mean)} %", beside))
    if done:
        middle = percent(done[len(done) // 2])
        shown.append(("Median trial", f"{middle} %", f"worst {percent(done[0])} %"))
    spent = [t.seconds for t in sweep.trials if t.seconds is not None]
    if spent:
        shown.append(("Trial seconds in all", duration(sum(spent)), "side by side they took less"))
    return shown


def _called(chosen: Sequence[Trial]) -> str:
    many = "trials" if len(chosen) > 1 else "trial"
    return f"{many} {', '.join(str(trial.number) for trial in chosen)}"


def _chosen(sweep: SweepData, trials: Sequence[Trial]) -> Markup:
    if not trials:
        return Markup("")
    names = sweep.varied or tuple(sorted(trials[0].settings))
    settings = ", ".join(f"{name} {word(trials[0].settings.get(name))}" for name in names)
    rows = [
        [
            Cell(held_out, None, "word name"),
            Cell(word(trial.seed)),
            *gains(result),
            accuracy(result.scores.val_accuracy),
        ]
        for trial in trials
        for held_out, result in zip(trial.held_out, trial.results, strict=True)
    ]
    heads = ["held out", "seed", *GAINS, "validation"]
    caption = "Accuracy in % on test rows; gain: points above zero-shot CLIP"
    why = (
        "by oracle: test accuracy chose it, which nobody has who does not know the answers."
        if sweep.select == "oracle"
        else "on validation; test rows are looked at for this one only."
    )
    return section(
        "The chosen configuration",
        f"{_called(trials).capitalize()}: {settings}. Of the configurations with all their seeds "
        f"done it has the highest mean {why}",
        table("The chosen configuration", heads, rows, caption=caption),
    )


def _seeds(sweep: SweepData) -> Markup:
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in sweep.trials:
        if trial.status == "done" and trial.val_accuracy is not None:
            at = tuple(word(trial.settings.get(name)) for name in sweep.varied)
            groups.setdefault(at, []).append(trial)
    if all(len(members) == 1 for members in groups.values()):
        return Markup("")
    rows = []
    for members in groups.values():
        values = [trial.val_accuracy for trial in members]
        mean, spread = _mean_and_deviation(values)
        deviation = Cell("\u2013", "") if spread is None else accuracy(spread)
        settings = [setting(members[0].settings.get(name)) for name in sweep.varied]
        ends = [accuracy(min(values)), accuracy(max(values))]
        rows.append([*settings, Cell(len(values)), accuracy(mean), deviation, *ends])
    rows.sort(key=lambda row: -row[len(sweep.varied) + 1].sort)
    heads = [*sweep.varied, "seeds", "mean", "std", "lowest", "highest"]
    lead = "Validation accuracy in % of the finished trials; std with n - 1."
    return section("Over seeds", lead, table("Over seeds", heads, rows[:LISTED]))


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5


def _listed(sweep: SweepData) -> str:
    lead = "A click on a head sorts."
    if len(sweep.trials) > LISTED:
        lead += f" The best {LISTED:,} of {len(sweep.trials):,}; report --csv writes all."
    return lead


def _table(sweep: SweepData, chosen: Sequence[Trial]) -> Markup:
    ranked = sorted(sweep.trials, key=lambda t: (_rank(t), t.number))[:LISTED]
    rows = [
        [
            Cell(trial.number),
            Cell(trial.status, None, "word"),
            *(setting(trial.settings.get(name)) for name in sweep.varied),
            Cell(word(trial.seed)),
            Cell(word(trial.rounds)),
            accuracy(trial.val_accuracy),
            seconds_cell(trial.seconds),
        ]
        for trial in ranked
    ]  # fmt: skip
    heads = ["trial", "status", *sweep.varied, "seed", "rounds", "validation", "seconds"]
    numbers = {trial.number for trial in chosen}
    places = {at for at, trial in enumerate(ranked) if trial.number in numbers}
    return table("Trials", heads, rows, chosen=places)


def _rank(trial: Trial) -> float:
    known = trial.status == "done" and trial.val_accuracy is not None
    return -trial.val_accuracy if known else 1.0 - (trial.val_accuracy or 0.0)
