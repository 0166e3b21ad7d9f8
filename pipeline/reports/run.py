"""The part of a report that tells of one run."""

from collections.abc import Sequence

from pipeline.extraction.rate import Rate
from pipeline.federation.methods.privacy import not_covered
from pipeline.json_files import word
from pipeline.reports.answers import confusion_part, map_part
from pipeline.reports.charts.bars import Bar, bar_chart
from pipeline.reports.charts.svg import Markup, element, percent
from pipeline.reports.costs import costs_part, duration
from pipeline.reports.data import ACCURACIES, FoldData, Result, RunData, Scores
from pipeline.reports.maps import Answers
from pipeline.reports.parts import (
    GAINS,
    Cell,
    accuracy,
    cards,
    facts,
    figure,
    gain,
    gains,
    key,
    section,
    table,
    tiles,
    warnings,
)
from pipeline.reports.rounds import rounds_part
from pipeline.runs.advice import said_of_worse
from pipeline.runs.results import CHOSEN_BY

FOLDS = 12  # trainings whose clients get bars
CLIENTS = 30  # bars of a training: the largest losses and gains
STILL = 0.005  # a gate this near to uniform is zero-shot for every practical purpose


def run_part(
    run: RunData, anchor: str, answers: Answers | str, rate: Rate | float | None = None
) -> Markup:
    """Everything about one run, under a heading with its name."""
    heading = f"Run {run.name}: {word(run.settings.get('method', '?'))} on {_data(run)}"
    return element(
        "article",
        element("h2", heading),
        element("p", _lead(run), class_="lead"),
        warnings([*run.notes, *_doubts(run)]),
        tiles(_tiles(run)),
        _privacy(run),
        _table(run),
        rounds_part(run),
        _clients(run),
        confusion_part(run, answers),
        map_part(run, answers),
        costs_part(run, answers, rate),
        _settings(run),
        id=anchor,
    )


def mean_of(run: RunData, which: str, start: bool = False) -> float | None:
    """Mean over trainings of unseen, participants or overall; of zero-shot's if `start`."""
    results = [fold.result for fold in run.folds if fold.result]
    sides = [result.zero_shot if start else result.scores for result in results]
    values = [getattr(side, which) for side in sides if side is not None]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _data(run: RunData) -> str:
    return str(run.cache.get("dataset") or "features")


def _lead(run: RunData) -> str:
    return (
        f"{run.cache['rows']:,} rows of {run.cache.get('model') or 'unnamed'} features, "
        f"{run.cache.get('classes', '?')} classes, {len(run.cache['domains'])} domains; "
        f"{len(run.folds)} training(s), "
        f"{run.rounds_done} rounds each."
    )


def _doubts(run: RunData) -> list[str]:
    said = []
    for fold in run.folds:
        result = fold.result
        if not (result and result.zero_shot):
            continue
        if worse := _worse(run, fold.name, result, result.zero_shot):
            said.append(worse)
        if result.scores.overall is None:
            said.append(f"Held out {fold.name}: there are no test rows, so nothing is tested.")
        gate = result.gate
        if gate and gate.distance is not None and gate.distance < STILL:
            said.append(
                f"Held out {fold.name}: the gate stays uniform (distance {gate.distance:.4f}): "
                f"this is zero-shot CLIP in all but {gate.changed} of {gate.tested} answers."
            )
    return said if len(said) <= 6 else [*said[:5], f"The same of {len(said) - 5} more trainings."]


def _worse(run: RunData, name: str, result: Result, zero_shot: Scores) -> str | None:
    """What federate said of training that made validation worse beyond noise."""
    why = said_of_worse(
        name,
        {
            "best_round": result.best_round,
            "val_accuracy": result.scores.val_accuracy,
            "val_changed": result.val_changed,
            "zero_shot": {"val_accuracy": zero_shot.val_accuracy},
        },
        run.settings,
    )
    return why and f"{why[:1].upper()}{why[1:]}."


def _tiles(run: RunData) -> list[tuple[str, str, str]]:
    shown = []
    for which in ACCURACIES:
        value, start = mean_of(run, which), mean_of(run, which, start=True)
        if value is None:
            continue
        beside = "" if start is None else (
            f"zero-shot {percent(start)} ({100 * (value - start):+.2f})"
        )  # fmt: skip
        shown.append((f"{which.capitalize()}, mean", f"{percent(value)} %", beside))
    shown.append(("Rounds", f"{run.rounds_done:,}", f"of {run.settings.get('rounds', '?')}"))
    train, total = run.seconds.get("train"), run.seconds.get("total")
    if train is not None:
        beside = "" if total is None else f"{duration(total)} with loading"
        shown.append(("Training took", duration(train), beside))
    return shown


def _privacy(run: RunData) -> Markup:
    if run.privacy is None:
        return Markup("")
    epsilon, delta = run.privacy
    covers = not_covered(word(run.settings.get("choose", "accuracy")))
    said = f"Central differential privacy: epsilon {epsilon:.2f} at delta {delta:g}; {covers}."
    return element("p", said, class_="lead")


def _table(run: RunData) -> Markup:
    done = [fold for fold in run.folds if fold.result]
    if not done:
        return element("p", "There are no results yet.", class_="lead")
    heads = ["held out", "round", *GAINS, "validation", "gate moved", "answers changed"]
    rows = [_line(fold, fold.result) for fold in done]
    if len(rows) > 1:
        rows.append(_mean_line(run, len(heads)))
    caption = (
        "Accuracy in % on test rows of the kept round; gain: points above zero-shot CLIP. Gate "
        "moved: 0 is zero-shot's uniform gate, 1 a single channel. Kept round: "
        f"{CHOSEN_BY.get(word(run.settings.get('choose', 'accuracy')), 'unknown')}."
    )
    last = "mean" if len(rows) > 1 else ""
    whole = table("Held-out results", heads, rows, caption=caption, last=last)
    return section("Held-out results", "", whole, _quality(done))


def _line(fold: FoldData, result: Result) -> list[Cell]:
    best = result.best_round
    cells = [Cell(fold.name, None, "word name"), Cell("\u2013" if best is None else best)]
    cells += gains(result)
    gate = result.gate
    moved = "\u2013" if gate is None or gate.distance is None else f"{gate.distance:.3f}"
    changed = f"{gate.changed:,} of {gate.tested:,}" if gate else "\u2013"
    return [
        *cells,
        accuracy(result.scores.val_accuracy),
        Cell(moved, gate.distance if gate and gate.distance is not None else ""),
        Cell(changed, gate.changed if gate else ""),
    ]


def _quality(folds: Sequence[FoldData]) -> Markup:
    known = ("macro_f1", "calibration_error", "worst")
    if not any(getattr(fold.result.scores, name) is not None for fold in folds for name in known):
        return Markup("")
    rows = []
    for fold in folds:
        cells = [Cell(fold.name, None, "word name")]
        for name in known:
            start = fold.result.zero_shot and getattr(fold.result.zero_shot, name)
            cells += [accuracy(getattr(fold.result.scores, name)), accuracy(start)]
        rows.append(cells)
    heads = ["held out", "macro F1", "zero-shot", "calibration error", "zero-shot",
             "worst client", "zero-shot"]  # fmt: skip
    return table("Quality of the answers", heads, rows, caption="The same answers looked at "
                 "otherwise, in %; a calibration error is the better the lower.")  # fmt: skip


def _mean_line(run: RunData, columns: int) -> list[Cell]:
    cells = [Cell("mean", None, "word"), Cell("")]
    for which in ACCURACIES:
        value, start = mean_of(run, which), mean_of(run, which, start=True)
        cells += [accuracy(value), gain(value, start)]
    return cells + [Cell("")] * (columns - len(cells))


def _clients(run: RunData) -> Markup:
    folds = [fold for fold in run.folds if fold.result and fold.result.scores.per_domain]
    figures = [_bars(fold, fold.result) for fold in folds[:FOLDS]]
    lead = "Test accuracy in % by client and held-out domain; the tick is zero-shot CLIP."
    if len(folds) > FOLDS:
        lead += f" The first {FOLDS} of {len(folds)} trainings."
    return section("Clients", lead, cards(*figures))


def _bars(fold: FoldData, result: Result) -> Markup:
    start = _by_client(fold, result.zero_shot) if result.zero_shot else {}
    reached = _by_client(fold, result.scores)
    known = [(n, v, start.get(n)) for n, v in reached.items() if v is not None]
    left = len(known) - CLIENTS
    if left > 0:
        unseen = [one for one in known if one[0] in fold.held_out][: CLIENTS // 2]
        others = [one for one in known if one not in unseen]
        by_gain = sorted(others, key=lambda one: one[1] - (one[2] or 0.0))
        half = (CLIENTS - len(unseen)) // 2
        known = [*unseen, *by_gain[:half], *by_gain[-half:]]
    bars = [
        Bar(name, "c1" if name in fold.held_out else "c0", value, _reached(value, zero), zero)
        for name, value, zero in known
    ]
    note = f"The smallest and largest gains of {left + CLIENTS} are drawn." if left > 0 else ""
    text = "; ".join(f"{bar.name} {bar.text}" for bar in bars[:10])
    keys = [key("held out", "c1", "bar")] if any(b.style == "c1" for b in bars) else []
    keys += [key("participant", "c0", "bar")] if any(b.style == "c0" for b in bars) else []
    keys += [key("zero-shot", "", "mark")] if start else []
    title = f"{fold.name} held out"
    return figure(title, bar_chart(title, text, bars, high=1.0), keys=keys, note=note)


def _by_client(fold: FoldData, scores: Scores) -> dict[str, float | None]:
    """Held-out domains, then clients; a client is a domain where the files tell of domains only."""
    unseen = {n: v for n, v in scores.per_domain.items() if n in fold.held_out}
    return unseen | (scores.per_client or scores.per_domain) | unseen


def _reached(value: float, start: float | None) -> str:
    return percent(value) + ("" if start is None else f" ({100 * (value - start):+.2f})")


def _settings(run: RunData) -> Markup:
    pairs: Sequence[tuple[str, object]] = [
        *((name, value) for name, value in run.settings.items() if name != "held_out"),
        ("held out", "; ".join(fold.name for fold in run.folds)),
        *((f"cache {name}", value) for name, value in run.cache.items()),
        ("folder", run.folder),
    ]
    summary = element("summary", "All settings, and the cache they were run on")
    return section("Settings", "", element("details", summary, facts(pairs)))
