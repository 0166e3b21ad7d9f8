"""The description of a federated method, and the arguments of its parts.

--help imports the files of methods as well, so they import torch only inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.settings import RunConfig


class Above(NamedTuple):
    """Any number above `low`, as a condition in a Way."""

    low: float


Way = dict[str, tuple[str, ...] | Above]
"""One way in which a setting has an effect: conditions on other settings, all of which must
hold."""


class Reports(NamedTuple):
    """What one server receives from its clients in a round."""

    clients: Tensor  # (K, P) float32, in client order; clipped where --clip says so
    everyone: int  # clients of the server, reporting or not
    weights: tuple[float, ...]  # of those K; sum 1
    round: int
    stream: int  # seeds the noise; depends on the fold only


class Controls(NamedTuple):
    """How control variates move at the end of a round; pipeline/federation/methods/scaffold.py."""

    client: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]
    server: Callable[[Tensor, Tensor, Tensor, Sequence[float]], Tensor]


Memory = dict[str, "Tensor"]
"""By name, the P numbers that a server's optimizer remembers, float32."""
Combine = Callable[["RunConfig", Reports], "Tensor"]
"""Reports -> one adapter (P,) float32."""
Step = Callable[["RunConfig", "Tensor", "Tensor", Memory], tuple["Tensor", Memory]]
"""(settings, server (P,), combined (P,), memory) -> the server's next adapter, and its memory."""
Refusal = tuple[Callable[["RunConfig"], bool], str]
"""An invalid combination of settings, and the message that says what to pass."""

SENT: Mapping[str, Way] = {"clip": {}, "noise": {}, "payload": {}}
COHORT: Mapping[str, Way] = {"client_fraction": {}, "dropout": {}, "stragglers": {}}


def _no_doubts(config: RunConfig, clients: int) -> Iterator[str]:
    yield from ()


@dataclass(frozen=True)
class Method:
    """A federated method or a baseline: everything that the pipeline needs to know of it.

    name      as --method spells it
    about     a sentence for --help
    lanes     what trains: "joint": all clients, averaged into one server; "alone": each client with
              a server of its own; "pooled": one lane with all rows; "solved": nothing, the adapter
              is computed from the clients' sums (pipeline/federation/closed_form.py); "none"
    learns    whether it reads train rows at all
    combine   combines reports into one adapter; None: their weighted mean
    step      computes the server's next adapter from that; None: it is the next adapter
    memory    what the server remembers: name -> initial value of its P numbers. A name is a tensor
              of the checkpoint (pipeline/federation/state.py)
    controls  control variates of server and clients, which shift local gradients, or None
    proximal  whether mu (w - server's adapter) is added to local gradients: of the personal adapter
              if a client has one, else of its only one
    keeps     what stays at a client: "", the head's last "layer", or a second "adapter" of its own
    sends     what travels each way in a round, each P numbers; (): nothing
    private   whether --noise may make its mean private (pipeline/federation/methods/privacy.py)
    settings  fields of RunConfig that it reads beside those of its kind (`uses`), with conditions
    refusals  settings that it cannot be combined with
    doubts    (settings, least clients of a fold) -> warnings of settings with little effect there
    at_home   why it cannot run over sites (docs/flower.md); "": it can
    """

    name: str
    about: str
    lanes: Literal["joint", "alone", "pooled", "solved", "none"] = "joint"
    learns: bool = True
    combine: Combine | None = None
    step: Step | None = None
    memory: Mapping[str, Callable[[RunConfig], float]] = field(default_factory=dict)
    controls: Controls | None = None
    proximal: bool = False
    keeps: Literal["", "layer", "adapter"] = ""
    sends: tuple[str, ...] = ("adapter",)
    private: bool = False
    settings: Mapping[str, Way] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    doubts: Callable[[RunConfig, int], Iterator[str]] = _no_doubts
    at_home: str = ""

    @property
    def trains(self) -> bool:
        """Whether adapters are trained in rounds."""
        return self.lanes not in ("none", "solved")

    @property
    def solved(self) -> bool:
        """Whether the adapter is solved from one round of sums."""
        return self.lanes == "solved"

    @property
    def averages(self) -> bool:
        """Whether clients' adapters travel and are combined."""
        return "adapter" in self.sends

    @property
    def personal(self) -> bool:
        """Whether each client is scored with its own adapter."""
        return self.lanes == "alone" or bool(self.keeps)

    @property
    def pulled(self) -> bool:
        """Whether a term is added to local gradients."""
        return self.proximal or self.controls is not None

    @property
    def plain(self) -> bool:
        """Whether servers become plain means of trained adapters, without any memory."""
        rule = self.combine is None and self.step is None and not self.memory
        return rule and not self.keeps and not self.pulled

    @property
    def uses(self) -> Mapping[str, Way]:
        """Settings that have an effect, beside those of all training, with their conditions."""
        weighted: Mapping[str, Way] = {"weighting": {}} if self.combine is None else {}
        return {
            **({**weighted, **SENT} if self.averages else {}),
            **(COHORT if self.lanes in ("joint", "alone") else {}),
            **self.settings,
        }
