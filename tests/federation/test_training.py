"""train(): rounds as (progress, record), from anywhere to anywhere."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.federation.local import Engine
from pipeline.federation.plan import build_plan
from pipeline.federation.training import advance, begin, to_device, train
from pipeline.runs.outcomes import outcomes
from tests.runs.small_runs import config, small

CPU = torch.device("cpu")


def engine(**changed) -> Engine:
    table = small(rows=(20, 14, 16))
    return Engine(build_plan(table, config(**changed)), to_device(table, CPU), "torch")


@settings(max_examples=10)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_stopped_and_taken_up_anywhere_it_makes_the_same_rounds(stops):
    made = engine(rounds=5)
    progress, alone = begin(made.plan, made.cached), []
    for _ in range(5):
        progress, report = advance(made, progress)
        alone.append((progress, report))
    here, seen = begin(made.plan, made.cached), []
    for stop in (*sorted(stops), 5):
        for here, report in train(made, here, stop):  # noqa: B020
            seen.append((here, report))
    assert [report for _, report in seen] == [report for _, report in alone]
    for (one, _), (other, _) in zip(seen, alone, strict=True):
        assert torch.equal(one.best, other.best) and one.chosen == other.chosen
        assert all(torch.equal(one.state[name], other.state[name]) for name in other.state)


def test_the_round_in_which_a_fold_diverges_is_the_last():
    wild = engine(optimizer="sgd", momentum=0.0, lr=1e6, weight_decay=1e3, head="linear", rounds=9)
    rounds = [progress for progress, _ in train(wild, begin(wild.plan, wild.cached), 9)]
    assert 0 < len(rounds) < 9 and rounds[-1].diverged
    assert not any(progress.diverged for progress in rounds[:-1])
    assert not list(train(wild, rounds[-1], 9))


def test_what_trains_nothing_has_no_rounds():
    still = engine(method="zero-shot")
    assert not list(train(still, begin(still.plan, still.cached), 4))


def test_zero_shot_of_features_as_stored_is_that_of_float32():
    table = small(rows=(20, 14, 16))
    table = replace(table, features=table.features.astype(np.float16))
    plan = build_plan(table, config(method="zero-shot"))
    found = []
    for as_stored in (False, True):
        cached = to_device(table, CPU, as_stored=as_stored)
        assert cached.features.dtype == (torch.float16 if as_stored else torch.float32)
        found.append(outcomes(Engine(plan, cached, "torch"), begin(plan, cached)))
    assert found[0] == found[1] and len(found[0]) == 3
