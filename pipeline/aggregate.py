"""Client adapters -> server adapter."""

from collections.abc import Sequence

import torch

from kernels.adapter import AdapterState
from pipeline.lanes import Server


def aggregate(clients: AdapterState, servers: Sequence[Server]) -> AdapterState:
    """sum_k weight_k * client_k for each server, float32, in client order.

    clients  L lanes
    returns  one adapter for each server
    Source: PersonalizedFL fedclip/utils/aggregation.py: zeros, then += weight * parameter.
    """
    averaged = []
    for weights in clients:
        mean = torch.zeros_like(weights[: len(servers)])
        if len(servers) > len(weights):
            raise ValueError(f"{len(servers)} servers cannot come from {len(weights)} lanes")
        for s, server in enumerate(servers):
            for lane, share in zip(server.lanes, server.weights, strict=True):
                mean[s].add_(weights[lane], alpha=share)
        averaged.append(mean)
    return AdapterState(*averaged)
