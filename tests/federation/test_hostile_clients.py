"""Clients that send what nobody should: left out by name, and the round goes on without them."""

import json

import numpy as np
import pytest
import torch

from pipeline.federation import local as local_round
from pipeline.federation import round as rounds
from pipeline.federation.joint import join_plans
from pipeline.federation.local import Engine
from pipeline.federation.methods.guard import MOST, outsized, unsound, update_lengths
from pipeline.federation.methods.mean import mean
from pipeline.federation.plan import build_plan
from pipeline.federation.round import run_round
from pipeline.federation.state import first_state
from pipeline.federation.training import to_device
from tests.runs.small_runs import FILES, config, run, small

SPOILS = {
    "nan": lambda sent, start: sent.fill_(float("nan")),
    "one inf": lambda sent, start: sent[7:8].fill_(float("inf")),
    "all inf, signs even": lambda sent, start: sent.copy_(sent.sign() * float("inf")),
    "times 1e6": lambda sent, start: sent.copy_(start + 1e6 * (sent - start)),
    "the largest float32": lambda sent, start: sent.fill_(3e38),
}


def spoil(monkeypatch, spoiler, lane: int = -1) -> list[torch.Tensor]:
    """Every round the sent adapter of a lane is spoilt; the list gets each round's, spoilt."""
    honest, sent = local_round.local_steps, []

    def hostile(work, clients, *data, **settings):
        start = clients[lane].clone()
        losses = honest(work, clients, *data, **settings)
        spoiler(clients[lane], start)
        sent.append(clients.clone())
        return losses

    monkeypatch.setattr(local_round, "local_steps", hostile)
    return sent


def name_of(lane: int, **changed) -> str:
    plan = build_plan(small(), config(held_out=((),), **changed))
    fold = plan.folds[0]
    return fold.clients[plan.lanes[lane].client].name


@pytest.mark.parametrize("spoiler", SPOILS.values(), ids=SPOILS)
@pytest.mark.parametrize("method", ["fedavg", "median", "krum", "fedadam", "scaffold"])
def test_a_hostile_client_is_left_out_by_name_and_every_round_goes_on(
    tmp_path, monkeypatch, spoiler, method, heard
):
    sent = spoil(monkeypatch, spoiler)
    optimizer = {"optimizer": "sgd", "momentum": 0.0} if method == "scaffold" else {}
    settings = config(held_out=((),), rounds=3, method=method, byzantine=0, **optimizer)
    document = run(small(), tmp_path, settings)
    lines = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert len(lines) == len(sent) == 3
    name = name_of(-1)
    for line in lines:
        (why,) = line["folds"][0]["rejected"].values()
        assert list(line["folds"][0]["rejected"]) == [name]
        assert "not finite" in why or "times the median" in why
    told = [message for message in heard if "left out" in message]
    assert len(told) == 1 and f"client {name} is left out" in told[0]
    assert document["results"][0]["overall"] > 0.25  # of four classes


@pytest.mark.parametrize("spoiler", SPOILS.values(), ids=SPOILS)
def test_the_server_becomes_the_mean_of_the_others(monkeypatch, spoiler):
    sent = spoil(monkeypatch, spoiler)
    table, settings = small(), config(held_out=((),))
    plan = build_plan(table, settings)
    cached = to_device(table, torch.device("cpu"))
    state = first_state(plan, cached.text, None)
    after, (told,) = run_round(state, Engine(plan, cached, "torch"), 0)
    honest = [lane for lane in plan.servers[0].lanes if lane != len(plan.lanes) - 1]
    assert torch.equal(after["server"][0], mean(sent[0][honest], (0.5, 0.5)))
    assert len(told.rejected) == 1 and told.diverged is None


def test_a_hostile_client_of_one_fold_leaves_the_bits_of_others(monkeypatch):
    table = small()
    cached = to_device(table, torch.device("cpu"))

    def after(plan):
        state = first_state(plan, cached.text, None)
        for round in range(2):
            state, told = run_round(state, Engine(plan, cached, "torch"), round)
        return state["server"], told

    plans = [build_plan(table, config(held_out=((name,),))) for name in "ab"]
    joint, owners = join_plans(plans)
    alone, _ = after(plans[1])
    spoil(monkeypatch, SPOILS["times 1e6"], lane=owners.index((0, 0)))
    together, told = after(joint)
    assert torch.equal(together[1], alone[0])
    assert [len(each.rejected) for each in told] == [1, 0]


def test_the_size_rule_changes_no_bit_of_a_sound_run(tmp_path, monkeypatch):
    run(small(), tmp_path / "with")
    monkeypatch.setattr(rounds, "unsound", lambda *_, **__: {})
    run(small(), tmp_path / "without")
    for name in FILES:
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes()


def test_a_clipped_client_is_judged_by_itself(tmp_path, monkeypatch):
    """Under central DP who counts must not depend on the others; clip bounds a long update."""
    spoil(monkeypatch, SPOILS["times 1e6"])
    run(small(), tmp_path, config(held_out=((),), clip=0.1, noise=0.01, rounds=2))
    for line in (tmp_path / "rounds.jsonl").read_text().splitlines():
        assert json.loads(line)["folds"][0]["rejected"] == {}


def naive_outsized(lengths: list[float]) -> list[bool]:
    found = []
    for k, own in enumerate(lengths):
        others = [x for j, x in enumerate(lengths) if j != k and x > 0]
        shorter = [x for x in others if MOST * x < own]
        found.append(own > 0 and 2 * len(shorter) > len(others))
    return found


def test_outsized_is_the_twins():
    draw = np.random.default_rng(0)
    for count in (1, 2, 3, 4, 5, 10, 31):
        for _ in range(50):
            lengths = 10 ** draw.uniform(-6, 6, count) * (draw.random(count) > 0.2)
            assert outsized(torch.from_numpy(lengths)).tolist() == naive_outsized(lengths.tolist())


@pytest.mark.parametrize(
    ("lengths", "left_out"),
    [
        ([5.0], []),  # nobody to measure by
        ([0.0, 5.0], []),
        ([0.0, 0.0, 5.0], []),
        ([1.0, 1000.0], []),
        ([1.0, 1001.0], [1]),
        ([0.0, 1.0, 1e6], [2]),
        ([1.0, 1e6, 1e6], []),  # two of three lie: a matter for method krum, not for this
        ([1.0, 1.0, 1.0, 1e6, 1e6], [3, 4]),
        ([1e-9, 1.0, 1.0], []),
        ([0.0, 0.0], []),
    ],
)
def test_who_is_outsized(lengths, left_out):
    assert outsized(torch.tensor(lengths)).nonzero()[:, 0].tolist() == left_out


def test_more_rows_are_no_longer_update():
    start = torch.zeros(3, 4)
    clients = torch.tensor([1.0, 1.0, 3000.0])[:, None].expand(3, 4).clone()
    assert list(unsound(clients, start)) == [2]
    assert unsound(clients, start, [1, 1, 4000]) == {}


def test_lengths_are_of_what_each_client_started_from():
    draw = torch.Generator().manual_seed(0)
    clients, start = torch.randn(3, 999, generator=draw), torch.randn(3, 999, generator=draw)
    wanted = (clients - start).double().norm(dim=1)
    torch.testing.assert_close(update_lengths(clients, start), wanted, rtol=1e-5, atol=0)
    assert list(unsound(clients * 1e30, start)) == []  # their squares are no float32s
    clients[1] *= 1e30
    assert "times the median" in unsound(clients, start)[1]
