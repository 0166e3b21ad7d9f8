"""Whole federated runs on a cache of PACS's shape, beside the plain loop on the same cache."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from benchmarks import eager
from benchmarks.measure import quantiles
from benchmarks.rows import Row
from cache.checksums import content_sha256, row_blocks
from cache.identity import fingerprint
from cache.store import write_table
from cache.table import FeatureTable
from kernels.adapter import AdapterState
from kernels.backends import BACKENDS
from kernels.heads import attention_state, first_row
from pipeline.config import RunConfig
from pipeline.lanes import build_plan, round_rows, seeded_order
from pipeline.published_counts import KNOWN
from pipeline.training import to_device

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 512


def run(device: torch.device, quick: bool) -> list[Row]:
    """All rows of `bench round`: the blog's four commands, every backend, and the plain loop."""
    rounds = 3 if quick else 200
    table = pacs_shaped()
    plan = build_plan(table, config(rounds))
    plain = [_plain_round(table, plan, device) for _ in range(1 if quick else 3)]
    plain_seconds = [seconds * rounds for seconds in plain]
    shape = f"{len(table.labels)} x {WIDTH}, 4 held-out domains, {rounds} rounds"
    rows = [
        Row("round", "torch eager loop (scaled)", shape, "run", **quantiles(plain_seconds),
            samples=len(plain), times_baseline=1.0)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pacs-shaped.h5"
        write_table(file, table)
        for backend in BACKENDS[device.type]:
            if backend == "torch" and device.type == "cpu" and not quick:
                continue  # several minutes; --quick has its row
            _federate(file, Path(folder) / f"{backend}-warm", device, backend, 1)
            out = Path(folder) / backend
            seconds, training = _federate(file, out, device, backend, rounds)
            for name, value in (("whole process", seconds), ("training", training)):
                rows.append(
                    Row("round", f"federate, {backend}, {name}", shape, "run", value, value, value,
                        1, times_baseline=quantiles(plain_seconds)["p50"] / value)
                )  # fmt: skip
    return rows


def config(rounds: int) -> RunConfig:
    """The blog's four commands in one."""
    return RunConfig(held_out=tuple((name,) for name in KNOWN["pacs"].domain_names), rounds=rounds)


def pacs_shaped(seed: int = 0) -> FeatureTable:
    """A table with PACS's counts by domain and class; features are drawn around class centres."""
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


def _plain_round(table: FeatureTable, plan, device: torch.device) -> float:
    """Seconds of one round of all four: every client trained, averages scored on validation."""
    cached = to_device(table, device)
    kind = plan.work.kind
    start = attention_state(kind, first_row(kind, "default", 0, cached.text).to(device))
    rows = round_rows(plan.lanes, 0, seeded_order)
    started = time.perf_counter()
    trained = []
    for lane in range(len(plan.lanes)):
        parts = [part[part >= 0].long().to(device) for part in rows[:, lane] if part[0] >= 0]
        trained.append(
            eager.train(start, cached.features, cached.labels, cached.unit_text, parts,
                        cached.logit_scale)
        )  # fmt: skip
    for server in plan.servers:
        mean = [torch.stack([trained[k][w] for k in server.lanes]).mean(dim=0) for w in range(4)]
        for client in plan.folds[server.fold].clients:
            x = cached.features[torch.from_numpy(client.val).to(device)]
            eager.top1(AdapterState(*mean), x, normalize(cached.unit_text, dim=1)).sum().item()
    return time.perf_counter() - started


def _federate(
    file: Path, out: Path, device: torch.device, backend: str, rounds: int
) -> tuple[float, float]:
    """Seconds of the whole command, and of its training."""
    command = [sys.executable, "-m", "pipeline", "federate", str(file), "--held-out", "all",
               "--rounds", str(rounds), "--device", device.type, "--backend", backend,
               "--out", str(out), "--json"]  # fmt: skip
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return seconds, json.loads(done.stdout)["seconds"]["train"]
