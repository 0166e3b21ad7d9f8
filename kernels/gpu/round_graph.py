"""A whole federated round as one CUDA graph: start, steps, averages and answers in one replay.

A round is some 450 launches of a few microseconds each; launched one by one from Python they take
longer than they run. All that differs between two rounds of a plan is copied into tensors that the
graph reads: the servers' adapters, the rows' order, and the optimizer's settings. As every round
begins with a fresh Adam, its bias corrections are part of those settings and not of a state; lanes
are sorted by steps, so a step launches programs for those that have rows: nothing is padded.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.adapter import AdamSettings
from kernels.answers.gpu import answer, answers_by_adapter, questions
from kernels.heads.plain import Kind, attention_state, size
from kernels.step.gpu import (
    live_lanes,
    set_rows,
    set_settings,
    take_steps,
    workspace,
)

TOGETHER = 128
"""Clients that are averaged at a time, 270 MB of them at D = 512: memory of the graph."""
Average = Callable[[Tensor, Sequence[float]], Tensor]
"""(K, G, P) clients' adapters of G servers, and the K shares that each of the servers gives its
own -> (G, P); must not wait for the device."""
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


class Group(NamedTuple):
    """Servers whose clients have the same shares: they are averaged together."""

    servers: Tensor  # (G,) int64
    lanes: Tensor  # (K * G,) int64: the servers' first lanes, then their second ones, ...
    shares: Sequence[float]  # K


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
        self.groups = _groups(layout, device)
        self.work = workspace(len(layout.live), lanes, layout.batch, features)
        self.work.rows.zero_()  # what the round before the capture trains on: row 0
        self.work.optimizer.fill_(1)
        self.work.losses.zero_()  # those of lanes without rows are never written
        self.asked = questions(layout.asked, features)
        self.losses = torch.zeros(len(layout.live), lanes, device=device)
        self.sound = torch.ones((), dtype=torch.bool, device=device)
        self.paces = _pace_table(layout).to(device)
        self.settings: AdamSettings | None = None  # those that the workspace holds
        self.graph = self._capture() if device.type == "cuda" else None
        self.latest: Round | None = None
        self.ahead: dict[int, Any] = {}
        """Room for the caller's: what it prepared of later rounds while one ran."""

    def replay(
        self,
        servers: Tensor,
        rows: Tensor,
        settings: AdamSettings,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Round:
        """One round from the adapters `servers` (S, P); rows (T, L, B) and settings as elsewhere.

        meanwhile  is called while the device works

        Raises ValueError for rows that are not live in the steps that were captured.
        """
        if tuple(live_lanes(rows)) != tuple(self.layout.live):
            raise ValueError(
                "RoundGraph: the lanes that have rows in each step are not those it was made for"
            )
        self.servers.copy_(servers)
        set_rows(self.work, rows)
        if self.settings is None or not all(map(torch.equal, settings, self.settings)):
            set_settings(self.work, settings)
            self.settings = settings
        if self.graph is None:
            self._round()
        else:
            self.graph.replay()
        meanwhile()
        self.latest = Round(
            self.following.clone(),
            self.losses.clone(),
            answers_by_adapter(self.asked),
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
        for servers, lanes, shares in self.groups:
            clients = self.clients.index_select(0, lanes).view(len(shares), len(servers), -1)
            self.following.index_copy_(0, servers, self.average(clients, shares))
            updates = clients.sub_(self.servers.index_select(0, servers))
            moved = torch.linalg.vector_norm(updates, dim=2)
            lengths[:, : len(shares)].index_copy_(0, servers, moved.mT)
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


def _groups(layout: Layout, device: torch.device) -> list[Group]:
    """All servers, some at a time: operations a round do not grow with the number of servers."""
    alike: dict[tuple[float, ...], list[int]] = {}
    for s, shares in enumerate(layout.shares):
        alike.setdefault(tuple(shares), []).append(s)
    groups = []
    for shares, every in alike.items():
        height = max(1, TOGETHER // len(shares))
        for first in range(0, len(every), height):
            servers = every[first : first + height]
            lanes = torch.tensor([layout.members[s] for s in servers]).mT.flatten()
            groups.append(Group(torch.tensor(servers).to(device), lanes.to(device), shares))
    return groups


def _pace_table(layout: Layout) -> Tensor:
    """(S, K) float32: 1 / steps of each server's lanes; 0 behind the shorter rows."""
    made = [sum(lane < live for live in layout.live) for lane in range(len(layout.starts))]
    table = torch.zeros(len(layout.members), max(map(len, layout.members)))
    for s, lanes in enumerate(layout.members):
        table[s, : len(lanes)] = 1 / torch.tensor([made[lane] for lane in lanes])
    return table
