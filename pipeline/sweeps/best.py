"""A sweep's report: the best configuration, its command, and the importance of settings."""

import dataclasses
import itertools
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from pipeline.errors import ConfigError
from pipeline.federation.evaluate import mean
from pipeline.groups import by_key
from pipeline.runs.metrics import mean_and_std
from pipeline.runs.notes import few
from pipeline.runs.results import FIGURES, aligned, mean_results, percent
from pipeline.settings import RunConfig, run_id
from pipeline.sweeps.importance import influences, label
from pipeline.sweeps.trials import STATUSES, Record, configuration_id, has_own_adapters
from pipeline.terminal import counted, printable

SELECTIONS = ("validation", "oracle")
TOP = 10
DISTINCT = 20  # most values of a setting that are compared with each other
REASONS = 5  # most reasons for failed trials in the text
SCORES = {"validation": "val_accuracy", "oracle": "oracle_accuracy"}


Ended = TypeVar("Ended", bound=Any)
"""A trial that ended: a Record, or a report's view of one."""


@dataclass(frozen=True)
class Candidate(Generic[Ended]):
    """A configuration with a score for each of its seeds."""

    records: tuple[Ended, ...]
    scores: tuple[float, ...]


def sweep_report(
    records: Iterable[Record], base: RunConfig, cache: Sequence[str], *, select: str = "validation"
) -> dict:
    """The object that `sweep --json` prints: counts, the best configurations, importance.

    A configuration counts if all its seeds are done and no other has more of them: a mean over the
    seeds that did not diverge would flatter it. The best has the highest mean validation accuracy
    over seeds, the earlier one of equals; if rounds are chosen by validation loss (every trial has
    one), the lowest mean loss, and of equals the higher accuracy. Test accuracies are reported for
    the best only. Methods in which each client has an adapter of its own are ranked apart from
    others that are swept with them: under "own_adapters" with the same names.
    select="oracle" selects by test accuracy (on unseen domains, or on the
    participants' test rows if none is held out): an upper bound that cannot be reached without the
    test rows, and called oracle wherever it is shown.

    records  every trial that ended
    base     the settings that were not swept
    cache    words of a command line that name the cache, such as ("features.h5",)

    Raises ConfigError for an unknown selection.
    """
    check_selection(select)
    records = sorted(records, key=lambda each: each.number)
    ranked = candidates(((each, _score(each, select)) for each in records), select)
    main, own = by_measure(ranked)
    statuses = Counter(each.status for each in records)
    scored = [(each, s) for each in records if (s := _score(each, select)) is not None]
    importance = influences(
        [{**each.settings, "seed": each.seed} for each, _ in scored], [s for _, s in scored]
    )
    done = [
        (each.settings, each.seed,
         (each.val_accuracy, [[found[name] for name in FIGURES] for found in each.results]))
        for each in records
        if each.status == "done"
    ]  # fmt: skip
    return {
        "select": select,
        "trials": {status: statuses[status] for status in STATUSES},
        "failures": failures(records),
        "seconds": sum(each.seconds for each in records),
        **_ranked(main, base, cache, select),
        "own_adapters": _ranked(own, base, cache, select) if own else None,
        "notes": [*two_measures(ranked), *without_effect(done)],
        "importance": [dataclasses.asdict(each) for each in importance],
    }


def _ranked(
    ranked: Sequence[Candidate[Record]], base: RunConfig, cache: Sequence[str], select: str
) -> dict:
    return {
        "best": _best(ranked[0], base, cache, select) if ranked else None,
        "top": [_described(each, select) for each in ranked[:TOP]],
        "configurations": len(ranked),
        "tied": [each.records[0].number for each in tied(ranked)[1:]],
    }


def check_selection(select: str) -> None:
    """Raises ConfigError for an unknown selection."""
    if select not in SELECTIONS:
        raise ConfigError(f"--select {select!r} is unknown; choose from {', '.join(SELECTIONS)}")


def candidates(
    scored_trials: Iterable[tuple[Ended, float | None]], select: str
) -> list[Candidate[Ended]]:
    """The configurations that count, the best first; those with own adapters after all others.

    scored_trials  trials that ended, with their scores or None
    select         "validation": by val_loss if all that count have one; else by score
    """
    groups = by_key((configuration_id(each.settings), (each, s)) for each, s in scored_trials)
    scored = [
        Candidate(tuple(each for each, _ in group), tuple(scores))
        for group in groups.values()
        if None not in (scores := [score for _, score in group])
    ]
    most = max((len(each.scores) for each in scored), default=0)
    counted = [each for each in scored if len(each.scores) == most]
    losses = [[record.val_loss for record in each.records] for each in counted]
    by_loss = select == "validation" and not any(None in own for own in losses)
    means = [float(np.mean(own)) if by_loss else 0.0 for own in losses]  # type: ignore[arg-type]
    order = sorted(
        range(len(counted)),
        key=lambda at: (
            has_own_adapters(counted[at].records[0].settings), means[at],
            -np.mean(counted[at].scores), counted[at].records[0].number,
        ),
    )  # fmt: skip
    return [counted[at] for at in order]


def by_measure(
    ranked: Sequence[Candidate[Ended]],
) -> tuple[list[Candidate[Ended]], list[Candidate[Ended]]]:
    """What is ranked, and apart from it those with own adapters where there are others too."""
    apart: tuple[list[Candidate[Ended]], list[Candidate[Ended]]] = ([], [])
    for each in ranked:
        apart[has_own_adapters(each.records[0].settings)].append(each)
    return apart if apart[0] else (apart[1], [])


def tied(ranked: Sequence[Candidate[Ended]]) -> list[Candidate[Ended]]:
    """The best and all of its measure that equal its score; [] if there are none."""
    same, _ = by_measure(ranked)
    return [each for each in same if np.mean(each.scores) == np.mean(same[0].scores)]


def two_measures(ranked: Sequence[Candidate[Ended]]) -> Iterator[str]:
    """A warning if methods that score clients' own adapters stand beside others."""
    others, own = (
        ", ".join(dict.fromkeys(str(each.records[0].settings.get("method")) for each in group))
        for group in by_measure(ranked)
    )
    if own:
        yield (
            f"ranked apart: {own} validate each client's own adapter on that client's rows, "
            f"{others} one adapter on all clients' rows. The best is that of one adapter"
        )


def without_effect(
    done: Sequence[tuple[Mapping[str, Any], int | None, object]],
) -> Iterator[str]:
    """A sentence for each setting with values that reach the same accuracies as others.

    done  settings, seed and results of each finished trial; trials that differ in one setting only
          are compared. Settings of more than DISTINCT values are left out
    """
    for name in dict.fromkeys(name for settings, _, _ in done for name in settings):
        groups = by_key(
            (run_id({**settings, name: None, "seed": seed}), (label(settings.get(name)), reached))
            for settings, seed, reached in done
        )
        pairs = by_key(
            ((a, b), one == other)
            for group in groups.values()
            if len(group) <= DISTINCT
            for (a, one), (b, other) in itertools.combinations(group, 2)
        )
        same = {pair: len(equal) for pair, equal in pairs.items() if all(equal)}
        if same:
            values = ", ".join(dict.fromkeys(value for pair in same for value in pair))
            between = "nothing" if len(same) == len(pairs) else "nothing between these values"
            yield (
                f"{name} changes {between}: {values} reach the same accuracies "
                f"({sum(same.values())} pairs compared that differ in nothing else)"
            )


def failures(ended: Iterable[Any]) -> list[dict[str, Any]]:
    """The reasons for failed trials with their number of trials, the commonest first."""
    counted = Counter(each.error or "no reason recorded" for each in ended
                      if each.status == "failed")  # fmt: skip
    return [{"error": error, "trials": count} for error, count in counted.most_common()]


def federate_command(
    base: RunConfig, settings: Mapping[str, object], seed: int, cache: Sequence[str]
) -> str:
    """The `./run.sh federate` command that trains these settings again, quoted for a shell.

    Only options that differ from RunConfig's defaults, and --held-out, whose default depends on the
    cache. A field's option is its name with hyphens.
    """
    config = dataclasses.replace(base, **settings, seed=seed)
    words = ["./run.sh", "federate", *cache]
    for fold in config.held_out:
        words += ["--held-out", ",".join(fold) or "none"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "held_out" or value == field.default:
            continue
        words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def sweep_table(document: dict) -> str:
    """The object of sweep_report as text for people, accuracies in percent."""
    head, best = _head(document), document["best"]
    if best is None:
        return f"{head}\n{nothing_chosen(document['trials']['done'], document['select'])}"
    by = "by oracle" if document["select"] == "oracle" else "by validation"
    parts = [head, _top(document, by, document["select"])]
    own, apart = document.get("own_adapters"), f"{by}, each client by its own adapter,"
    parts += [_top(own, apart, document["select"])] if own else []
    parts += document["notes"]
    if importance := document.get("importance", document.get("mattered")):  # its older name
        parts.append(_importance(importance, SCORES[document["select"]]))
    parts += [_tested(best, by), f"the best {by}, again:\n  {printable(best['command'])}"]
    if own:
        command = printable(own["best"]["command"])
        parts += [_tested(own["best"], apart.rstrip(",")), f"the best {apart} again:\n  {command}"]
    return "\n\n".join(parts)


def nothing_chosen(done: int, select: str) -> str:
    """Why a sweep with `done` finished trials has no best configuration."""
    if not done:
        return "no configuration has finished all its seeds, so nothing can be selected"
    rows = "validation" if select == "validation" else "test"
    return (
        f"no configuration has finished all its seeds with a {rows} accuracy, so nothing can be "
        f"selected; without {rows} rows there is no such accuracy"
    )


def _head(document: dict) -> str:
    """The counts, and the reasons for failed trials."""
    counts = [f"{n} {status}" for status, n in document["trials"].items() if n]
    head = f"{sum(document['trials'].values())} trials: {', '.join(counts) or 'none ended'}"
    whys = [f"{each['error']} ({each['trials']})" for each in document["failures"][:REASONS]]
    left = sum(each["trials"] for each in document["failures"][REASONS:])
    if left:
        whys.append(f"other reasons, in trials.jsonl ({left})")
    if len(whys) == 1 and counts[-1].endswith("failed"):
        return f"{head}: {whys[0]}"
    return "\n".join([head, *(f"failed: {why}" for why in whys)])


def _score(record: Record, select: str) -> float | None:
    if record.status != "done":
        return None
    if select == "validation":
        return record.val_accuracy
    tested = [r["unseen"] if r["unseen"] is not None else r["participants"] for r in record.results]
    return mean([each for each in tested if each is not None])


def _best(best: Candidate[Record], base: RunConfig, cache: Sequence[str], select: str) -> dict:
    first = best.records[0]
    means = [mean_results(each.results) for each in best.records]
    start = [m["zero_shot"] for m in means]
    return {
        **_described(best, select),
        "tested": {name: mean_and_std([m[name] for m in means]) for name in FIGURES},
        "zero_shot": {name: mean_and_std([m[name] for m in start])["mean"] for name in FIGURES},
        "command": federate_command(base, first.settings, first.seed, cache),
    }


def _described(each: Candidate[Record], select: str) -> dict:
    return {
        "number": each.records[0].number,
        "settings": each.records[0].settings,
        "seeds": [record.seed for record in each.records],
        SCORES[select]: mean_and_std(each.scores),
    }


def _top(document: dict, by: str, select: str) -> str:
    top = document["top"]
    names = [
        name
        for name in top[0]["settings"]
        if len({label(each["settings"][name]) for each in top}) > 1 or len(top) == 1
    ]
    score = SCORES[select]
    seeds = len(top[0]["seeds"])
    rows = [["trial", *names, f"{score} %", f"std of {counted(seeds, 'seed')}"]]
    for each in top:
        values = [label(each["settings"][name]) for name in names]
        spread = each[score]
        rows.append([str(each["number"]), *values, *map(percent, spread.values())])
    same = {n: v for n, v in top[0]["settings"].items() if n not in names}
    alike = f"\nthe same for all: {', '.join(f'{n} {label(v)}' for n, v in same.items())}" * bool(
        same
    )
    best = f"best {len(top)}" if len(top) > 1 else "best"
    return (
        f"the {best} {by} of {counted(document['configurations'], 'configuration')}\n"
        f"{aligned(rows)}{alike}{said_of_ties(top[0]['number'], document['tied'])}"
    )


def said_of_ties(best: int, others: Sequence[int]) -> str:
    """A line that names the configurations that equal the best; or ""."""
    if not others:
        return ""
    return f"\ntied with trial {best}, the earliest: {few([*map(str, others)], TOP)}"


def _importance(importance: Sequence[dict], score: str) -> str:
    rows = [["parameter", "share %", "groups", "best", f"{score} % there"]]
    for each in importance:
        share = "-" if each["share"] is None else f"{100 * each['share']:.1f}"
        rows.append(
            [each["name"], share, str(each["groups"]), each["best"], percent(each["best_mean"])]
        )
    return (
        f"importance of each parameter\n{aligned(rows)}\n"
        "share of the variance of done trials that a parameter's values explain alone (epsilon "
        "squared)"
    )


def _tested(best: dict, by: str) -> str:
    rows = [["tested", "zero-shot %", "adapter %", "std"]]
    for name in FIGURES:
        spread = best["tested"][name]
        if spread["mean"] is not None:
            start = percent(best["zero_shot"][name])
            rows.append([name, start, percent(spread["mean"]), percent(spread["std"])])
    return f"the best {by}, mean over {counted(len(best['seeds']), 'seed')}\n{aligned(rows)}"
