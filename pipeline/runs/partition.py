"""The division of rows among clients and the expected cost of a run, before it trains."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from cache.table import FeatureTable
from pipeline.federation.clients import ClientSplit
from pipeline.federation.closed_form import with_closed_form
from pipeline.federation.evaluate import score
from pipeline.federation.local import Engine
from pipeline.federation.plan import Fold, Plan, rounds_of, steps_a_round
from pipeline.federation.training import advance, begin, to_device
from pipeline.machine import threads
from pipeline.runs.notes import few
from pipeline.runs.outcomes import bytes_a_round
from pipeline.runs.results import aligned
from pipeline.terminal import counted

LOG = logging.getLogger(__name__)
USES = ("train", "val", "test")
TRIED = 4  # steps of each lane that are timed
SHOWN = 40  # clients and classes in text for people
SHADES = " \u2591\u2592\u2593\u2588"  # for a class's rows at a client, from none to the most


@dataclass(frozen=True)
class Client:
    """One client: its rows by use, its steps in a round, and its rows of each class."""

    name: str
    domain: str
    rows: dict[str, int]
    steps: int
    classes: np.ndarray  # (C,) int64, of all uses


@dataclass(frozen=True)
class Partition:
    """The clients and trainings of a run. `folds` are each training's held-out domains, or "none".

    up, down   bytes of all rounds and trainings
    seconds    expected training time here, measured on a few steps; None: not measured
    """

    dataset: str
    model: str
    class_names: tuple[str, ...]
    clients: tuple[Client, ...]
    folds: tuple[str, ...]
    rounds: int
    steps: int  # of all clients and trainings in a round
    up: int
    down: int
    seconds: float | None
    notes: tuple[str, ...]


def look(
    table: FeatureTable, plan: Plan, backend: str, device: torch.device, notes: Sequence[str],
    *, dataset: str, timed: bool = True,
) -> Partition:  # fmt: skip
    """Describes a plan's partition of a table, and the cost of training it.

    notes    warnings of pipeline.runs.federate.doubts
    dataset  name of the data set
    timed    whether to train a few steps, and discard them, to measure the time
    """
    config, model = plan.folds[0].config, table.identity.get("model")
    splits = {client.name: client for fold in plan.folds for client in fold.clients}
    order = list(table.domain_names)
    steps = {
        (lane.fold, plan.folds[lane.fold].clients[lane.client].name): steps_a_round(lane)
        for lane in plan.lanes
        if lane.client is not None and not lane.personal
    }
    own = {name: count for (_, name), count in steps.items()}
    clients = [
        _client(table, split, own.get(name, 0))
        for name, split in sorted(splits.items(), key=lambda e: order.index(e[1].domain_name))
    ]
    share = config.client_fraction * rounds_of(config)
    sent = [_sums_sent(table, fold) if plan.method.solved else bytes_a_round(plan, fold, model)
            for fold in plan.folds]  # fmt: skip
    return Partition(
        dataset,
        model or "unnamed",
        tuple(table.class_names),
        tuple(clients),
        tuple(",".join(fold.held_out) or "none" for fold in plan.folds),
        rounds_of(config),
        int(plan.steps.sum()),
        *(int(share * sum(each[way] for each in sent)) for way in ("up", "down")),
        expected_seconds(table, plan, backend, device) if timed and plan.method.trains else None,
        tuple(notes),
    )


def expected_seconds(
    table: FeatureTable, plan: Plan, backend: str, device: torch.device
) -> float | None:
    """Expected time of a plan's rounds here: rounds * (steps * time of a step + scoring).

    Two rounds of TRIED steps a lane are trained and discarded: the first compiles the kernels, the
    second is timed, with the scoring that its `eval` asks for.
    """
    cached = to_device(table, device)
    plan = with_closed_form(plan, cached)
    most = TRIED * plan.folds[0].config.batch
    short = replace(plan, lanes=tuple(replace(e, train=e.train[:most]) for e in plan.lanes))
    done = int(short.steps.sum())
    if not done:
        return None
    engine = Engine(short, cached, backend)
    with threads(device, table.features.shape[1], backend):
        progress, _ = advance(engine, begin(short, cached))
        before = _clock(device)
        progress, _ = advance(engine, progress)
        both = _clock(device) - before
        before = _clock(device)
        score(plan, progress.best, cached, "val", backend)
        scoring = _clock(device) - before
    training = max(both - scoring, 0.0) * int(plan.steps.sum()) / done
    return rounds_of(plan.folds[0].config) * (training + min(scoring, both))


def text_of(found: Partition) -> str:
    """The partition as text: a line for each client, with its rows of each class as shades."""
    names = found.class_names
    head = ["client", "rows", *USES, "steps a round", "classes"]
    shown = found.clients[:SHOWN]
    each = max(1, -(-len(names) // SHOWN))  # classes in a column of the picture
    most = max((int(_joined(client.classes, each).max()) for client in shown), default=0)
    rows = [
        [client.name, f"{sum(client.rows.values()):,}", *(f"{client.rows[u]:,}" for u in USES),
         f"{client.steps:,}", f"{np.count_nonzero(client.classes)} of {len(names)}"]
        for client in shown
    ]  # fmt: skip
    lines = aligned([head, *rows]).split("\n")
    pictures = ["".join(_shade(n, most) for n in _joined(c.classes, each)) for c in shown]
    title = "rows by class" if each == 1 else f"rows by {each} classes"
    table = [f"{lines[0]}  {title}", lines[1]]
    table += [f"{line}  |{picture}|" for line, picture in zip(lines[2:], pictures, strict=True)]
    left = len(found.clients) - len(shown)
    if left:
        table.append(f"and {left} more clients; the page has them")
    return "\n".join(
        [*table, f"classes: {few(list(names), 8)}; {SHADES[-1]} is {most:,} rows", *costs_of(found)]
    )


def costs_of(found: Partition) -> Iterator[str]:
    """The expected cost of training, in sentences."""
    steps = f"of {found.steps:,} steps" if found.steps else "without steps"
    yield (
        f"held out: {few(list(found.folds), 8)} ({counted(len(found.folds), 'training')}); "
        f"{counted(found.rounds, 'round')} {steps}"
    )
    if found.up or found.down:
        yield f"sent in all: {size(found.up)} up, {size(found.down)} down"
    if found.seconds is not None:
        yield f"expected time here: {duration(found.seconds)}, measured on a few steps"


def record_of(found: Partition) -> dict[str, Any]:
    """The partition as a JSON object."""
    return {
        "dataset": found.dataset, "model": found.model, "class_names": list(found.class_names),
        "held_out": list(found.folds), "rounds": found.rounds, "steps_a_round": found.steps,
        "bytes": {"up": found.up, "down": found.down}, "seconds": found.seconds,
        "notes": list(found.notes),
        "clients": [
            {"client": c.name, "domain": c.domain, **c.rows, "steps_a_round": c.steps,
             "by_class": c.classes.tolist()}
            for c in found.clients
        ],
    }  # fmt: skip


def size(count: int) -> str:
    """396 kB, 1.2 GB: bytes in three digits."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"


def duration(seconds: float) -> str:
    """about 12 s, 4 minutes, 3.5 hours: no finer than an estimate is."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"


def _client(table: FeatureTable, split: ClientSplit, steps: int) -> Client:
    rows = np.concatenate([getattr(split, use) for use in USES])
    counts = np.bincount(table.labels[rows], minlength=len(table.class_names))
    uses = {use: len(getattr(split, use)) for use in USES}
    return Client(split.name, split.domain_name, uses, steps, counts)


def _sums_sent(table: FeatureTable, fold: Fold) -> dict[str, int]:
    """Bytes of closed-form sums, which every client sends and receives once."""
    classes, width = len(table.class_names), table.features.shape[1]
    numbers = classes * (width + 1) + width * (width + 1) // 2
    return dict.fromkeys(("up", "down"), 8 * numbers * len(fold.clients))


def _joined(counts: np.ndarray, each: int) -> np.ndarray:
    """Sums over groups of `each` classes."""
    return np.add.reduceat(counts, np.arange(0, len(counts), each)) if len(counts) else counts


def _shade(count: int, most: int) -> str:
    return SHADES[-(-int(count) * (len(SHADES) - 1) // max(most, 1))]


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
