"""The released FedCLIP's recorded runs, replayed through the path that every run takes.

Recordings are *.npz in the folder that FEDCLIP_ORACLES names (default: oracle in that of
FEDCLIP_SHARED); their keys are explained in docs/method.md. Nothing here knows how large they are.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.npz import read_npz
from cache.store import read_table, write_table
from kernels.heads.plain import Kind, as_rows
from pipeline.federation.local import Engine
from pipeline.federation.plan import build_plan
from pipeline.federation.training import advance, begin, to_device
from pipeline.runs.federate import federate
from pipeline.runs.folder import read_adapters
from pipeline.settings import RunConfig
from tests.conftest import ON_GPU, ROOT

BACKENDS = [
    ("numba", "cpu"),
    ("torch", "cpu"),
    pytest.param("torch", "cuda", marks=ON_GPU),
    pytest.param("triton", "cuda", marks=ON_GPU),
]


def recordings() -> list[Path]:
    shared = ROOT / os.environ.get("FEDCLIP_SHARED", "../shared")
    folder = Path(os.environ.get("FEDCLIP_ORACLES", shared / "oracle"))
    return sorted(folder.glob("*.npz"))


@pytest.fixture(params=recordings() or [None], ids=lambda path: path.stem if path else "none")
def recording(request, shared):
    assert request.param is not None, "no *.npz in FEDCLIP_ORACLES, or in oracle of FEDCLIP_SHARED"
    return request.param


def adapter(oracle, when: str, kind: Kind) -> torch.Tensor:
    parts = {n: torch.from_numpy(oracle[f"{when}_{n}"]) for n in ("w1", "b1", "w2", "b2")}
    return as_rows(kind, parts)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_replay_equals_the_recording(recording, backend, device, tmp_path):
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

    plan = build_plan(table, config)
    for client in plan.folds[0].clients:
        for part in ("train", "val", "test"):
            np.testing.assert_array_equal(getattr(client, part), oracle[f"{part}_c{client.domain}"])

    kind = plan.work.kind
    start = adapter(oracle, "init", kind)
    engine = Engine(plan, to_device(table, torch.device(device)), backend, recorded)
    progress, _ = advance(engine, begin(plan, engine.cached, start))
    assert_adapter(progress.state["server"][0], adapter(oracle, "round0", kind), 1e-5)

    document = federate(
        table,
        config,
        runs=tmp_path,
        out=tmp_path / "run",
        device=device,
        backend=backend,
        first_adapter=start,
        orders=recorded,
    )
    tensors, _ = read_adapters(tmp_path / "run" / "adapter.safetensors")
    last = as_rows(kind, {n.removeprefix("last."): t for n, t in tensors.items() if "last." in n})
    assert_adapter(last[0], adapter(oracle, "final", kind), 1e-4)

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


def assert_adapter(found: torch.Tensor, wanted: torch.Tensor, most: float) -> None:
    worst = (found.cpu() - wanted).abs().max()
    assert worst <= most, f"{worst:.2e} away"
