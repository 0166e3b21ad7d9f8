"""The released FedCLIP's recorded runs, replayed through the path that every run takes.

Recordings are *.npz in the folder that FEDCLIP_ORACLES names (default: shared/oracle); their keys
are explained in docs/method.md. Nothing here knows how large they are.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.npz import read_npz
from cache.store import read_table, write_table
from kernels.adapter import AdapterState
from pipeline.config import RunConfig
from pipeline.federate import Progress, advance, federate, to_device
from pipeline.lanes import build_plan
from pipeline.rounds import Engine, first_state
from pipeline.run_folder import read_adapters
from tests.conftest import ROOT

BACKENDS = ("numba", "torch")


def recordings() -> list[Path]:
    folder = Path(os.environ.get("FEDCLIP_ORACLES", ROOT.parent / "shared" / "oracle"))
    return sorted(folder.glob("*.npz"))


@pytest.fixture(params=recordings() or [None], ids=lambda path: path.stem if path else "none")
def recording(request, shared):
    assert request.param is not None, "no *.npz in FEDCLIP_ORACLES or shared/oracle"
    return request.param


def adapter(oracle, when: str) -> AdapterState:
    return AdapterState(*(torch.from_numpy(oracle[f"{when}_{n}"]) for n in AdapterState._fields))


@pytest.mark.parametrize("backend", BACKENDS)
def test_replay_equals_the_recording(recording, backend, tmp_path):
    oracle = dict(np.load(recording))
    facts = json.loads(str(oracle["config"]))
    write_table(tmp_path / "cache.h5", read_npz(recording))
    table = read_table(tmp_path / "cache.h5")
    held = np.atleast_1d(facts["held"]).tolist()
    config = RunConfig(
        held_out=(tuple(table.domain_names[domain] for domain in held),),
        rounds=facts["iters"],
        local_epochs=facts["wk"],
        lr=facts["lr"],
        weight_decay=facts["wd"],
        batch=facts["batch"],
        seed=facts["seed"],
        eval="every",
    )

    def recorded(seed: int, round: int, epoch: int, client: int, count: int) -> np.ndarray:
        order = oracle[f"order_r{round}_e{epoch}_c{client}"]
        assert sorted(order) == list(range(count))
        return order

    plan = build_plan(table, [config])
    for client in plan.folds[0].clients:
        for part in ("train", "val", "test"):
            np.testing.assert_array_equal(getattr(client, part), oracle[f"{part}_c{client.domain}"])

    start = adapter(oracle, "init")
    engine = Engine(plan, to_device(table, torch.device("cpu")), backend, recorded)
    first = first_state(plan, table.features.shape[1], start, torch.device("cpu"))
    progress, _ = advance(engine, config, Progress(0, first, first, (None,)), 0)
    assert_adapter(progress.last, adapter(oracle, "round0"), 1e-5)

    document = federate(
        table,
        config,
        runs=tmp_path,
        out=tmp_path / "run",
        device="cpu",
        backend=backend,
        first_adapter=start,
        orders=recorded,
    )
    states, _ = read_adapters(tmp_path / "run" / "adapter.safetensors")
    assert_adapter(states["last"], adapter(oracle, "final"), 1e-4)

    lines = [json.loads(line) for line in (tmp_path / "run/rounds.jsonl").read_text().splitlines()]
    assert len(lines) == facts["iters"]
    rows = {"train": {}, "val": {}, "test": {}}
    for split in (*plan.folds[0].clients, *plan.folds[0].unseen):
        for part in rows:
            rows[part][split.name] = len(getattr(split, part))
    for round, line in enumerate(lines):
        for part in rows:
            found = line["folds"][0][f"{part}_accuracy"]
            recorded_row = oracle[f"{part}_accuracy"][round]
            assert len(found) == len(recorded_row)
            in_order = found_in_order(found, table)
            for (name, value), wanted in zip(in_order, recorded_row, strict=True):
                assert abs(value - wanted) <= max(1e-4, 1.01 / rows[part][name])
    result = document["results"][0]
    assert result["best_round"] == int(oracle["best_round"])
    for (name, value), wanted in zip(
        found_in_order(result["per_domain"], table), oracle["best_test"], strict=True
    ):
        assert abs(value - wanted) <= max(1e-4, 1.01 / rows["test"][name])


def found_in_order(found: dict[str, float], table) -> list[tuple[str, float]]:
    """By the recordings' order: domains as the table has them."""
    return [(name, found[name]) for name in table.domain_names if name in found]


def assert_adapter(found: AdapterState, wanted: AdapterState, most: float) -> None:
    for name in AdapterState._fields:
        worst = (getattr(found, name)[0] - getattr(wanted, name)).abs().max()
        assert worst <= most, f"{name} is {worst:.2e} away"
