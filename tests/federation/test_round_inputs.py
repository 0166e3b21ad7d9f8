"""What a round is given and how it is counted, against plain loops over lanes and models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.local import Settings
from pipeline.federation.evaluate import score
from pipeline.federation.joint import join_plans
from pipeline.federation.plan import (
    Lane,
    build_plan,
    parts_of,
    rate,
    round_rows,
    seeded_order,
    settings_of,
)
from pipeline.federation.training import to_device
from pipeline.settings import RunConfig
from tests.runs.small_runs import config, small

CPU = torch.device("cpu")


def naive_rows(lanes, round, epochs):
    """Lane by lane, batch by batch."""
    made = []
    for lane in lanes:
        c, count = lane.config, len(lane.train)
        steps = []
        for epoch in range(epochs or c.local_epochs):
            order = [int(x) for x in seeded_order(c.seed, round, epoch, lane.stream, count)]
            for first in range(0, count, c.batch):
                batch = [int(lane.train[k]) for k in order[first : first + c.batch]]
                steps += [batch] if len(batch) > 1 else []
        made.append(steps)
    longest = max(map(len, made), default=0)
    width = max((lane.config.batch for lane in lanes), default=0)
    return [
        [
            (own[t] if t < len(own) else []) + [-1] * (width - len(own[t] if t < len(own) else []))
            for own in made
        ]
        for t in range(longest)
    ]


def drawn_lane(batch, epochs, seed, stream, count, first):
    own = RunConfig(batch=batch, local_epochs=epochs, seed=seed)
    return Lane(own, 0, 0, 0, stream, np.arange(first, first + count))


LANES = st.lists(
    st.builds(
        drawn_lane,
        batch=st.integers(2, 6), epochs=st.integers(1, 3), seed=st.integers(0, 1),
        stream=st.integers(0, 1), count=st.integers(0, 20), first=st.sampled_from([0, 7]),
    ),
    max_size=6,
)  # fmt: skip


@given(lanes=LANES, round=st.integers(0, 3), epochs=st.sampled_from([None, 1, 4]))
def test_rows_are_those_of_each_lane_by_itself(lanes, round, epochs):
    """Lanes that agree in some of seed, stream, batch, epochs and rows, and not in others."""
    rows = round_rows(lanes, round, seeded_order, epochs)
    assert rows.dtype == torch.int32 and rows.tolist() == naive_rows(lanes, round, epochs)


def test_equal_lanes_shuffle_once():
    """1,200 lanes of a hundred configs and twelve clients' rows draw twelve orders."""
    plans = [build_plan(small(), config(lr=lr)) for lr in (1e-3, 1e-4, 1e-5)]
    joint, _ = join_plans(plans)
    asked = []

    def noted(*key):
        asked.append(key)
        return seeded_order(*key)

    rows = round_rows(joint.lanes, 0, noted)
    assert len(asked) == len(set(asked)) and len(joint.lanes) == 3 * len(plans[0].lanes)
    assert rows.tolist() == naive_rows(joint.lanes, 0, None)


def test_settings_are_each_lane_s_own():
    configs = [config(lr=1e-3, schedule="cosine"), config(lr=1e-2, method="ditto", mu=0.5),
               config(method="fedprox", mu=0.1, beta1=0.8)]  # fmt: skip
    lanes = [lane for c in configs for lane in build_plan(small(), c).lanes]
    found = settings_of(lanes, 1)
    for at, lane in enumerate(lanes):
        wanted = {name: getattr(lane.config, name) for name in Settings._fields}
        pulled = lane.personal or lane.config.method == "fedprox"
        wanted |= {"lr": rate(lane.config, 1), "mu": wanted["mu"] if pulled else 0}
        assert {name: float(v[at]) for name, v in found._asdict().items()} == wanted
    assert all(v.dtype == torch.float64 for v in found)


CHANGED = ({}, {"method": "ditto"}, {"method": "local"}, {"partition": "iid", "clients": 3},
           {"split": 0.98, "choose": "last"})  # fmt: skip


@pytest.mark.parametrize("changed", CHANGED, ids=str)
@pytest.mark.parametrize("use", ["train", "val", "test"])
def test_accuracies_are_counted_part_by_part(changed, use):
    table = small(rows=(30, 25, 40))
    plans = [build_plan(table, config(**changed, seed=seed)) for seed in (0, 1)]
    plan, _ = join_plans(plans)
    cached = to_device(table, CPU)
    draw = np.random.default_rng(3)
    answers = [torch.from_numpy(draw.integers(0, 3, len(a.rows))) for a in plan.asked(use)]
    wanted = [{} for _ in plan.folds]
    for model, said in zip(plan.models, answers, strict=True):
        said = iter(said.tolist())
        for split in parts_of(plan, model, use):
            right = [next(said) == table.labels[row] for row in getattr(split, use)]
            wanted[model.fold].setdefault(split.domain_name, []).extend(right)
    wanted = [{k: sum(v) / len(v) for k, v in fold.items()} for fold in wanted]
    assert score(plan, None, cached, use, "torch", answers=answers) == wanted
    some = [m for m, model in enumerate(plan.models) if model.fold in (1, 2)]
    found = score(plan, None, cached, use, "torch", [1, 2], [answers[m] for m in some])
    assert found == [own if f in (1, 2) else {} for f, own in enumerate(wanted)]


def test_what_is_known_of_a_plan_is_not_known_of_another_one():
    plan = build_plan(small(), config())
    longer = replace(plan, lanes=(*plan.lanes, *plan.lanes))
    assert len(plan.steps) * 2 == len(longer.steps)
    assert plan.asked("val") is plan.asked("val")
    assert replace(plan, models=plan.models[:1]).asked("val") is not plan.asked("val")
