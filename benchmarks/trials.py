"""Trials of a search: ours against loops that people write, with Optuna and torch, and with JAX.

A trial is a whole training: a learning rate, one held-out domain of a PACS-shaped table, rounds
with validation after each, and the selected adapter scored on the held-out rows. All train on the
same batches, so their accuracies must agree. Peers and our kernels are warmed up before timing.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import eager
from benchmarks.compare import Fault, Wrong
from benchmarks.rounds import ROOT, config, pacs_shaped
from benchmarks.rows import Row
from cache.store import read_table, write_table
from kernels.adapter import AdapterState
from kernels.heads.plain import attention_state, first_row
from pipeline.federation.evaluate import Cached
from pipeline.federation.plan import Plan, build_plan, round_rows, seeded_order
from pipeline.federation.training import to_device
from pipeline.sweeps.run import sweep
from pipeline.sweeps.spec import from_options

CPU = torch.device("cpu")
PROCESSES = 2
RATES = tuple(float(f"{rate:.6g}") for rate in np.geomspace(1e-5, 1e-3, 16))
TIE = 0.01  # fraction of a domain's rows that may be so close to a tie that rounding decides
PEERS = {
    "Optuna + torch eager, Adam(fused=True)": "torch",
    "JAX jit + scan": "jax",
}
Train = Callable[[AdapterState, list[Tensor], float], AdapterState]


def run(quick: bool) -> Iterator[Row | Fault]:
    """All rows of `bench trials`."""
    rates, rounds = RATES[: 4 if quick else len(RATES)], 1 if quick else 5
    shape = f"{len(rates)} trials of {rounds} rounds, 1 held-out domain, {PROCESSES} cores"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pacs-shaped.h5"
        write_table(file, pacs_shaped())
        _ours(Path(folder), rates[:1], 1)
        seconds, cpu, wanted = _ours(Path(folder), rates, rounds)
        yield _row("sweep, numba", shape, seconds, cpu, len(rates), 0.0)
        for name, kind in PEERS.items():
            try:
                took, spent, found = _peer(kind, file, rates, rounds)
                error = max(abs(found[rate] - wanted[rate]) for rate in rates)
                if error > TIE:
                    raise Wrong(f"accuracies differ from ours by {error:.3f}")
                yield _row(name, shape, took, spent, len(rates), error)
            except Exception as error:  # a peer or its absence may raise anything
                yield Fault("trials", name, f"{type(error).__name__}: {error}")


def _row(name: str, shape: str, seconds: float, cpu: float, count: int, error: float) -> Row:
    each = seconds / count
    hourly = f"{name} ({3600 / each:,.0f} trials an hour)"
    return Row("trials", hourly, shape, "trial", each, each, each, 1, cpu / count, error=error)


def _ours(
    folder: Path, rates: Sequence[float], rounds: int
) -> tuple[float, float, dict[float, float]]:
    table, base = read_table(folder / "pacs-shaped.h5"), config(rounds, 1)
    spec = from_options([f"lr={','.join(map(str, rates))}"])
    started, cpu = time.perf_counter(), time.process_time()
    out = folder / f"sweep-{len(rates)}-{rounds}"
    sweep(table, spec, base, runs=folder, out=out, device="cpu", backend="numba")
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    lines = [json.loads(line) for line in (out / "trials.jsonl").read_text("utf-8").splitlines()]
    return seconds, cpu, {t["settings"]["lr"]: t["results"][0]["unseen"] for t in lines}


def _peer(
    kind: str, file: Path, rates: Sequence[float], rounds: int
) -> tuple[float, float, dict[float, float]]:
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
           "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}  # fmt: skip
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.trials", kind, str(file), str(rounds),
             *map(str, rates[k::PROCESSES])],
            cwd=ROOT, env=os.environ | one, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for k in range(PROCESSES)
    ]  # fmt: skip
    try:
        for worker in workers:
            assert worker.stdout is not None
            if worker.stdout.readline() != "ready\n":
                raise RuntimeError(worker.communicate()[1].strip()[-300:])
        started = time.perf_counter()
        told = [json.loads(worker.communicate("go\n")[0]) for worker in workers]
        seconds = max(one["ended"] for one in told) - started
        found = {float(rate): value for one in told for rate, value in one["found"].items()}
        return seconds, sum(one["cpu"] for one in told), found
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def work(kind: str, file: str, rounds: int, rates: Sequence[float]) -> None:
    """A peer's process: warm up, print "ready", and train once a line arrives on stdin."""
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) > 1:  # JAX starts a thread for each core it sees
        os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
    table = read_table(Path(file))
    plan, cached = build_plan(table, config(rounds, 1)), to_device(table, CPU)
    train = {"torch": _with_torch, "jax": _with_jax}[kind](cached)
    trial(plan, cached, train, RATES[0], 1)
    print("ready", flush=True)
    sys.stdin.readline()
    cpu = time.process_time()
    if kind == "torch":
        found = _by_optuna(lambda lr: trial(plan, cached, train, lr, rounds), rates)
    else:
        found = {lr: trial(plan, cached, train, lr, rounds) for lr in rates}
    # perf_counter is one clock for all processes on a machine.
    print(json.dumps({"found": found, "cpu": time.process_time() - cpu,
                      "ended": time.perf_counter()}), flush=True)  # fmt: skip


def trial(plan: Plan, cached: Cached, train: Train, lr: float, rounds: int) -> float:
    """The held-out accuracy of the best round's adapter, by mean validation accuracy."""
    kind, fold = plan.work.kind, plan.folds[0]
    server = attention_state(kind, first_row(kind, "default", 0, cached.text)[None])
    server = AdapterState(*(w[0] for w in server))
    best, kept = -1.0, server
    for round in range(rounds):
        rows = round_rows(plan.lanes, round, seeded_order)
        trained = []
        for lane in range(len(plan.lanes)):
            batches = [part[part >= 0].long() for part in rows[:, lane] if part[0] >= 0]
            trained.append(train(server, batches, lr))
        server = AdapterState(*(torch.stack(w).mean(dim=0) for w in zip(*trained, strict=True)))
        reached = float(np.mean([_accuracy(cached, server, c.val) for c in fold.clients]))
        if reached > best:
            best, kept = reached, server
    return _accuracy(cached, kept, fold.unseen[0].test)


def _accuracy(cached: Cached, adapter: AdapterState, rows: np.ndarray) -> float:
    own = torch.from_numpy(rows)
    answers = eager.top1(adapter, cached.features[own], cached.unit_text)
    return float((answers == cached.labels[own]).float().mean())


def _with_torch(cached: Cached) -> Train:
    given = cached.features, cached.labels, cached.unit_text
    return lambda adapter, batches, lr: eager.train(
        adapter, *given, batches, cached.logit_scale, fused=True, lr=lr
    )


def _with_jax(cached: Cached) -> Train:
    from benchmarks import jax_peer

    given = jax_peer.arrays(cached.features, cached.labels, cached.unit_text)

    def train(adapter: AdapterState, batches: list[Tensor], lr: float) -> AdapterState:
        whole = [batch for batch in batches if len(batch) == len(batches[0])]
        rows, rest = jax_peer.arrays(
            torch.stack(whole), batches[-1] if len(whole) < len(batches) else batches[0][:0]
        )
        found = jax_peer.train(
            tuple(jax_peer.arrays(*adapter)), lr, *given, rows, cached.logit_scale, rest
        )
        return AdapterState(*(torch.from_numpy(np.array(w)) for w in found))

    return train


def _by_optuna(objective: Callable[[float], float], rates: Sequence[float]) -> dict[float, float]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.GridSampler({"lr": list(rates)})
    )
    study.optimize(lambda one: objective(one.suggest_float("lr", 1e-6, 1e-1)), len(rates))
    return {one.params["lr"]: one.value for one in study.trials}


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], int(sys.argv[3]), [float(word) for word in sys.argv[4:]])
