"""The server of a federation beyond one machine: the servers' half of its rounds, and its files."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cache.table import FeatureTable
from pipeline.errors import ConfigError
from pipeline.federation.clients import NO_ROWS, ClientSplit
from pipeline.federation.evaluate import mean
from pipeline.federation.local import (
    Trained,
    attendance,
    control_received,
    starts_of_lanes,
    steps_of_lanes,
)
from pipeline.federation.methods.guard import unsound
from pipeline.federation.payload import Encoded, decode, encode
from pipeline.federation.plan import Plan, plan_of
from pipeline.federation.record import FoldRound, RoundReport
from pipeline.federation.round import Told, settle
from pipeline.federation.state import State, first_state, model_rows
from pipeline.federation.training import Progress
from pipeline.flower.call import Exchange, Federation, Heard, ask_round, introduce
from pipeline.flower.limits import refuse_what_cannot_travel
from pipeline.flower.scores import Reached, Unseen, cache_facts, result, rows_unseen, scored
from pipeline.flower.site import KEPT
from pipeline.runs.checkpoint import to_tensors
from pipeline.runs.federate import privacy
from pipeline.runs.folder import RunFolder, open_run
from pipeline.runs.results import mean_results, round_line
from pipeline.settings import RunConfig, as_json, run_id
from pipeline.settings_used import possible, unused

LOG = logging.getLogger(__name__)


class Terms(NamedTuple):
    """Where a run goes, and how it deals with sites that are late, lost or unlike."""

    least: int  # sites that must answer each round; fewer end the run
    runs: Path
    out: Path | None = None  # run folder; None: runs/<run_id>
    force: bool = False  # train again in a folder that holds a run


def serve(
    config: RunConfig, exchange: Exchange, online: Callable[[], list[int]],
    held: FeatureTable | None, terms: Terms,
) -> dict:  # fmt: skip
    """Trains by the sites that are online and returns what `federate --json` would print.

    exchange  asks sites and gathers what comes back in time;    online  the sites there are now
    held      a table with the held-out domains' rows, which the server tests on; None: no such test

    A round is that of pipeline/federation/round.py, its two halves on different machines. What a
    round's adapter reaches is told by the answers to the next one, so that a round is one message a
    site. Raises ConfigError for what cannot go to sites, and when fewer than terms.least answer.
    """
    refuse_what_cannot_travel(config)
    for note in unused(possible(config)):
        LOG.warning(note)
    started = time.perf_counter()
    fed, known, strangers = introduce(config, exchange, online(), held, terms.least)
    described = {
        "settings": as_json(config),
        "cache": cache_facts(fed, held),
        "backend": "sites",
        "device": "sites",
        "first_adapter_sha256": None,
        "sites": {name: facts.get("content_sha256") for name, facts in fed.facts.items()},
    }
    with open_run(terms.out or terms.runs / run_id(described)) as folder:
        folder.describe(described, force=terms.force)
        if folder.summary is not None:
            LOG.info(
                f"{folder.folder} is already finished; showing its results "
                "(--force trains it again)"
            )
            return folder.summary
        folder.describe(described, force=True)  # what was broken off begins anew
        for note in folder.notes:
            LOG.warning(note)
        LOG.info(
            f"{len(known)} sites with clients {', '.join(fed.clients)}; run in {folder.folder}"
        )
        run = _Run(fed, exchange, online, known, rows_unseen(fed, held), terms, folder, {})
        reached = _rounds(run, described)
        document = {
            "cache": described["cache"],
            "config": {**described["settings"], "backend": "sites", "device": "sites"},
            "results": (results := [result(fed, reached, described["cache"]["model"])]),
            "mean": mean_results(results),
            "privacy": privacy(config),
            "left_out": {
                "sites": {str(node): why for node, why in strangers.items()},
                "clients": run.left_out,
            },
            "run": str(folder.folder),
            "seconds": {"total": time.perf_counter() - started},
        }
        folder.finish(document)
        for name, out in run.left_out.items():
            LOG.warning(
                f"{name} was left out {out['times']} times in {config.rounds} rounds, first in "
                f"round {out['first_round']}: {out['why']}"
            )
    return document


class _Run(NamedTuple):
    fed: Federation
    exchange: Exchange
    online: Callable[[], list[int]]
    known: dict[int, list[str]]
    unseen: Unseen | None
    terms: Terms
    folder: RunFolder
    left_out: dict[str, dict[str, Any]]  # by client: how often, when first, why then; changed


def _leave_out(run: _Run, round: int, reasons: Mapping[str, str], what: str) -> None:
    """Counts who is left out of a round and warns the first time."""
    for name, why in reasons.items():
        if name not in run.left_out:
            LOG.warning(f"round {round}: {what.format(name)}: {why}")
            run.left_out[name] = {"times": 0, "first_round": round, "why": why}
        run.left_out[name]["times"] += 1


def _rounds(run: _Run, described: dict) -> Reached:
    fed, rounds = run.fed, run.fed.config.rounds
    plan = _plan(fed)
    state = first_state(plan, fed.text, None)
    work = _work(plan, 0)
    heard, absent = _ask(run, plan, state, 0, work)
    if few := _too_few(run, 0, heard, absent):
        raise ConfigError(few)
    plan = _plan(fed)  # in a partition sites know their clients' rows since round 0
    state = first_state(plan, fed.text, None)  # now with scaffold's rows in the lanes' order
    state = {name: rows for name, rows in state.items() if name not in KEPT}  # they stay at sites
    progress = Progress(0, state, model_rows(plan, state), (None,))
    zero_shot = {name: one.zero_shot for name, one in heard.items()}
    reached = Reached(progress, zero_shot, run.unseen.zero_shot if run.unseen else {}, {}, {})
    for round in range(rounds):
        state, told = _settled(run, plan, state, round, work, heard, absent)
        work = _work(plan, round + 1) if round + 1 < rounds else {}
        heard, absent = _ask(run, plan, state, round + 1, work)
        few = _too_few(run, round + 1, heard, absent)
        if heard:
            reached, line = scored(fed, run.unseen, reached, state, heard, told)
            _write(run, plan, reached, line, described, now=bool(few) or round + 1 == rounds)
        if few:
            raise ConfigError(few)
    return reached


def _write(
    run: _Run, plan: Plan, reached: Reached, line: FoldRound, described: dict, *, now: bool
) -> None:
    round, rounds = reached.progress.rounds_done - 1, run.fed.config.rounds
    run.folder.add_round(round_line(RoundReport(round, (line,))))
    LOG.info(
        f"round {round} of 0 to {rounds - 1}: {len(line.train_loss)} clients, validation "
        f"{mean(list(line.val_accuracy.values())) or 0:.4f}{', the best' * line.best}"
    )
    if now or run.folder.due():
        tensors, facts = to_tensors(plan, reached.progress)
        run.folder.checkpoint(tensors, {**facts, "belongs_to": described})


def _too_few(
    run: _Run, round: int, heard: Mapping[str, Heard], absent: Mapping[str, str]
) -> str | None:
    sites, least = len({one.node for one in heard.values()}), max(run.terms.least, 1)
    if sites >= least:
        return None
    return (
        f"round {round}: {sites} site(s) answered, the run asks for {least}; {run.folder.folder} "
        "holds what was reached. " + "; ".join(f"{name}: {why}" for name, why in absent.items())
    )


def _plan(fed: Federation) -> Plan:
    """The run's plan as far as a server knows it: how many rows a client trains on, not which."""
    clients = tuple(
        ClientSplit(name, at, domain, at, rows, NO_ROWS, NO_ROWS)
        for name, domain in fed.clients.items()
        for at in [fed.domains.index(domain)]
        # One number seen that many times: a site's claim of 10^8 rows takes no memory.
        for rows in [np.broadcast_to(np.int64(0), fed.stated[name].rows["train"])]
    )
    return plan_of(fed.config, fed.kind, len(fed.domains), [(fed.config.held_out[0], clients, ())])


def _names(plan: Plan) -> list[str]:
    """Whose each lane is."""
    return [plan.folds[0].clients[lane.client].name for lane in plan.lanes]


def _work(plan: Plan, round: int) -> dict[str, float]:
    shares = zip(_names(plan), attendance(plan, round).tolist(), strict=True)
    return {name: share for name, share in shares if share}


def _ask(
    run: _Run, plan: Plan, state: State, round: int, work: dict[str, float]
) -> tuple[dict[str, Heard], dict[str, str]]:
    payload, server = run.fed.config.payload, state["server"][0]
    adapter = encode(server if payload == "fp32" else server - state["origin"][0], payload)
    shifts = {}
    if "control" in state and round:
        rows = control_received(plan, state)[0] - state["controls"]
        shifts = {name: rows[at] for at, name in enumerate(_names(plan)) if name in work}
    heard, absent = ask_round(
        run.fed, run.exchange, run.known, run.online(), round, work, adapter, shifts
    )
    _leave_out(run, round, absent, "nothing from {}")
    return heard, absent


def _settled(
    run: _Run, plan: Plan, state: State, round: int, work: dict[str, float],
    heard: dict[str, Heard], absent: dict[str, str],
) -> tuple[State, Told]:  # fmt: skip
    """Aggregates what was heard; clients without an update stand in what is told as rejected."""
    names, config = _names(plan), run.fed.config
    steps = steps_of_lanes(plan, np.array([work.get(name, 0.0) for name in names]))
    missing = {name: why for name, why in absent.items() if name in work}
    for at, name in enumerate(names):
        if name in heard and heard[name].update is None and steps[at]:
            missing[name] = "it sent no update"
        if name not in heard or heard[name].update is None:
            steps[at] = 0
    taking = sorted(np.flatnonzero(steps).tolist(), key=lambda at: (-steps[at], at))
    start = starts_of_lanes(plan, state, taking)
    sent = [decode(_update(heard[names[at]])) for at in taking]
    clients = torch.stack(sent) if sent else torch.empty_like(start)
    if config.payload != "fp32":
        clients = clients + start
    losses = [math.nan if heard[name].loss is None else heard[name].loss for name in
              (names[at] for at in taking)]  # fmt: skip
    sums = torch.tensor([losses], dtype=torch.float64)
    trained, long = _without_long(config, Trained(taking, start, clients, sums, steps))
    outsized = {names[at]: why for at, why in long.items()}
    state, (told,) = settle(plan, state, state, trained, round)
    _leave_out(run, round, {**outsized, **told.rejected}, "{} is left out")
    if told.diverged:
        raise ConfigError(told.diverged)
    # A loss that is not a number has no place in JSON; what came of it is rejected by name.
    finite = {name: loss for name, loss in told.losses.items() if math.isfinite(loss)}
    rejected = {**missing, **outsized, **told.rejected}
    return state, told._replace(losses=finite, rejected=rejected)


def _without_long(config: RunConfig, trained: Trained) -> tuple[Trained, dict[int, str]]:
    """What was trained without updates that are outsized as they are, however many rows each has.

    settle measures updates by their mean step, and a site says itself how many steps it made. The
    second value says why, by lane. With clip a long update is cut, and does not depend on others'.
    """
    wrong = {} if config.clip else unsound(trained.clients, trained.start)
    if len(wrong) in (0, len(trained.lanes)):  # of nobody's sound update settle says more
        return trained, {}
    keep = [k for k in range(len(trained.lanes)) if k not in wrong]
    why = {trained.lanes[k]: reason for k, reason in wrong.items()}
    steps = trained.steps.copy()
    steps[list(why)] = 0
    lanes = [trained.lanes[k] for k in keep]
    rest = Trained(
        lanes, trained.start[keep], trained.clients[keep], trained.losses[:, keep], steps
    )
    return rest, why


def _update(one: Heard) -> Encoded:
    assert one.update is not None
    return one.update
