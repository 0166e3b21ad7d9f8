"""What a federation beyond one machine reaches: sites' counts put together, and its results."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cache.table import FeatureTable, domain_index
from kernels.backends import pick_device
from kernels.heads.plain import size
from pipeline.federation.clients import NO_ROWS, ClientSplit
from pipeline.federation.evaluate import (
    Cached,
    mean,
    score,
    summarise,
    zero_shot_accuracy,
    zero_shot_top1,
)
from pipeline.federation.methods import METHODS
from pipeline.federation.payload import clip_bytes, payload_bytes
from pipeline.federation.plan import Fold, Plan, plan_of
from pipeline.federation.record import FoldRound, held_out_name
from pipeline.federation.round import FoldReport
from pipeline.federation.state import State
from pipeline.federation.training import Chosen, Progress, to_device
from pipeline.flower.call import Federation, Heard
from pipeline.runs.federate import ENCODED_BY
from pipeline.runs.metrics import spread
from pipeline.runs.outcomes import solved

Right = Mapping[str, Mapping[str, tuple[int, int]]]
"""By client and use ("val", "test", "train"): rows answered right, of how many."""


class Unseen(NamedTuple):
    """The held-out domains, where the server has their rows."""

    plan: Plan
    cached: Cached
    zero_shot: dict[str, float]


class Reached(NamedTuple):
    """A run so far."""

    progress: Progress
    zero_shot: Right
    unseen_zero_shot: dict[str, float]
    compared: dict[str, float]  # in the chosen round: accuracy by domain, or -loss by client
    right: Right  # likewise, by client


def rows_unseen(fed: Federation, held: FeatureTable | None) -> Unseen | None:
    """What the server tests on itself. Raises CacheError when its table lacks a held-out domain."""
    names = fed.config.held_out[0]
    if held is None or not names:
        return None
    splits = tuple(
        ClientSplit(name, at, name, at, NO_ROWS, NO_ROWS, np.flatnonzero(held.domains == at))
        for name in names
        for at in [domain_index(held, name)]
    )
    nobody = ClientSplit("", 0, "", 0, NO_ROWS, NO_ROWS, NO_ROWS)
    plan = plan_of(fed.config, fed.kind, len(fed.domains), [(names, (nobody,), splits)])
    cached = to_device(held, pick_device("cpu"))
    right = (zero_shot_top1(cached) == cached.labels).cpu().numpy()
    return Unseen(plan, cached, zero_shot_accuracy(plan.folds[0], right))


def scored(
    fed: Federation, unseen: Unseen | None, reached: Reached, state: State,
    heard: Mapping[str, Heard], told: FoldReport,
) -> tuple[Reached, FoldRound]:  # fmt: skip
    """The run after one more round, and its line.

    state  after that round;    heard  the answers to the next one, which tell what it reaches
    A round is better by the mean over the domains (clients, of losses) that both it and the chosen
    round tell of: a site that has gone takes its accuracy and losses with it.
    """
    right = {name: one.client.counts("right") for name, one in heard.items()}
    val, chosen = by_domain(fed, right, "val"), reached.progress.chosen[0]
    losses = {n: one.client.val_loss for n, one in heard.items() if one.client.val}
    finite = {n: loss for n, loss in losses.items() if loss is not None}
    by_loss, before = fed.config.choose == "loss", reached.compared
    now = {n: -loss for n, loss in finite.items()} if by_loss else val
    common = [name for name in now if name in before]
    better = (
        chosen is None
        or fed.config.choose == "last"
        or (bool(common) and mean([now[n] for n in common]) > mean([before[n] for n in common]))
    )
    every = fed.config.eval == "every"
    test = by_domain(fed, right, "test") if better or every else {}
    if unseen is not None and test:
        test |= score(unseen.plan, state["server"], unseen.cached, "test", "torch")[0]
    round, adapter = reached.progress.rounds_done, reached.progress.best
    if better:
        loss = mean(list(finite.values())) if by_loss else None
        chosen = Chosen(round, mean(list(val.values())), test, loss)
        reached, adapter = reached._replace(compared=now, right=right), state["server"]
    line = FoldRound(
        held_out_name(fed.config.held_out[0]), told.losses, val, better,
        (test or None) if fed.config.eval != "last" else None,
        (by_domain(fed, right, "train") or None) if every else None, told.rejected,
        losses if by_loss else None,
    )  # fmt: skip
    return reached._replace(progress=Progress(round + 1, state, adapter, (chosen,))), line


def by_domain(fed: Federation, right: Right, use: str) -> dict[str, float]:
    """Accuracy by domain; a domain's rows count alike, whichever client's they are."""
    sums: dict[str, np.ndarray] = {}
    for name, domain in fed.clients.items():
        counted = right.get(name, {}).get(use, (0, 0))
        if counted[1]:
            sums[domain] = sums.get(domain, np.zeros(2, np.int64)) + np.array(counted)
    return {name: float(r / n) for name, (r, n) in sums.items()}


def cache_facts(fed: Federation, held: FeatureTable | None) -> dict[str, Any]:
    """What config.json and results say of the sites' caches; see federate.cache_facts."""
    one = _most_stated(list(fed.facts.values()))
    encoder = {**fed.demand, "preprocessing": one.get("preprocessing")}
    of_held = held.content_sha256 if held is not None else None
    return {
        "rows": sum(one.train + one.val + one.test for one in fed.stated.values()),
        "width": fed.kind.width,
        "classes": fed.kind.classes,
        "domains": list(fed.domains),
        "dataset": one.get("dataset"),
        "model": one.get("model"),
        "fingerprint": None,
        "content_sha256": of_held,
        "encoder": {
            **{n: encoder.get(n) for n in ("class_names", *ENCODED_BY)},
            **{n: v for n, v in encoder.items() if n == "towers"},
        },
    }


def _most_stated(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each field the value that most clients' sites state; of as many, the first client's."""
    found = {}
    for name in ("dataset", "model", "preprocessing"):
        texts = [json.dumps(one.get(name), sort_keys=True) for one in facts]
        found[name] = facts[texts.index(Counter(texts).most_common(1)[0][0])].get(name)
    return found


def result(fed: Federation, reached: Reached, model: str | None, fold: Fold) -> dict[str, Any]:
    """What `federate --json` lists under "results", as far as counts go.

    Without rows of features there is no F1, calibration or gate. model: of the features.
    """
    held_out, chosen = fed.config.held_out[0], reached.progress.chosen[0]
    method = METHODS[fed.config.method]
    assert chosen is not None  # the first round is better than none
    start = by_domain(fed, reached.zero_shot, "test") | reached.unseen_zero_shot
    down = one_way = len(fed.clients) * payload_bytes(size(fed.kind), fed.config.payload)
    if method.controls:  # c - c_k to each; the server works out c_k's way itself
        down += len(fed.clients) * payload_bytes(size(fed.kind), "fp32")
    if fed.config.start == "closed-form":  # what whitens features, of each site anew
        down += len(fed.groups) * payload_bytes(fed.kind.width * (fed.kind.width + 1), "fp32")
    clip = clip_bytes(model or "")
    of_clip = clip and clip * 2 * len(fed.clients)
    return {
        "held_out": held_out_name(held_out),
        "best_round": chosen.round,
        "chosen_by": fed.config.choose,
        "val_accuracy": chosen.val_accuracy,
        **({} if chosen.val_loss is None else {"val_loss": chosen.val_loss}),
        "val_changed": None,
        "zero_shot": {
            **summarise(start, held_out),
            "per_domain": start,
            "val_accuracy": mean(list(by_domain(fed, reached.zero_shot, "val").values())),
            "clients": _by_client(reached.zero_shot),
        },
        **summarise(chosen.test_accuracy, held_out),
        "per_domain": chosen.test_accuracy,
        "clients": _by_client(reached.right),
        "gate": None,
        "personalised": None,
        "bytes_a_round": solved(fold)["bytes"] | {"clip": None}
        if method.solved
        else {"up": one_way, "down": down, "clip": of_clip},
        **({"closed_form": solved(fold)} if fold.closed_form else {}),
    }


def _by_client(right: Right) -> dict[str, Any]:
    counts = {name: own["test"] for name, own in right.items() if own.get("test", (0, 0))[1]}
    accuracy = {name: float(r / n) for name, (r, n) in counts.items()}
    figures = spread(list(accuracy.values()), [n for _, n in counts.values()])
    return {**figures, "accuracy": accuracy}
