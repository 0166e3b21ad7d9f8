"""Aggregates clients' adapters into the server's, by the config's method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.federation.methods import METHODS
from pipeline.federation.methods.mean import shares_of, weighted_mean
from pipeline.federation.methods.method import Memory, Reports
from pipeline.federation.methods.privacy import clipped, private_mean

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.settings import RunConfig


def aggregate(
    config: RunConfig, server: Tensor, memory: Memory, heard: Reports
) -> tuple[Tensor, Memory]:
    """One server's next adapter (P,), and its memory.

    memory   by name (P,), as the method's `memory` lists them
    With clip every update is clipped before the method's rule; with noise the mean is private_mean,
    whose denominator is fixed. Arithmetic is float32 in client order. Methods and sources:
    docs/methods.md.
    """
    method = METHODS[config.method]
    if config.noise:
        combined = private_mean(
            heard.clients,
            server,
            clip=config.clip,
            noise=config.noise,
            cohort_size=config.client_fraction * heard.everyone,
            key=(config.seed, heard.round, heard.stream),
        )
    else:
        if clips(config):
            heard = heard._replace(clients=clipped(heard.clients, server, config.clip))
        combined = (method.combine or weighted_mean)(config, heard)
    return method.step(config, server, combined, memory) if method.step else (combined, memory)


def clips(config: RunConfig) -> bool:
    """Whether updates are clipped; local and central have none."""
    return config.clip > 0 and METHODS[config.method].averages


def renormalised(weights: Sequence[float], who: Sequence[int]) -> tuple[float, ...]:
    """The weights of reporting clients; unchanged if all report (1/3 stays 1/3) or none does."""
    if len(who) in (0, len(weights)):
        return tuple(weights)
    return shares_of([weights[k] for k in who])
