"""Finished runs and trials for a table: their settings, seeds and test accuracies."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.federation.methods import METHODS
from pipeline.groups import by_key
from pipeline.json_files import content_of, fraction, whole, word
from pipeline.reports.data import Result, RunData, read_run
from pipeline.reports.listing import expanded, is_result
from pipeline.reports.trials import SweepData, Trial, read_sweep, score
from pipeline.settings_used import FIELDS, plays_part
from pipeline.sweeps.best import candidates, two_measures
from pipeline.sweeps.trials import trial_files

NAMED = 10  # trials that a note lists
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Tested:
    """One training that finished: what was held out of it and what it reaches on test rows.

    held_out   domains joined by commas; "" for none
    settings   every field of RunConfig but held_out and seed, None for one that plays no part;
               `model`, and `cache` where two caches of a data set and model have other features
    rounds     that it trained; None: unknown
    """

    source: str
    dataset: str
    content: str
    held_out: str
    seed: int
    settings: dict[str, Any]
    result: Result
    rounds: int | None

    @property
    def accuracy(self) -> dict[str, float | None]:
        """By figure (unseen, participants, overall) a fraction."""
        return self.result.scores.means

    @property
    def zero_shot(self) -> dict[str, float | None]:
        """The same of CLIP alone; {} where it is not known."""
        return self.result.zero_shot.means if self.result.zero_shot else {}

    @property
    def clients(self) -> dict[str, float]:
        """Test accuracy of each participant, as far as it is known."""
        return {n: v for n, v in self.result.scores.per_client.items() if v is not None}

    @property
    def sent(self) -> float | None:
        """Bytes of all clients and rounds, both ways; None: unknown.

        client_fraction of those of a round in which all take part; a closed form's sums once.
        """
        method, head = METHODS.get(str(self.settings["method"])), self.result.closed_form
        once = float(head.up + head.down) if head else 0.0
        if method is not None and method.solved:
            return once or None
        traffic = self.result.traffic
        if traffic is None or self.rounds is None:
            return None
        share = self.settings.get("client_fraction") or 1.0
        return once + share * self.rounds * (traffic.up + traffic.down)


@dataclass(frozen=True)
class Read:
    """All that finished, what people should know, and how many runs and trials did not finish."""

    tested: tuple[Tested, ...]
    notes: tuple[str, ...]
    left_out: int


def read_tested(
    paths: Sequence[str | PathLike[str]], *, best_by: Sequence[str] | None = None
) -> Read:
    """What finished of runs, sweeps, and folders of these; the same in any order of the paths.

    best_by  of each sweep only the best configuration by validation, for each value of these
             settings; None: all

    Raises ConfigError for a path that is none of these, for damaged files of one that is named
    itself, where nothing finished, and for best_by without a sweep.
    """
    tested: list[Tested] = []
    notes: list[str] = []
    left_out = sweeps = 0
    try:
        for folder, named in _folders([Path(path) for path in paths]):
            try:
                found = _of(folder, best_by)
            except ConfigError as error:
                if named:
                    raise
                found = Read((), (f"{folder} is left out: {error}",), 1)
            sweeps += bool(trial_files(folder))
            tested += found.tested
            notes += found.notes
            left_out += found.left_out
    except OSError as error:
        raise ConfigError(
            f"{error.filename or paths[0]}: cannot be read ({error.strerror or error})"
        ) from error
    if best_by is not None and not sweeps:
        raise ConfigError("--best chooses among a sweep's configurations, and no sweep was named")
    if not tested:
        raise ConfigError(
            f"{', '.join(map(str, paths[:NAMED]))}: no run or trial has finished, so there is "
            f"nothing to compare ({left_out} unfinished or failed)"
        )
    return Read(tuple(_with_cache(tested)), tuple(notes), left_out)


def settings_of(given: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """The seed, and the other settings of a RunConfig, None for what plays no part.

    Raises what content_of turns.
    """
    found: dict[str, Any] = {}
    for name, each in FIELDS.items():
        if name == "held_out":
            continue
        value = given.get(name, each.default)
        if each.type is str:
            found[name] = str(value)
        else:
            found[name] = whole(value) if each.type is int else fraction(value)
    seed = found.pop("seed")
    return seed, {n: value if plays_part(n, found) else None for n, value in found.items()}


def value_word(value: object) -> str:
    """A setting as a cell and as a part of a row's label; "-" for one that plays no part."""
    return "-" if value is None else word(value)


def label_of(each: Tested, by: Sequence[str]) -> str:
    """What its row is called: its values of the settings that make rows."""
    return ", ".join(value_word(each.settings[name]) for name in by)


def is_zero_shot(each: Tested) -> bool:
    """Whether nothing was trained: CLIP as it is."""
    method = METHODS.get(str(each.settings["method"]))
    return method is not None and not method.learns


def _folders(paths: Iterable[Path]) -> list[tuple[Path, bool]]:
    """Each folder of a run or sweep once, by name; and whether it was named itself."""
    found: dict[Path, tuple[Path, bool]] = {}
    for each, named in expanded(paths):
        if not is_result(each):
            what = "it has none of these files" if each.exists() else "no such path"
            raise ConfigError(
                f"{each}: {what}; table takes a run folder (config.json), a sweep folder "
                "(trials.jsonl) or a folder of these"
            )
        first, before = found.get(each.resolve(), (each, False))
        found[each.resolve()] = (first, before or named)
    return [found[place] for place in sorted(found)]


def _of(folder: Path, best_by: Sequence[str] | None) -> Read:
    if trial_files(folder):
        return _of_sweep(read_sweep(folder), best_by)
    return _of_run(read_run(folder))


def _of_run(run: RunData) -> Read:
    if not run.finished:
        return Read((), (f"{run.folder} is left out: it is not finished; its own command resumes "
                         "it",), 1)  # fmt: skip
    with content_of(run.folder / "config.json"):
        seed, settings = settings_of(run.settings)
        dataset, settings["model"], content = _cache(run.cache)
    tested = [
        Tested(str(run.folder), dataset, content, ",".join(fold.held_out), seed, settings,
               fold.result, run.rounds_done)
        for fold in run.folds
        if fold.result is not None
    ]  # fmt: skip
    return Read(tuple(tested), (), 0)


def _of_sweep(sweep: SweepData, best_by: Sequence[str] | None) -> Read:
    with content_of(sweep.folder / "spec.json"):
        base = dict(sweep.spec.get("base") or {})
        dataset, model, content = _cache(sweep.spec.get("cache") or {})
    notes = [f"{sweep.folder}: {note}" for note in sweep.notes if sweep.trials]
    lost = [trial for trial in sweep.trials if trial.status != "done"]
    if lost:
        counts = Counter(trial.status for trial in lost)
        numbers = ", ".join(str(trial.number) for trial in lost[:NAMED])
        notes.append(
            f"{sweep.folder}: {', '.join(f'{n} {status}' for status, n in sorted(counts.items()))} "
            f"trials are left out ({numbers}{', ...' if len(lost) > NAMED else ''})"
        )
    if not sweep.trials:
        notes.append(f"{sweep.folder} is left out: no trial has ended")
    full: list[tuple[Trial, int, dict[str, Any]]] = []
    for trial in sweep.trials:
        with content_of(sweep.folder / "trials.jsonl"):
            seed, settings = settings_of({**base, **trial.settings, "seed": trial.seed or 0})
            full.append((trial, seed, {**settings, "model": model}))
    chosen = {trial.number for trial, _, _ in full if trial.status == "done"}
    if best_by is not None:
        chosen, mixed = _chosen([(trial, settings) for trial, _, settings in full], best_by)
        notes += [f"{sweep.folder}: {each}" for each in mixed]
        if full and not chosen:
            notes.append(
                f"{sweep.folder} is left out: no configuration has all its seeds done and a "
                "validation accuracy"
            )
    tested = [
        Tested(f"trial {trial.number} of {sweep.folder}", dataset, content,
               "" if held_out == "none" else held_out, seed, settings, result, trial.rounds)
        for trial, seed, settings in full
        if trial.number in chosen
        for held_out, result in trial.by_held_out
    ]  # fmt: skip
    return Read(tuple(tested), tuple(notes), len(lost))


def _chosen(
    full: Sequence[tuple[Trial, dict[str, Any]]], by: Sequence[str]
) -> tuple[set[int], list[str]]:
    """Numbers of the trials that validation chooses, as `sweep` ranks them, for each row.

    Besides a sentence where a row had configurations of two measures to choose from.
    """
    parts = by_key((tuple(word(own.get(n)) for n in by), trial) for trial, own in full)
    best = [
        candidates(((trial, score(trial, "validation")) for trial in part), "validation")
        for part in parts.values()
    ]
    mixed = dict.fromkeys(said for ranked in best for said in two_measures(ranked))
    return {trial.number for ranked in best if ranked for trial in ranked[0].records}, [*mixed]


def _cache(facts: Mapping[str, Any]) -> tuple[str, str, str]:
    """Data set, model and a digest of the features."""
    dataset, model, content = (facts.get(n) for n in ("dataset", "model", "content_sha256"))
    return str(dataset or UNKNOWN), str(model or UNKNOWN), str(content or "")


def _with_cache(tested: Iterable[Tested]) -> list[Tested]:
    """With a setting `cache`, the features' digest where one data set and model has several."""
    tested = list(tested)
    contents: dict[tuple[str, str], set[str]] = {}
    for each in tested:
        contents.setdefault((each.dataset, each.settings["model"]), set()).add(each.content)
    return [
        replace(each, settings={**each.settings, "cache": each.content[:8] or UNKNOWN if
                len(contents[each.dataset, each.settings["model"]]) > 1 else None})
        for each in tested
    ]  # fmt: skip
