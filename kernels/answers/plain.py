"""adapter_top1 in plain torch: two matrix products a block of rows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.adapter import AdapterState

# Rows at a time: 2048 x 512 float32 is 4 MiB, so the three temporaries stay in a CPU's L3.
BLOCK = 2048


def adapter_top1(
    adapters: AdapterState, features: Tensor, unit_text: Tensor, rows: Sequence[Tensor]
) -> list[Tensor]:
    """See kernels.answers.top1.adapter_top1; arguments are checked there."""
    answers = []
    for a, asked in enumerate(rows):
        one = AdapterState(*(weight[a] for weight in adapters))
        blocks = [_block(one, features[part], unit_text) for part in asked.split(BLOCK)]
        answers.append(torch.cat(blocks) if blocks else asked.new_empty(0))
    return answers


def _block(adapter: AdapterState, x: Tensor, unit_text: Tensor) -> Tensor:
    h = torch.addmm(adapter.b1, x, adapter.w1.mT).tanh_()
    scores = torch.addmm(adapter.b2, h, adapter.w2.mT)
    gated = scores.sub_(scores.amax(dim=1, keepdim=True)).exp_().mul_(x)
    return (gated @ unit_text.mT).argmax(dim=1)
