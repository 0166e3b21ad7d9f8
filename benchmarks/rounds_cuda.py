"""Whole trainings on a GPU after warm-up: the blog's four commands, and a hundred of them at once.

Start-up costs (imports, reading the table, compiling kernels, capturing the graph) are included in
the rows of benchmarks/rounds.py, not in these.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from benchmarks import rounds
from benchmarks.compare import Fault, guarded
from benchmarks.measure import Times
from benchmarks.rows import Row
from cache.table import FeatureTable
from kernels.backends import BACKENDS
from pipeline.federation.cuda_graph import capture_rounds
from pipeline.federation.joint import join_plans
from pipeline.federation.local import Engine
from pipeline.federation.plan import Plan, build_plan, steps_a_round
from pipeline.federation.training import Progress, advance, begin, to_device

MOVED = 6 * 4 * 2 * rounds.WIDTH * (rounds.WIDTH + 1)
"""Bytes that Adam must read and write per lane-step: p, m and v of 2 D (D + 1) numbers."""


def run(device: torch.device, ceilings: dict[str, float], quick: bool) -> Iterator[Row | Fault]:
    """Rows of `bench round` measured only on CUDA."""
    count = 3 if quick else 200
    table = rounds.pacs_shaped()
    plan = build_plan(table, rounds.config(count))
    for backend in BACKENDS[device.type]:
        case = f"{backend}, after warm-up"
        yield from guarded(
            "round", case,
            lambda case=case, backend=backend: [
                timed(case, plan, table, backend, count, ceilings, 5)
            ],
        )  # fmt: skip
    yield from guarded(
        "round", "joined", lambda: [joined(table, 4 if quick else 100, count, ceilings)]
    )


def joined(table: FeatureTable, trials: int, count: int, ceilings: dict) -> Row:
    """Many configs joined into one plan, 12 lanes each."""
    plan, _ = join_plans([_with_lr(table, count, n) for n in range(trials)])
    case = f"triton, {len(plan.lanes)} lanes, after warm-up"
    return timed(case, plan, table, "triton", count, ceilings, 1)


def _with_lr(table: FeatureTable, count: int, n: int) -> Plan:
    return build_plan(table, replace(rounds.config(count), lr=1e-6 * (n + 1)))


def timed(
    case: str, plan: Plan, table: FeatureTable, backend: str, count: int, ceilings: dict,
    repeats: int,
) -> Row:  # fmt: skip
    """Seconds for `count` rounds, scored as federate scores them, from the initial adapter."""
    cached = to_device(table, torch.device("cuda"))
    engine = Engine(plan, cached, backend, graph=capture_rounds(plan, cached, backend))

    def train(how_many: int) -> Progress:
        progress = begin(plan, cached)
        for _ in range(how_many):
            progress, _ = advance(engine, progress)
        torch.cuda.synchronize()
        return progress

    train(2)
    times = Times()
    for _ in range(repeats):
        _add(times, lambda: train(count))
    found = times.quantiles()
    moved = MOVED * count * sum(steps_a_round(lane) for lane in plan.lanes) / found["p50"]
    shape = f"{len(table.labels)} x {rounds.WIDTH}, {len(plan.lanes)} lanes, {count} rounds"
    return Row(
        "round", case, shape, "run", **found, bytes_per_second=moved,
        of_ceiling=moved / ceilings["copy_bytes_per_second"],
    )  # fmt: skip


def _add(times: Times, call: Callable[[], object]) -> None:
    started, cpu = time.perf_counter(), time.process_time()
    call()
    times.seconds.append(time.perf_counter() - started)
    times.cpu.append(time.process_time() - cpu)
