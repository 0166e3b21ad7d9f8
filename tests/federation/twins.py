"""The slow twin of a federated run over lanes of numpy, and how near ours must be to it."""

import numpy as np
import torch

from kernels.heads.plain import first_row
from kernels.local.plain import losses_of
from pipeline.federation.local import Engine
from pipeline.federation.plan import build_plan, round_rows, seeded_order
from pipeline.federation.round import run_round
from pipeline.federation.state import first_state
from pipeline.federation.training import to_device
from pipeline.settings import RunConfig
from tests.runs.small_runs import small

SGD = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.05, "weight_decay": 0.0}
CPU = torch.device("cpu")


def config(**changed) -> RunConfig:
    return RunConfig(
        **(
            {"held_out": (("a",),), "rounds": 3, "batch": 16, "head": "low-rank", "rank": 2}
            | changed
        )
    )


class Twin:
    """The same table and config with gradients in float64 and everything else in loops."""

    def __init__(self, settings: RunConfig) -> None:
        self.table = small(rows=(40, 45, 50, 40))
        self.config, self.plan = settings, build_plan(self.table, settings)
        self.fold = self.plan.folds[0]
        self.cached = to_device(self.table, CPU)
        self.engine = Engine(self.plan, self.cached, "torch")
        kind = self.plan.work.kind
        text = torch.from_numpy(self.table.text_features)
        self.start = first_row(kind, settings.start, settings.seed, text).double().numpy()

    def batches(self, client: int, round: int) -> list[torch.Tensor]:
        lane = next(x for x in self.plan.lanes if x.client == client and not x.personal)
        rows = round_rows([lane], round, seeded_order)[:, 0].long()
        return [batch for batch in rows if batch[0] >= 0]

    def gradient(self, weights: np.ndarray, batch: torch.Tensor) -> np.ndarray:
        row = torch.from_numpy(np.array(weights))[None].requires_grad_()
        loss = losses_of(
            self.plan.work, row, self.cached.features.double(), self.cached.labels,
            self.cached.text.double(), batch[None], self.cached.logit_scale,
        )  # fmt: skip
        return torch.autograd.grad(loss.sum(), row)[0][0].numpy()

    def sgd(self, start, client, round, extra=lambda w: 0.0, lr=None):
        weights = np.array(start)
        for batch in self.batches(client, round):
            step = self.gradient(weights, batch) + extra(weights)
            weights = weights - (lr or self.config.lr) * step
        return weights

    def rounds(self, count: int) -> list[dict]:
        state, found = first_state(self.plan, self.cached.text, None), []
        for round in range(count):
            state, _ = run_round(state, self.engine, round)
            found.append(state)
        return found


def close(found: torch.Tensor, wanted: np.ndarray) -> None:
    # The twin works in float64; float32 gradients at scale 20 differ by about 1e-6 of their size.
    np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-4, atol=2e-6)
