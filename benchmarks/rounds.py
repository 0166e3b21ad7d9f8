"""Whole federated runs on a PACS-shaped cache, against the plain loop on the same cache."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import eager
from benchmarks.compare import Fault, Wrong, checked, distance
from benchmarks.measure import Times
from benchmarks.rows import Row
from cache.container.checksums import content_sha256, row_blocks
from cache.identity import fingerprint
from cache.store import write_table
from cache.table import FeatureTable
from kernels.backends import BACKENDS
from kernels.heads.plain import attention_state, first_row
from pipeline.datasets.counts import KNOWN
from pipeline.federation.evaluate import Cached
from pipeline.federation.local import Engine
from pipeline.federation.plan import Plan, build_plan, round_rows, seeded_order
from pipeline.federation.round import run_round
from pipeline.federation.training import begin, to_device
from pipeline.settings import RunConfig

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 512


def run(device: torch.device, quick: bool) -> list[Row | Fault]:
    """All rows of `bench round`: the blog's four commands, every backend, and the plain loop.

    The plain loop's rounds are timed before and after the full runs and scaled to as many rounds.
    """
    rounds, folds = (2, 1) if quick else (200, 4)
    table, asked = pacs_shaped(), config(rounds, folds)
    plan = build_plan(table, asked)
    cached = to_device(table, device)
    truth, _ = _plain_round(plan, cached, torch.float64)
    plain, runs, errors, faults = Times(), {}, {}, []
    plain_error = distance((_add_plain(plain, plan, cached, rounds),), (truth,))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pacs-shaped.h5"
        write_table(file, table)
        for backend in BACKENDS[device.type]:
            if backend == "torch" and device.type == "cpu" and not quick:
                continue  # takes several minutes; --quick has this row
            try:
                state, _ = run_round(begin(plan, cached).state, Engine(plan, cached, backend), 0)
                error = distance((state["server"],), (truth,))
                errors[backend] = checked(f"a round, {backend}", error, plain_error)
            except Wrong as wrong:
                faults.append(Fault("round", backend, str(wrong)))
                continue
            runs[backend] = _federate(file, Path(folder) / backend, device, backend, asked)
    for _ in range(1 if quick else 3):
        _add_plain(plain, plan, cached, rounds)
    held_out = f"{folds} held-out domain{'s' * (folds > 1)}"
    shape = f"{len(table.labels)} x {WIDTH}, {held_out}, {rounds} rounds"
    rows = [
        Row("round", f"torch eager loop (its rounds x {rounds})", shape, "run",
            **plain.quantiles(), times_baseline=1.0, error=plain_error, plain_error=plain_error)
    ]  # fmt: skip
    middle = plain.quantiles()["p50"]
    for backend, (whole, training) in runs.items():
        for name, times in (("whole process", whole), ("training", training)):
            found = times.quantiles()
            rows.append(
                Row("round", f"federate, {backend}, {name}", shape, "run", **found,
                    times_baseline=middle / found["p50"], error=errors[backend],
                    plain_error=plain_error)
            )  # fmt: skip
    return [*rows, *faults]


def config(rounds: int, folds: int = 4) -> RunConfig:
    """The blog's four commands as one config, or the first `folds` of them."""
    held_out = tuple((name,) for name in KNOWN["pacs"].domain_names[:folds])
    return RunConfig(held_out=held_out, rounds=rounds)


def pacs_shaped(seed: int = 0) -> FeatureTable:
    """A table with PACS's counts per domain and class; features are drawn around class centres."""
    draw = np.random.default_rng(seed)
    domains, classes = KNOWN["pacs"].domain_names, KNOWN["pacs"].class_names
    text = draw.normal(size=(len(classes), WIDTH)).astype(np.float32)
    label_parts, domain_parts = [], []
    for d, domain in enumerate(domains):
        for c, name in enumerate(classes):
            label_parts.append(np.full(KNOWN["pacs"].counts[domain, name], c))
            domain_parts.append(np.full(KNOWN["pacs"].counts[domain, name], d))
    labels = np.concatenate(label_parts).astype(np.int64)
    of_domain = np.concatenate(domain_parts).astype(np.int64)
    shift = draw.normal(size=(len(domains), WIDTH))
    noise = draw.normal(size=(len(labels), WIDTH))
    features = (0.02 * text[labels] + 0.2 * shift[of_domain] + 0.35 * noise).astype(np.float32)
    sha = content_sha256(row_blocks(features), features.dtype, labels, of_domain, text)
    identity = {"dataset": "pacs-shaped", "model": "drawn", "imported": sha}
    return FeatureTable(
        source="pacs-shaped",
        features=features,
        labels=labels,
        domains=of_domain,
        text_features=text,
        logit_scale=100.0,
        class_names=tuple(classes),
        domain_names=tuple(domains),
        split=None,
        identity=identity,
        fingerprint=fingerprint(identity),
        content_sha256=sha,
    )


def _add_plain(times: Times, plan: Plan, cached: Cached, rounds: int) -> Tensor:
    """Time one plain round, scaled to `rounds`; returns the servers' adapters."""
    started, cpu = time.perf_counter(), time.process_time()
    servers, _ = _plain_round(plan, cached)
    times.seconds.append((time.perf_counter() - started) * rounds)
    times.cpu.append((time.process_time() - cpu) * rounds)
    return servers


def _plain_round(
    plan: Plan, cached: Cached, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor]]:
    """One round of all folds: train every client, score the averages on validation rows.

    Returns the servers' adapters as rows (S, P), and their predictions.
    """
    kind, device = plan.work.kind, cached.features.device
    x, text = cached.features.to(dtype), cached.unit_text.to(dtype)
    first = first_row(kind, "default", 0, cached.text).to(device, dtype)
    rows = round_rows(plan.lanes, 0, seeded_order)
    trained = []
    for lane in range(len(plan.lanes)):
        parts = [part[part >= 0].long().to(device) for part in rows[:, lane] if part[0] >= 0]
        state = eager.train(
            attention_state(kind, first), x, cached.labels, text, parts, cached.logit_scale
        )
        trained.append(torch.cat([weight.flatten() for weight in state]))
    servers, answers = [], []
    for server in plan.servers:
        servers.append(torch.stack([trained[k] for k in server.lanes]).mean(dim=0))
        for client in plan.folds[server.fold].clients:
            own = x[torch.from_numpy(client.val).to(device)]
            answers.append(eager.top1(attention_state(kind, servers[-1]), own, text).cpu())
    return torch.stack(servers), answers


def _federate(
    file: Path, out: Path, device: torch.device, backend: str, asked: RunConfig
) -> tuple[Times, Times]:
    """Times of the whole command and of its training."""
    held_out = [word for names in asked.held_out for word in ("--held-out", *names)]
    command = [sys.executable, "-m", "pipeline", "federate", str(file), *held_out,
               "--rounds", str(asked.rounds), "--device", device.type, "--backend", backend,
               "--out", str(out), "--json"]  # fmt: skip
    started, before = time.perf_counter(), os.times()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - started, os.times()
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}:\n{done.stderr}")
    cpu = sum(after[2:4]) - sum(before[2:4])  # children's user and system time
    return Times([seconds], [cpu]), Times([json.loads(done.stdout)["seconds"]["train"]])
