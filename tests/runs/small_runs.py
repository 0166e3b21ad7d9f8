"""A small table of three domains, and runs on it: what many tests begin with."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.container.checksums import content_sha256, row_blocks
from cache.identity import fingerprint
from cache.store import read_table, write_table
from cache.table import FeatureTable
from kernels.heads.plain import Kind, first_row
from pipeline.runs.federate import federate
from pipeline.settings import RunConfig

KIND = Kind("FedAtImg", "attention", 12, 4)
PARTS = ("w1", "b1", "w2", "b2")
ALL = (("a",), ("b",), ("c",))
FILES = ("config.json", "rounds.jsonl", "adapter.safetensors")


def small(rows=(60, 45, 80), width=12, classes=4, seed=0, split=None):
    """Three domains whose features lie near their class's text feature, with noise."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(classes, width)).astype(np.float32)
    labels = np.concatenate([np.arange(n) % classes for n in rows]).astype(np.int64)
    features = text[labels] + rng.normal(size=(len(labels), width)) * 1.2
    features = features.astype(np.float32)
    domains = np.repeat(np.arange(len(rows)), rows).astype(np.int64)
    sha = content_sha256(row_blocks(features), features.dtype, labels, domains, text)
    identity = {"dataset": "small", "model": "drawn", "imported": sha}
    return FeatureTable(
        source="small",
        features=features,
        labels=labels,
        domains=domains,
        text_features=text,
        logit_scale=20.0,
        class_names=tuple(f"class {c}" for c in range(classes)),
        domain_names=tuple("abcdefg"[: len(rows)]),
        split=split,
        identity=identity,
        fingerprint=fingerprint(identity),
        content_sha256=sha,
    )


def stored(folder: Path) -> FeatureTable:
    """small() as a cache file in the folder, read from there."""
    write_table(folder / "small.h5", small())
    return read_table(folder / "small.h5")


def config(**changed) -> RunConfig:
    return RunConfig(**({"held_out": ALL, "rounds": 4, "batch": 8, "lr": 1e-3} | changed))


def run(table, out, settings=None, **options) -> dict:
    return federate(table, settings or config(), runs=out, out=out, device="cpu", **options)


@contextlib.contextmanager
def stopped_after(rounds: int) -> Iterator[None]:
    """Within it training ends by KeyboardInterrupt when it begins the round after so many."""
    from pipeline.federation import training

    left, advance = [rounds], training.advance

    def counted(engine, progress):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return advance(engine, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "advance", counted)
        yield


def seeded_start() -> torch.Tensor:
    return first_row(KIND, "default", 0, torch.ones(4, 12))


def figures(document: dict) -> dict:
    return {k: v for k, v in document.items() if k not in ("seconds", "run")}
