"""Where rounds of each method come to rest: quadratics in the place of the clients' losses."""

import numpy as np
import pytest
import torch

import pipeline.federation.local as local_round
from kernels.heads.plain import size
from pipeline.federation.local import Engine, attendance, steps_of_lanes
from pipeline.federation.payload import BLOCK
from pipeline.federation.plan import build_plan, rate
from pipeline.federation.round import run_round
from pipeline.federation.state import first_state, own_part
from pipeline.federation.training import to_device
from pipeline.settings import RunConfig
from tests.naive import payload as naive_payload
from tests.naive import server as naive_server
from tests.runs.small_runs import small

CPU = torch.device("cpu")
WHOLE = {"batch": 2**10, "lr": 0.3}  # one step a round, whatever a client's rows
SGD = {"optimizer": "sgd", "momentum": 0.0}
SCAFFOLD = {"method": "scaffold", **SGD, "batch": 8, "lr": 0.3}  # 1, 3 and 6 steps
SCHEDULE = {"schedule": "cosine"}
CLAIMS = {
    "fedavg": WHOLE,
    "fedprox": {"method": "fedprox", "mu": 0.5, **WHOLE},
    "fedavgm": {"method": "fedavgm", "server_lr": 0.5, "server_momentum": 0.5, **WHOLE},
    "fedadam": {"method": "fedadam", "server_lr": 0.1, "tau": 0.1, **WHOLE},
    "fedyogi": {"method": "fedyogi", "server_lr": 0.1, "tau": 0.1, **WHOLE},
    "fedadagrad": {"method": "fedadagrad", "server_lr": 0.5, "tau": 0.1, **WHOLE},
    "ditto": {"method": "ditto", "mu": 0.5, **WHOLE},
    "fedper": {"method": "fedper", **WHOLE},
    "wide clip": {"clip": 1e6, **WHOLE},
    "krum that keeps all": {"method": "krum", "byzantine": 0, "keep": 3, **WHOLE},
    "scaffold": SCAFFOLD,
    "scaffold, cosine": {**SCAFFOLD, **SCHEDULE},
    "scaffold, server_lr": {**SCAFFOLD, "server_lr": 0.5},
    "scaffold, stragglers": {**SCAFFOLD, "stragglers": 0.5},
    "scaffold, some clients": {**SCAFFOLD, "client_fraction": 0.67, "dropout": 0.3},
}


class Quadratics:
    """Rounds in which domain k's loss is sum_p curve_kp / 2 (w_p - best_kp)^2."""

    def __init__(self, monkeypatch, settings: RunConfig) -> None:
        table = small(rows=(15, 40, 80), width=5)
        self.config, self.plan = settings, build_plan(table, settings)
        self.domains = torch.from_numpy(table.domains)
        self.engine = Engine(self.plan, to_device(table, CPU), "torch")
        self.start = first_state(self.plan, self.engine.cached.text, None)
        draw = np.random.RandomState(3)
        self.curve = draw.uniform(0.5, 2, (3, size(self.plan.work.kind)))
        self.best = draw.standard_normal(self.curve.shape)
        rows = np.array([len(client.train) for client in self.plan.folds[0].clients])
        self.shares = rows / rows.sum() if settings.weighting == "rows" else np.full(3, 1 / 3)
        monkeypatch.setattr(local_round, "local_steps", self.local_steps)

    def gradient(self, k):
        return lambda w: self.curve[k] * (w - self.best[k])

    def local_steps(self, work, adapters, features, labels, text, unit_text, rows, settings,
                    *, logit_scale, moments, pull, backend):  # fmt: skip
        """Plain SGD of each lane on its domain's quadratic; see kernels.local."""
        for lane in range(rows.shape[1]):
            k = int(self.domains[rows[0, lane, 0]])
            curve, best = (torch.from_numpy(m[k]).float() for m in (self.curve, self.best))
            for _step in range(int((rows[:, lane, 0] >= 0).sum())):
                gradient = curve * (adapters[lane] - best)
                if pull.anchor is not None:
                    gradient += settings.mu[lane] * (adapters[lane] - pull.anchor[lane])
                if pull.shift is not None:
                    gradient += pull.shift[lane]
                adapters[lane] -= settings.lr[lane] * gradient
        return torch.zeros(len(rows), rows.shape[1])

    def rounds(self, count):
        state, states = self.start, []
        for round in range(count):
            state, (told,) = run_round(state, self.engine, round)
            assert not told.rejected and not told.diverged
            states.append(state)
        return states

    def optimum(self, shares):
        weights = np.array(shares)[:, None] * self.curve
        return (weights * self.best).sum(axis=0) / weights.sum(axis=0)


def config(rounds, **changed) -> RunConfig:
    fixed = {"held_out": ((),), "head": "low-rank", "rank": 1, "rounds": rounds}
    return RunConfig(**(fixed | changed))


def start_of(settings: RunConfig) -> np.ndarray:
    table = small(rows=(15, 40, 80), width=5)
    text = torch.from_numpy(table.text_features)
    return first_state(build_plan(table, settings), text, None)["server"][0].numpy()


@pytest.mark.parametrize("weighting", ["uniform", "rows"])
@pytest.mark.parametrize("name", CLAIMS)
def test_a_method_rests_at_the_optimum_of_its_weighting(monkeypatch, name, weighting):
    slow = "fedadam", "fedyogi", "fedadagrad", "scaffold, cosine", "scaffold, some clients"
    rounds = 180 if name in slow else 90
    twin = Quadratics(monkeypatch, config(rounds, weighting=weighting, **CLAIMS[name]))
    shared = ~own_part(twin.plan, CPU).numpy() if name == "fedper" else slice(None)
    wanted = twin.optimum(twin.shares)[shared]
    other = twin.optimum(1 / 3 - (twin.shares - 1 / 3) + 0.1)[shared]  # another weighting's
    reached = twin.rounds(rounds)[-1]["server"][0].numpy()[shared]
    np.testing.assert_allclose(reached, wanted, atol=2e-4)
    assert weighting == "uniform" or np.abs(reached - other).max() > 0.05


@pytest.mark.parametrize("payload", ["fp16", "int8"])
@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedavgm", "fedadam", "scaffold"])
def test_a_small_payload_rests_within_a_rounding_of_it(monkeypatch, name, payload):
    short = {"lr": 0.02} if name in ("fedavg", "fedprox") else {}  # steps below a rounding of int8
    settings = {**CLAIMS[name], **short, "weighting": "rows"}
    wanted, reached = (
        twin.rounds(150)[-1]["server"][0].numpy()
        for p in ("fp32", payload)
        for twin in [Quadratics(monkeypatch, config(150, **settings, payload=p))]
    )
    moved = np.abs(wanted - start_of(config(1, **settings))).max()
    step = moved / (127 if payload == "int8" else 1024)
    assert np.abs(reached - wanted).max() <= 1.5 * step + 2e-4


ROUNDS = {
    "uniform": {},
    "rows": {"weighting": "rows"},
    "cosine": {"schedule": "cosine"},
    "server_lr": {"server_lr": 0.7, "weighting": "rows"},
    "fp16": {"payload": "fp16", "weighting": "rows"},
    "int8": {"payload": "int8", "server_lr": 0.7, "schedule": "cosine", "weighting": "rows"},
    "some": {"client_fraction": 0.67, "stragglers": 0.5, "weighting": "rows"},
}


@pytest.mark.parametrize("name", ROUNDS)
def test_scaffold_is_its_twin_round_by_round(monkeypatch, name):
    twin = Quadratics(monkeypatch, config(6, **SCAFFOLD, **ROUNDS[name]))
    arrives = {
        "fp16": lambda x: x.astype(np.float16).astype(float),
        "int8": lambda x: naive_payload.int8_round_trip(x.astype(np.float32), BLOCK).astype(float),
    }.get(name)
    origin = server = twin.start["server"][0].double().numpy()
    control, controls = 0 * server, np.zeros((3, len(server)))
    lane_of = [next(at for at, x in enumerate(twin.plan.lanes) if x.client == k) for k in range(3)]
    known = controls
    for round, state in enumerate(twin.rounds(6)):
        ways, known = state["controls"][lane_of].numpy() - known, state["controls"][lane_of].numpy()
        for way in ways if arrives else ():  # what travels is nothing but what a payload can say
            np.testing.assert_allclose(arrives(way), way, atol=2e-6)
        made = steps_of_lanes(twin.plan, attendance(twin.plan, round))[lane_of]
        gradients = [twin.gradient(k) if made[k] else None for k in range(3)]
        _, controls, control, server = naive_server.scaffold(
            gradients, server, controls, control, made, rate(twin.config, round),
            twin.config.server_lr, twin.shares, arrives, origin,
        )  # fmt: skip
        # A number on the edge between two roundings may fall to either: 1/127 of a block's largest.
        atol = {"int8": 0.02, "fp16": 2e-3}.get(name, 2e-5)
        np.testing.assert_allclose(state["server"][0], server, atol=atol)
        np.testing.assert_allclose(state["control"][0], control, atol=5 * atol)
        np.testing.assert_allclose(state["controls"][lane_of], controls, atol=5 * atol)
        held = (twin.shares[:, None] * state["controls"][lane_of].numpy()).sum(axis=0)
        np.testing.assert_allclose(state["control"][0], held, atol=1e-5)  # whoever took part


@pytest.mark.parametrize("payload", ["fp16", "int8"])
@pytest.mark.parametrize("method", ["fedprox", "ditto"])
def test_the_anchor_is_what_the_client_received(monkeypatch, method, payload):
    settings = config(3, method=method, mu=0.5, payload=payload, **WHOLE)
    twin, seen = Quadratics(monkeypatch, settings), []

    def watched(work, adapters, *rest, pull, **options):
        seen.append((adapters.clone(), pull.anchor))
        return twin.local_steps(work, adapters, *rest, pull=pull, **options)

    monkeypatch.setattr(local_round, "local_steps", watched)
    states = twin.rounds(3)
    for starts, anchors in seen:  # ditto: the federated lanes start there
        assert {tuple(row.tolist()) for row in anchors} <= {tuple(row.tolist()) for row in starts}
    assert not torch.equal(seen[2][1][0], states[1]["server"][0])  # not the server's exact one
