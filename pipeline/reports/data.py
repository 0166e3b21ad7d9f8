"""A run folder -> frozen data for its report; nothing is recomputed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pipeline.digests import check_done
from pipeline.errors import ConfigError
from pipeline.federation.evaluate import mean, mean_of_all, summarise
from pipeline.json_files import content_of, fraction, read_lines, read_object, whole
from pipeline.runs.folder import checkpoint_doubts
from pipeline.runs.labels import Label, read_label

ADAPTERS = "adapter.safetensors"
ACCURACIES = ("unseen", "participants", "overall")
Part = TypeVar("Part")


@dataclass(frozen=True)
class Curve:
    """One number a round; None where it was not finite."""

    rounds: tuple[int, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Scores:
    """Accuracies (fractions) of one way to answer, over a fold's test rows."""

    unseen: float | None
    participants: float | None
    overall: float | None
    val_accuracy: float | None
    per_domain: dict[str, float | None]
    per_client: dict[str, float | None]  # of participants; empty where files lack them
    macro_f1: float | None = None
    calibration_error: float | None = None
    worst: float | None = None  # client

    @property
    def means(self) -> dict[str, float | None]:
        """By ACCURACIES."""
        return {name: getattr(self, name) for name in ACCURACIES}


@dataclass(frozen=True)
class Gate:
    """What the adapter does to CLIP: pipeline.federation.evaluate.GateFigures."""

    distance: float | None
    changed: int
    tested: int


@dataclass(frozen=True)
class Traffic:
    """Bytes that a round of a fold sends, and would with all of CLIP (both ways together)."""

    up: int
    down: int
    clip: int | None


@dataclass(frozen=True)
class Head:
    """A closed-form head that was tried; accuracy on the rows that choose, None without any."""

    solver: str
    shape: float
    strength: float
    accuracy: float | None


@dataclass(frozen=True)
class ClosedForm:
    """The head that was chosen, by which rows; bytes of all clients together, once."""

    chosen: Head
    temperature: float | None
    tuned_on: str
    rows: int
    up: int
    down: int
    clients: int | None  # older results do not say how many
    tried: tuple[Head, ...]


@dataclass(frozen=True)
class Result:
    """A fold's end: the chosen round and what it reaches, next to zero-shot where known."""

    best_round: int | None
    scores: Scores
    zero_shot: Scores | None
    gate: Gate | None
    traffic: Traffic | None = None
    val_changed: dict[str, Any] | None = None  # pipeline/runs/advice.py; where validation got worse
    closed_form: ClosedForm | None = None
    client_rows: dict[str, int] = field(default_factory=dict)  # test rows; older results: none


@dataclass(frozen=True)
class FoldData:
    """One training; curves by client or domain."""

    name: str
    held_out: tuple[str, ...]
    validation: dict[str, Curve]
    test: dict[str, Curve]
    loss: dict[str, Curve]
    result: Result | None


@dataclass(frozen=True)
class RunData:
    """Everything in a run folder; settings and cache as config.json has them."""

    name: str
    folder: Path
    settings: dict[str, Any]
    cache: dict[str, Any]
    folds: tuple[FoldData, ...]
    rounds_done: int
    finished: bool
    cache_file: Path | None
    seconds: dict[str, float | None]
    notes: tuple[str, ...]
    privacy: tuple[float, float] | None = None  # central DP: epsilon, and the delta it is at
    first_adapter: bool = False  # started from an adapter that was named
    label: Label = Label()
    kind: ClassVar[str] = "Run"

    @property
    def title(self) -> str:
        """FedCLIP on demo, 4 held-out domains; with its name in front."""
        held_out = list(dict.fromkeys(name for fold in self.folds for name in fold.held_out))
        which = f"{len(held_out) or 'no'} held-out domains"
        if len(held_out) == 1:
            which = f"{held_out[0]} held out"
        name = f"{self.label.name}: " if self.label.name else ""
        return f"{name}FedCLIP on {data_name(self.cache)}, {which}"


def data_name(cache: Mapping[str, Any]) -> str:
    """What a cache's data set is called; older versions imported features without a name."""
    return cache.get("dataset") or "imported features"


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The plain mean in the rounds in which all of the curves have a number."""
    by = [dict(zip(curve.rounds, curve.values, strict=True)) for curve in curves]
    points = {}
    for round in by[0] if by else ():
        known = [value for each in by if (value := each.get(round)) is not None]
        if len(known) == len(by):
            points[round] = sum(known) / len(known)
    return Curve(tuple(points), tuple(points.values()))


def read_run(folder: Path, *, adapters: bool = True) -> RunData:
    """The data of a run, finished or not.

    adapters  whether they are read and compared with their digests; False: for lists of many runs
    Raises ConfigError, in one line, for files that are not what federate writes.
    """
    finished = (folder / "summary.json").exists() and (folder / "done").exists()
    if finished:
        check_done(folder, () if adapters else (ADAPTERS,))
    described = read_object(folder / "config.json")
    with content_of(folder / "config.json"):
        where = {name: described[name] for name in ("backend", "device") if name in described}
        settings = {**described["settings"], **where}
        held_out = [tuple(str(name) for name in names) for names in settings["held_out"]]
        cache = {**described["cache"], "rows": whole(described["cache"]["rows"])}
        cache["domains"] = [str(name) for name in cache["domains"]]
    log = folder / "rounds.jsonl"
    rounds, notes = read_lines(log) if log.exists() else ([], ["rounds.jsonl is missing."])
    with content_of(log):
        folds = [_fold(rounds, at, names) for at, names in enumerate(held_out)]
    file = folder / "summary.json"
    summary = read_object(file) if file.exists() else {}
    with content_of(file):
        if summary:
            pairs = zip(folds, summary["results"], strict=True)
            folds = [replace(fold, result=read_result(found)) for fold, found in pairs]
        seconds = {name: fraction(s) for name, s in summary.get("seconds", {}).items()}
        named = summary.get("cache", {}).get("file")
        private = summary.get("privacy") or {}
        epsilon, delta = (fraction(private.get(name)) for name in ("epsilon", "delta"))
    cache["dataset"] = dataset_of(cache, named)
    if not finished:
        wanted = settings.get("rounds", "?")
        notes.append(f"This run is not finished: {len(rounds)} of {wanted} rounds are done.")
        notes += checkpoint_doubts(folder) if adapters else []
    return RunData(
        name=folder.resolve().name,
        folder=folder,
        settings=settings,
        cache=cache,
        folds=tuple(folds),
        rounds_done=len(rounds),
        finished=finished,
        cache_file=Path(named) if isinstance(named, str) else None,
        seconds=seconds,
        label=label_or_note(folder, notes),
        notes=tuple(notes),
        privacy=None if epsilon is None or delta is None else (epsilon, delta),
        first_adapter=bool(described.get("first_adapter_sha256")),
    )


def read_result(found: dict[str, Any]) -> Result:
    """One entry of `results` as federate --json prints them."""

    def part(name: str, read: Callable[[dict[str, Any]], Part]) -> Part | None:
        return read(found[name]) if found.get(name) else None

    best = found["best_round"]
    return Result(
        None if best is None else whole(best),
        _scores(found),
        part("zero_shot", _scores),
        part("gate", lambda gate: Gate(
            fraction(gate["distance"]), whole(gate["changed"]), whole(gate["tested"])
        )),
        part("bytes_a_round", lambda sent: Traffic(
            whole(sent["up"]), whole(sent["down"]), sent["clip"] and whole(sent["clip"])
        )),
        part("val_changed", lambda rows: {
            **{name: whole(rows[name]) for name in ("lost", "won")},
            "start": fraction(rows.get("start")),
        }),
        part("closed_form", _closed_form),
        {str(name): whole(count) for name, count in (found.get("client_rows") or {}).items()},
    )  # fmt: skip


def label_or_note(folder: Path, notes: list[str]) -> Label:
    """The folder's label; of a damaged one a note, for it decides nothing."""
    try:
        return read_label(folder)
    except ConfigError as error:
        notes.append(f"The name and tags are left out: {error}.")
        return Label()


def dataset_of(cache: Mapping[str, Any], file: object) -> str | None:
    """The name of a cache's data set; of a cache that has none, its file's."""
    name = cache.get("dataset")
    if name is None and isinstance(file, str) and file:
        name = Path(file).stem
    return None if name is None else str(name)


def mean_of(results: Sequence[Result], which: str, start: bool = False) -> float | None:
    """Mean over results of unseen, participants or overall, where known; of zero-shot's if start.

    which="tested" is unseen, or participants where nothing was held out.
    """
    sides = [result.zero_shot if start else result.scores for result in results]
    found = [
        side.participants if which == "tested" and side.unseen is None
        else getattr(side, "unseen" if which == "tested" else which)
        for side in sides
        if side is not None
    ]  # fmt: skip
    return mean([value for value in found if value is not None])


def _fold(rounds: Sequence[dict], at: int, held_out: tuple[str, ...]) -> FoldData:
    numbers = [whole(line["round"]) for line in rounds]
    found = [line["folds"][at] for line in rounds]
    kept = next(
        ((n, f) for n, f in zip(reversed(numbers), reversed(found), strict=True) if f["best"]), None
    )
    return FoldData(
        ", ".join(held_out) or "none",
        held_out,
        *(
            _curves(numbers, [fold[key] or {} for fold in found])
            for key in ("val_accuracy", "test_accuracy", "train_loss")
        ),
        _so_far(*kept, held_out) if kept else None,
    )


def _curves(rounds: Sequence[int], values: Sequence[dict]) -> dict[str, Curve]:
    points: dict[str, tuple[list[int], list[float | None]]] = {}
    for round, by_name in zip(rounds, values, strict=True):
        for name, value in by_name.items():
            at, numbers = points.setdefault(name, ([], []))
            at.append(round)
            numbers.append(fraction(value))
    return {name: Curve(tuple(at), tuple(numbers)) for name, (at, numbers) in points.items()}


def _so_far(round: int, found: dict[str, Any], held_out: tuple[str, ...]) -> Result:
    tested = {name: fraction(v) for name, v in (found["test_accuracy"] or {}).items()}
    val_accuracy = mean_of_all(fraction(value) for value in found["val_accuracy"].values())
    known = {name: value for name, value in tested.items() if value is not None}
    means = summarise(known, held_out) if len(known) == len(tested) else dict.fromkeys(ACCURACIES)
    scores = Scores(**means, val_accuracy=val_accuracy, per_domain=tested, per_client={})
    return Result(round, scores, None, None)


def _closed_form(found: dict[str, Any]) -> ClosedForm:
    sent, clients = found["bytes"], found.get("clients")
    return ClosedForm(
        _head(found),
        fraction(found.get("temperature")),
        str(found["tuned_on"]),
        whole(found["rows"]),
        *(whole(sent[way]) for way in ("up", "down")),
        None if clients is None else whole(clients),
        tuple(_head(each) for each in found["tried"]),
    )


def _head(found: dict[str, Any]) -> Head:
    shape, strength = (fraction(found[name]) for name in ("shape", "strength"))
    if shape is None or strength is None:
        raise ValueError("a closed-form head has no finite shape and strength")
    return Head(str(found["solver"]), shape, strength, fraction(found.get("accuracy")))


def _scores(found: dict[str, Any]) -> Scores:
    clients = found.get("clients") or {}
    return Scores(
        *(fraction(found.get(name)) for name in (*ACCURACIES, "val_accuracy")),
        {str(name): fraction(value) for name, value in found["per_domain"].items()},
        {str(name): fraction(value) for name, value in clients.get("accuracy", {}).items()},
        *(fraction(found.get(name)) for name in ("macro_f1", "calibration_error")),
        fraction(clients.get("worst")),
    )
