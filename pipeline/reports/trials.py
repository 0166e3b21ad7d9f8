"""A sweep folder -> frozen data for its report."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipeline.digests import unsealed
from pipeline.errors import ConfigError
from pipeline.json_files import (
    content_of,
    fraction,
    is_number,
    read_lines,
    read_object,
    whole,
    word,
)
from pipeline.reports.data import (
    Curve,
    Result,
    data_name,
    dataset_of,
    label_or_note,
    mean_curve,
    mean_of,
    read_result,
)
from pipeline.runs.labels import Label
from pipeline.runs.notes import few
from pipeline.sweeps.best import SELECTIONS, Candidate, candidates
from pipeline.sweeps.curves import NAMES
from pipeline.sweeps.run import read_shared
from pipeline.sweeps.trials import trial_files

STATUSES = ("done", "pruned", "diverged", "failed")


@dataclass(frozen=True)
class Trial:
    """One line of trials.jsonl."""

    number: int
    id: str
    status: str
    seed: int | None
    settings: dict[str, Any]
    rounds: int | None
    val_accuracy: float | None
    seconds: float | None
    results: tuple[Result, ...]
    held_out: tuple[str, ...]  # as the results name it
    error: str | None = None  # why it failed or diverged
    val_loss: float | None = None
    curves: dict[str, Curve] = field(default_factory=dict)  # validation by round, by name

    @property
    def by_held_out(self) -> list[tuple[str, Result]]:
        """Each result with what was held out."""
        return list(zip(self.held_out, self.results, strict=True))


@dataclass(frozen=True)
class SweepData:
    """A sweep so far; `varied` are the settings in which its trials differ, without the seed.

    select       by what its best is chosen: "validation", or "oracle" (test accuracy)
    cache_words  how a command line names its cache
    """

    name: str
    folder: Path
    select: str
    trials: tuple[Trial, ...]
    varied: tuple[str, ...]
    spec: dict[str, Any]
    notes: tuple[str, ...]
    cache_words: tuple[str, ...]
    label: Label = Label()
    kind: ClassVar[str] = "Sweep"

    @property
    def scored(self) -> list[tuple[Trial, float]]:
        """The finished trials that have a validation accuracy, and that."""
        return [(t, t.val_accuracy) for t in self.trials
                if t.status == "done" and t.val_accuracy is not None]  # fmt: skip

    @property
    def title(self) -> str:
        """Sweep of lr, method on demo; with its name in front."""
        name = f"{self.label.name}: " if self.label.name else ""
        return f"{name}Sweep of {few(self.varied, 3) or 'seeds'} on {data_name(self.cache)}"

    @property
    def cache(self) -> dict[str, Any]:
        """What spec.json has of the cache."""
        return self._object("cache")

    @property
    def base(self) -> dict[str, Any]:
        """The settings that were not swept, as spec.json has them."""
        return self._object("base")

    def _object(self, name: str) -> dict[str, Any]:
        found = self.spec.get(name)
        return found if isinstance(found, dict) else {}


def read_sweep(folder: Path) -> SweepData:
    """The data of a sweep, finished or not.

    Raises ConfigError, in one line, for files that are not what a sweep writes.
    """
    last: dict[str, Trial] = {}
    notes: list[str] = []
    for file in trial_files(folder):
        lines, more = read_lines(file)
        notes += more
        with content_of(file):
            found = [_trial(unsealed(line)) for line in lines]
            own = {trial.id: trial for trial in found}  # a failed one was tried again
        for trial in own.values():
            if trial.id not in last or last[trial.id].status == "failed":
                last[trial.id] = trial
    trials = tuple(sorted(last.values(), key=lambda trial: trial.number))
    spec = folder / "spec.json"
    with content_of(spec):
        described = unsealed(read_object(spec)) if spec.exists() else {}
    try:
        cache, words = read_shared(folder)
    except (ConfigError, OSError):
        cache, words = "", ("CACHE.h5",)
    if isinstance(facts := described.get("cache"), dict):
        described = {**described, "cache": {**facts, "dataset": dataset_of(facts, cache)}}
    if not trials:
        notes.append("No trial has ended yet.")
    label = label_or_note(folder, notes)
    return SweepData(
        name=folder.resolve().name,
        folder=folder,
        select=_selection(folder / "selection.json"),
        trials=trials,
        varied=varied([trial.settings for trial in trials]),
        spec=described,
        notes=tuple(notes),
        cache_words=words,
        label=label,
    )


def ranking(sweep: SweepData) -> list[Candidate[Trial]]:
    """The configurations as sweep itself ranks them, by its own selection, the best first."""
    scored = ((trial, score(trial, sweep.select)) for trial in sweep.trials)
    return candidates(scored, sweep.select)


def score(trial: Trial, select: str) -> float | None:
    """What a trial counts as: its validation accuracy, or, by oracle, what it reached on test rows.

    The same numbers as pipeline.sweeps.best's, which reads them from trials.jsonl itself.
    """
    if trial.status != "done":
        return None
    if select == "validation":
        return trial.val_accuracy
    return mean_of(trial.results, "tested")


def curve_of(trials: Sequence[Trial], kind: str) -> Curve | None:
    """Mean over trials in the rounds that all have; None where there is none."""
    known = [curve for trial in trials if (curve := trial.curves.get(kind))]
    mean = mean_curve(known) if len(known) == len(trials) else None
    return mean if mean and mean.rounds else None


def varied(settings: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Names of the settings with more than one value, in the order of their first appearance."""
    names = dict.fromkeys(name for one in settings for name in one if name != "seed")
    return tuple(name for name in names if len({word(one.get(name)) for one in settings}) > 1)


def setting_heads(
    names: Sequence[str], settings: Sequence[dict[str, Any]]
) -> list[str | list[str]]:
    """Column heads as templates take them: a list where a value is words, on the left."""
    return [n if all(is_number(one.get(n)) for one in settings) else [n] for n in names]


def _selection(file: Path) -> str:
    """How the sweep last chose its best; older versions chose by validation alone."""
    if not file.exists():
        return "validation"
    with content_of(file):
        select = read_object(file)["select"]
        if select not in SELECTIONS:
            raise ValueError(f"unknown selection {str(select)[:60]!r}")
    return str(select)


def _trial(line: dict[str, Any]) -> Trial:
    results = line.get("results") or []
    return Trial(
        number=whole(line["number"]),
        id=str(line["id"]),
        status=str(line["status"]),
        seed=None if line.get("seed") is None else whole(line["seed"]),
        settings=dict(line["settings"]),
        rounds=None if line.get("rounds") is None else whole(line["rounds"]),
        val_accuracy=fraction(line.get("val_accuracy")),
        seconds=fraction(line.get("seconds")),
        results=tuple(read_result(found) for found in results),
        held_out=tuple(str(found.get("held_out") or "none") for found in results),
        error=None if line.get("error") is None else str(line["error"]),
        val_loss=fraction(line.get("val_loss")),
        curves=_curves(line.get("curves"), whole(line.get("rounds") or 0)),
    )


def _curves(found: dict[str, Any] | None, rounds: int) -> dict[str, Curve]:
    """By name what curves_of wrote; rounds counted from 0, as in the charts of runs."""
    if not found:
        return {}
    every = max(1, whole(found["every"]))
    known = {name: [fraction(value) for value in found[name]] for name in NAMES if found.get(name)}
    return {
        name: Curve(
            tuple(min(every * (at + 1), rounds) - 1 for at in range(len(values))), tuple(values)
        )
        for name, values in known.items()
    }
