"""A whole federated round captured as one CUDA graph: start, steps, averages and predictions.

A round is some 450 launches of a few microseconds each; launching them one by one from Python takes
longer than running them. Everything that differs between two rounds of a plan is copied into
tensors that the graph reads: the servers' adapters, the row order, and the optimizer settings.
Every round starts a fresh Adam, so its bias corrections are part of those settings, not state.
Lanes are sorted by number of steps, so a step launches programs only for lanes that have rows; none
are padded.
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
"""Clients averaged at a time, 270 MB of them at D = 512, which the graph holds."""
Average = Callable[[Tensor, Sequence[float]], Tensor]
"""Adapters (K, G, P) of the clients of G servers, and the K weights that each server gives its
clients -> (G, P); must not synchronize with the device."""
Outsized = Callable[[Tensor], Tensor]
"""(S, K) update norms per step, 0 for none -> (S, K) bool; must not synchronize with the device."""


class Layout(NamedTuple):
    """The properties shared by all rounds of a plan."""

    kind: Kind  # the released adapter
    starts: Sequence[int]  # for each lane, the server it starts from
    live: Sequence[int]  # for each step, how many lanes have rows; these come first
    batch: int
    members: Sequence[Sequence[int]]  # for each server, its lanes in client order
    shares: Sequence[Sequence[float]]  # their weights
    asked: Sequence[Tensor]  # for each server (n_s,) int64: rows its next adapter predicts


class Round(NamedTuple):
    """The result of a round."""

    servers: Tensor  # (S, P) float32: the next adapters
    losses: Tensor  # (T, L) float32
    answers: list[Tensor]  # for each server (n_s,) int64: classes predicted by its next adapter
    sound: bool  # whether all lanes' adapters are finite and none outsized; else discard all


class Group(NamedTuple):
    """Servers whose clients have the same weights; they are averaged together."""

    servers: Tensor  # (G,) int64
    lanes: Tensor  # (K * G,) int64: the servers' first lanes, then their second, ...
    shares: Sequence[float]  # K


class RoundGraph:
    """The rounds of one plan; owns the memory they run in. Not thread-safe."""

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
        """On CUDA, run a round once, which compiles its kernels, then capture it.

        features (N, D) float32, labels (N,) int64, unit_text (C, D) float32: as in adapter_steps,
        on one device. On the CPU, under Triton's interpreter, rounds run without a graph.
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
        self.work.rows.zero_()  # the round before capture trains on row 0
        self.work.optimizer.fill_(1)
        self.work.losses.zero_()  # entries of lanes without rows are never written
        self.asked = questions(layout.asked, features)
        self.losses = torch.zeros(len(layout.live), lanes, device=device)
        self.sound = torch.ones((), dtype=torch.bool, device=device)
        self.paces = _pace_table(layout).to(device)
        self.settings: AdamSettings | None = None  # those in the workspace
        self.graph = capture(self._round) if device.type == "cuda" else None
        self.latest: Round | None = None
        self.ahead: dict[int, Any] = {}
        """For the caller: what it prepared for later rounds while one ran."""

    def replay(
        self,
        servers: Tensor,
        rows: Tensor,
        settings: AdamSettings,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Round:
        """One round from the adapters `servers` (S, P); rows (T, L, B), settings: adapter_steps.

        meanwhile  is called while the device works

        Raises ValueError if the lanes that have rows in each step are not those captured.
        """
        if tuple(live_lanes(rows)) != tuple(self.layout.live):
            raise ValueError(
                "RoundGraph: the lanes that have rows in each step differ from those captured"
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
        """The predictions of the adapters that the latest replay returned; None for any others."""
        if self.latest is None or self.latest.servers is not servers:
            return None
        return self.latest.answers

    def _round(self) -> None:
        """All device work of a round; reads and writes this object's tensors."""
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
        # A norm that is not finite may have overflowed float32; the plain path examines it.
        lost = ~lengths.isfinite() | self.outsized(lengths * self.paces)
        self.sound.copy_(~lost.any())
        features, _, unit_text = self.data
        answer(attention_state(kind, self.following), features, unit_text, self.asked)


def capture(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The device work of a call as a graph; the call runs once.

    That run is outside the capture, during which no kernel can be compiled or loaded, and on a side
    stream.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def _groups(layout: Layout, device: torch.device) -> list[Group]:
    """All servers in groups, so that the number of operations does not grow with the servers."""
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
    """(S, K) float32: 1 / steps of each server's lanes; shorter rows are padded with 0."""
    made = [sum(lane < live for live in layout.live) for lane in range(len(layout.starts))]
    table = torch.zeros(len(layout.members), max(map(len, layout.members)))
    for s, lanes in enumerate(layout.members):
        table[s, : len(lanes)] = 1 / torch.tensor([made[lane] for lane in lanes])
    return table
