"""A whole federated round as one CUDA graph: start, steps, averages and answers in one replay.

A round is some 450 launches of a few microseconds each; launched one by one from Python they take
longer than they run. All that differs between two rounds of a plan is copied into tensors that the
graph reads: the servers' adapters, the rows' order, and the optimizer's settings. As every round
begins with a fresh Adam, its bias corrections are part of those settings and not of a state; lanes
are sorted by steps, so a step launches programs for those that have rows: nothing is padded.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.adapter import AdamSettings
from kernels.answers.gpu import answer, questions
from kernels.heads.plain import Kind, attention_state, size
from kernels.step.gpu import (
    live_lanes,
    set_rows,
    set_settings,
    take_steps,
    workspace,
)

Average = Callable[[Tensor, Sequence[float]], Tensor]
"""(K, P) clients' adapters and their shares -> (P,); must not wait for the device."""
Outsized = Callable[[Tensor], Tensor]
"""(S, K) update lengths a step, 0 for none -> (S, K) bool; must not wait for the device."""


class Layout(NamedTuple):
    """What is the same in every round of a plan."""

    kind: Kind  # the released adapter
    starts: Sequence[int]  # for each lane the server it starts from
    live: Sequence[int]  # for each step how many lanes have rows; they come first
    batch: int
    members: Sequence[Sequence[int]]  # for each server its lanes, in client order
    shares: Sequence[Sequence[float]]  # of those
    asked: Sequence[Tensor]  # for each server (n_s,) int64: rows that its next adapter answers


class Round(NamedTuple):
    """What a round made."""

    servers: Tensor  # (S, P) float32: the next adapters
    losses: Tensor  # (T, L) float32
    answers: list[Tensor]  # for each server (n_s,) int64: classes, by its next adapter
    sound: bool  # whether every lane's adapter is finite and none outsized; else use nothing here


class RoundGraph:
    """The rounds of one plan. It owns the memory they run in and is used by one thread."""

    def __init__(
        self,
        layout: Layout,
        features: Tensor,
        labels: Tensor,
        unit_text: Tensor,
        logit_scale: float,
        average: Average,
        outsized: Outsized,
    ) -> None:
        """On CUDA this runs a round once, which compiles its kernels, and captures it.

        features (N, D) float32, labels (N,) int64, unit_text (C, D) float32: as adapter_steps has
        them, on one device. On the CPU, under Triton's interpreter, rounds run without a graph.
        """
        device, lanes = features.device, len(layout.starts)
        self.layout, self.logit_scale = layout, float(logit_scale)
        self.average, self.outsized = average, outsized
        self.data = features.contiguous(), labels.contiguous(), unit_text.contiguous()
        self.servers = torch.zeros(len(layout.members), size(layout.kind), device=device)
        self.following = torch.zeros_like(self.servers)
        self.clients = torch.zeros(lanes, size(layout.kind), device=device)
        self.starts = torch.tensor(layout.starts, device=device)
        self.members = [torch.tensor(m, device=device) for m in layout.members]
        self.work = workspace(len(layout.live), lanes, layout.batch, features)
        self.work.rows.zero_()  # what the round before the capture trains on: row 0
        self.work.optimizer.fill_(1)
        self.work.losses.zero_()  # those of lanes without rows are never written
        self.asked = questions(layout.asked, features)
        self.losses = torch.zeros(len(layout.live), lanes, device=device)
        self.sound = torch.ones((), dtype=torch.bool, device=device)
        self.paces = _pace_table(layout).to(device)
        self.graph = self._capture() if device.type == "cuda" else None
        self.latest: Round | None = None

    def replay(self, servers: Tensor, rows: Tensor, settings: AdamSettings) -> Round:
        """One round from the adapters `servers` (S, P); rows (T, L, B) and settings as elsewhere.

        Raises ValueError for rows that are not live in the steps that were captured.
        """
        if tuple(live_lanes(rows)) != tuple(self.layout.live):
            raise ValueError(
                "RoundGraph: the lanes that have rows in each step are not those it was made for"
            )
        self.servers.copy_(servers)
        set_rows(self.work, rows)
        set_settings(self.work, settings)
        if self.graph is None:
            self._round()
        else:
            self.graph.replay()
        self.latest = Round(
            self.following.clone(),
            self.losses.clone(),
            [self.asked.answers[places] for places in self.asked.places],
            bool(self.sound),
        )
        return self.latest

    def answers_of(self, servers: Tensor) -> list[Tensor] | None:
        """The answers of the adapters that the latest replay returned; None for any others."""
        if self.latest is None or self.latest.servers is not servers:
            return None
        return self.latest.answers

    def _round(self) -> None:
        """All device work of a round, from and into this object's tensors."""
        kind = self.layout.kind
        torch.index_select(self.servers, 0, self.starts, out=self.clients)
        lanes_state = attention_state(kind, self.clients)
        take_steps(lanes_state, *self.data, self.work, self.layout.live, self.logit_scale)
        torch.sum(self.work.losses, dim=2, out=self.losses)
        lengths = torch.zeros_like(self.paces)
        for s, (lanes, shares) in enumerate(zip(self.members, self.layout.shares, strict=True)):
            clients = self.clients.index_select(0, lanes)
            self.following[s].copy_(self.average(clients, shares))
            updates = clients.sub_(self.servers[s])
            lengths[s, : len(shares)] = torch.linalg.vector_norm(updates, dim=1)
        # A length that is not finite may be one too long for float32: looked at closely elsewhere.
        lost = ~lengths.isfinite() | self.outsized(lengths * self.paces)
        self.sound.copy_(~lost.any())
        features, _, unit_text = self.data
        answer(attention_state(kind, self.following), features, unit_text, self.asked)

    def _capture(self) -> torch.cuda.CUDAGraph:
        # Outside the capture first, on another stream than the default one: compiling and loading
        # kernels is not allowed inside.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._round()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._round()
        return graph


def _pace_table(layout: Layout) -> Tensor:
    """(S, K) float32: 1 / steps of each server's lanes; 0 behind the shorter rows."""
    made = [sum(lane < live for live in layout.live) for lane in range(len(layout.starts))]
    table = torch.zeros(len(layout.members), max(map(len, layout.members)))
    for s, lanes in enumerate(layout.members):
        table[s, : len(lanes)] = 1 / torch.tensor([made[lane] for lane in lanes])
    return table
