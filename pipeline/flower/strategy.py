"""Federated training as a Flower Strategy: the servers' half of a round, by our own aggregation."""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

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
from pipeline.federation.methods import METHODS
from pipeline.federation.methods.closed_form import Sums, unpacked
from pipeline.federation.methods.guard import unsound
from pipeline.federation.payload import Encoded, decode, encode, payload_of
from pipeline.federation.plan import Plan, plan_of, rounds_of
from pipeline.federation.record import FoldRound, RoundReport
from pipeline.federation.round import FoldReport, settle
from pipeline.federation.state import State, first_state, model_rows
from pipeline.federation.training import Progress
from pipeline.flower.call import Asked, Federation, Heard, ask_round, hear, messages_of
from pipeline.flower.run_config import OfRun
from pipeline.flower.scores import Reached, Unseen, scored
from pipeline.flower.site import KEPT
from pipeline.flower.sums import SUMS, chosen, to_score
from pipeline.runs.checkpoint import to_tensors
from pipeline.runs.folder import RunFolder
from pipeline.runs.results import round_line
from pipeline.settings import RunConfig
from pipeline.terminal import counted

LOG = logging.getLogger(__name__)


class FedCLIP(Strategy):
    """Any method of docs/methods.md over Flower's messages, into a run folder.

    The round is that of pipeline/federation/round.py, its two halves on different machines. A train
    message carries the server's adapter, and its reply tells how that adapter does on the site's
    rows: what round r reached is known with the replies of round r + 1, so that a round is one
    message a site. An evaluate message is sent after the last round only. Where there is a
    closed-form head two messages come before round 0: for sums, and for how heads do that can be
    made of them. What a liar among sums can do is bounded (sums.checked); no rule survives one.

    known      whose clients each site has (call.introduce);    unseen  what the server tests itself
    described  of the run, for its checkpoints;    folder  open while it trains
    Rounds raise ConfigError when fewer than terms.least sites reply, and when training diverged.
    """

    def __init__(
        self, fed: Federation, known: dict[int, list[str]], unseen: Unseen | None, terms: OfRun,
        folder: RunFolder, described: dict[str, Any],
    ) -> None:  # fmt: skip
        self.fed, self.known, self.unseen, self.terms = fed, known, unseen, terms
        solved = METHODS[fed.config.method].solved
        self.before = 2 if solved or fed.config.start == "closed-form" else 0
        self.rounds = self.before + (0 if solved else fed.config.rounds)  # train messages
        self.folder, self.described = folder, described
        self.left_out: dict[str, dict[str, Any]] = {}
        """By client: how often, when first, why then."""
        self.plan = _plan(fed)
        self.state = first_state(self.plan, fed.text, None)
        self.asked: Asked = {}
        self.work: dict[str, float] = {}
        self.told = FoldReport({}, {}, None)  # of the last round that was aggregated
        self.reached: Reached
        self.sums: dict[str, dict[str, Sums]] = {}  # sums, refit: by client
        self.metric: torch.Tensor | None = None

    def summary(self) -> None:
        """Says who takes part."""
        LOG.info(
            f"{len(self.known)} sites with clients {', '.join(self.fed.clients)}; run in "
            f"{self.folder.folder}"
        )

    def arrays(self) -> ArrayRecord:
        """The server's adapter, (P,) float32."""
        return ArrayRecord({"adapter": self.state["server"][0]})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """A message to each site that is connected, with the work of its clients."""
        round = server_round - 1 - self.before
        if round < 0:  # nobody trains yet
            if not self.sums:
                return self._messages("train", 0, grid, SUMS)
            solve, sums = to_score(self.plan.folds[0], self.sums["sums"])
            return self._messages("train", 0, grid, solve, sums)
        self.work = _work(self.plan, round)
        return self._messages("train", round, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """The next adapter by the method's own rule, and the mean training loss.

        Of sums nothing yet; then the head, and its cross-entropy on the rows that chose.
        """
        round = server_round - 1 - self.before
        heard, absent = self._hear(max(round, 0), replies)
        if round > 0:
            self._score(heard, absent, round)
        elif few := self._too_few(0, heard, absent):
            raise ConfigError(few)
        if server_round == 1:
            self._begin(heard)
        if round < 0:
            return self._solve(heard, absent)
        self._settle(round, heard, absent)
        losses = list(self.told.losses.values())
        return self.arrays(), MetricRecord({"train-loss": mean(losses)} if losses else {})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """After the last round a message to each site, else none: see the class."""
        if server_round < self.rounds:
            return []
        self.work = {}
        return self._messages("evaluate", server_round - self.before, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """What the last round reached; None after the others."""
        if server_round < self.rounds:
            return None
        round = server_round - self.before
        heard, absent = self._hear(round, replies)
        self._score(heard, absent, round)
        kept = self.reached.progress.chosen[0]
        found = None if kept is None else kept.val_accuracy
        return MetricRecord({} if found is None else {"val-accuracy": found})

    def _messages(
        self, kind: str, round: int, grid: Grid, solve: str = "",
        sums: Mapping[str, torch.Tensor] = {},  # noqa: B006
    ) -> list[Message]:  # fmt: skip
        payload, server = payload_of(self.fed.config), self.state["server"][0]
        adapter = encode(server if payload == "fp32" else server - self.state["origin"][0], payload)
        shifts = {}
        if "control" in self.state and round:
            rows = control_received(self.plan, self.state)[0] - self.state["controls"]
            names = _names(self.plan)
            shifts = {name: rows[at] for at, name in enumerate(names) if name in self.work}
        nodes = grid.get_node_ids()
        asks = ask_round(
            self.fed, self.known, nodes, round, self.work, adapter, shifts, solve, sums, self.metric
        )
        messages, self.asked = messages_of(asks, kind, self.terms.timeout)
        return messages

    def _hear(
        self, round: int, replies: Iterable[Message]
    ) -> tuple[dict[str, Heard], dict[str, str]]:
        heard, absent = hear(self.fed, self.known, replies, self.asked)
        self._leave_out(round, absent, "nothing from {}")
        return heard, absent

    def _begin(self, heard: Mapping[str, Heard]) -> None:
        # In a partition sites know their clients' rows by now, and the plan's lanes their order.
        config = self.fed.config
        self._start(_plan(self.fed, refit=config.refit == "yes" and not self.before))
        progress = Progress(0, self.state, model_rows(self.plan, self.state), (None,))
        zero_shot = {name: one.client.counts("zero_shot") for name, one in heard.items()}
        unseen = self.unseen.zero_shot if self.unseen else {}
        self.reached = Reached(progress, zero_shot, unseen, {}, {})

    def _start(self, plan: Plan) -> None:
        self.plan = plan
        state = first_state(plan, self.fed.text, None)
        self.state = {name: rows for name, rows in state.items() if name not in KEPT}

    def _solve(
        self, heard: Mapping[str, Heard], absent: Mapping[str, str]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """Keeps the sums of each client; then starts at the head that is chosen."""
        config, width = self.fed.config, self.fed.kind.width
        rejected = {**self.told.rejected, **absent}
        self.told = FoldReport({}, rejected, None)
        if not self.sums:
            self.sums = {
                kind: {
                    name: unpacked(one.solved[f"{kind}.{name}"], self.fed.kind.classes, width)
                    for name, one in heard.items()
                    if f"{kind}.{name}" in one.solved
                }
                for kind in ("sums", "refit")
            }
            return self.arrays(), MetricRecord()
        answers = {one.node: one.solved for one in heard.values()}
        found, metric = chosen(
            self.plan.folds[0], self.fed.text, float(self.fed.demand["logit_scale"]),
            self.sums["sums"], self.sums["refit"], list(answers.values()),
        )  # fmt: skip
        plan = _plan(self.fed, refit=config.refit == "yes")
        self._start(replace(plan, folds=(replace(plan.folds[0], closed_form=found),)))
        if METHODS[config.method].trains:
            self.metric = metric
        head = found.chosen
        LOG.info(f"{head.solver}, shape {head.shape:g}, strength {head.strength:.3g}")
        return self.arrays(), MetricRecord({"loss": head.loss} if head.rows else {})

    def _score(self, heard: Mapping[str, Heard], absent: Mapping[str, str], round: int) -> None:
        """Writes the round before this one, of which these replies tell what it reached."""
        few = self._too_few(round, heard, absent)
        if heard:
            self.reached, line = scored(
                self.fed, self.unseen, self.reached, self.state, heard, self.told
            )
            self._write(line, now=bool(few) or round == self.rounds - self.before)
        if few:
            raise ConfigError(few)

    def _write(self, line: FoldRound, *, now: bool) -> None:
        done, rounds = self.reached.progress.rounds_done, rounds_of(self.fed.config)
        self.folder.add_round(round_line(RoundReport(done - 1, (line,))))
        LOG.info(
            f"round {done - 1} of 0 to {rounds - 1}: {len(line.train_loss)} clients, validation "
            f"{mean(list(line.val_accuracy.values())) or 0:.4f}{', the best' * line.best}"
        )
        if now or self.folder.due():
            tensors, facts = to_tensors(self.plan, self.reached.progress)
            self.folder.checkpoint(tensors, {**facts, "belongs_to": self.described})

    def _too_few(
        self, round: int, heard: Mapping[str, Heard], absent: Mapping[str, str]
    ) -> str | None:
        sites, least = len({one.node for one in heard.values()}), max(self.terms.least, 1)
        if sites >= least:
            return None
        held = f"{self.folder.folder} holds what was reached. " if round else ""
        return (
            f"round {round}: {counted(sites, 'site')} answered, the run asks for {least}; {held}"
            + "; ".join(f"{name}: {why}" for name, why in absent.items())
        )

    def _leave_out(self, round: int, reasons: Mapping[str, str], what: str) -> None:
        """Counts who is left out of a round and warns the first time."""
        for name, why in reasons.items():
            if name not in self.left_out:
                LOG.warning(f"round {round}: {what.format(name)}: {why}")
                self.left_out[name] = {"times": 0, "first_round": round, "why": why}
            self.left_out[name]["times"] += 1

    def _settle(self, round: int, heard: Mapping[str, Heard], absent: Mapping[str, str]) -> None:
        """Aggregates what was heard; clients without an update are told of as rejected."""
        plan, config, names = self.plan, self.fed.config, _names(self.plan)
        work = self.work
        steps = steps_of_lanes(plan, np.array([work.get(name, 0.0) for name in names]))
        missing = {name: why for name, why in absent.items() if name in work}
        for at, name in enumerate(names):
            if name in heard and heard[name].update is None and steps[at]:
                missing[name] = "it sent no update"
            if name not in heard or heard[name].update is None:
                steps[at] = 0
        trained, outsized = _without_long(config, _trained(plan, self.state, heard, steps))
        long = {names[at]: why for at, why in outsized.items()}
        state, (told,) = settle(plan, self.state, self.state, trained, round)
        self._leave_out(round, {**long, **told.rejected}, "{} is left out")
        if told.diverged:
            raise ConfigError(told.diverged)
        # A loss that is not a number has no place in JSON; what came of it is rejected by name.
        finite = {name: loss for name, loss in told.losses.items() if math.isfinite(loss)}
        rejected = {**missing, **long, **told.rejected}
        self.state, self.told = state, told._replace(losses=finite, rejected=rejected)


def _trained(plan: Plan, state: State, heard: Mapping[str, Heard], steps: np.ndarray) -> Trained:
    """What clients sent, as train_lanes would return it."""
    names, payload = _names(plan), plan.folds[0].config.payload
    taking = sorted(np.flatnonzero(steps).tolist(), key=lambda at: (-steps[at], at))
    start = starts_of_lanes(plan, state, taking)
    sent = [decode(_update(heard[names[at]])) for at in taking]
    clients = torch.stack(sent) if sent else torch.empty_like(start)
    if payload != "fp32":
        clients = clients + start
    losses = [heard[names[at]].client.loss for at in taking]
    found = [math.nan if loss is None else loss for loss in losses]
    return Trained(taking, start, clients, torch.tensor([found], dtype=torch.float64), steps)


def _plan(fed: Federation, *, refit: bool = False) -> Plan:
    """The run's plan as far as a server knows it: how many rows a client trains on, not which.

    refit  with its validation rows
    """
    clients = tuple(
        ClientSplit(name, at, domain, at, rows, NO_ROWS, NO_ROWS)
        for name, domain in fed.clients.items()
        for at in [fed.domains.index(domain)]
        # One number seen that many times: a site's claim of 10^8 rows takes no memory.
        for stated in [fed.stated[name]]
        for count in [stated.train + (stated.val if refit else 0)]
        for rows in [np.broadcast_to(np.int64(0), count)]
    )
    return plan_of(fed.config, fed.kind, len(fed.domains), [(fed.config.held_out[0], clients, ())])


def _names(plan: Plan) -> list[str]:
    """Whose each lane is."""
    return [plan.folds[0].clients[lane.client].name for lane in plan.lanes]


def _work(plan: Plan, round: int) -> dict[str, float]:
    shares = zip(_names(plan), attendance(plan, round).tolist(), strict=True)
    return {name: share for name, share in shares if share}


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
