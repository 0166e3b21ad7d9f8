"""Folders to report on: real small runs, and made ones as large and as odd as wanted."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from cache.store import write_table
from pipeline.digests import KEY, digests_of, sealed
from pipeline.runs.federate import federate
from pipeline.settings import RunConfig
from tests.runs.small_runs import small

HOSTILE = (
    "<script>document.title='owned'</script>",
    "\"><img src=x onerror=alert(1)>'",
    "Größe \u6f22\u5b57 \U0001f436",
    "=HYPERLINK(\"http://127.0.0.1/\")",
)  # fmt: skip


def real_run(folder: Path, classes: int = 4, rounds: int = 4, **settings) -> Path:
    """A run that federate made, of a table with hostile names, next to its cache `cache.h5`."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [*HOSTILE, *(f"class {c}" for c in range(classes))][:classes]
    table = replace(small(classes=classes), class_names=tuple(names), domain_names=HOSTILE[:3])
    write_table(folder / "cache.h5", table)
    held_out = tuple((name,) for name in table.domain_names)
    config = RunConfig(
        **({"held_out": held_out, "rounds": rounds, "batch": 8, "lr": 1e-3} | settings)
    )
    federate(table, config, runs=folder, out=folder / "run", device="cpu")
    name_cache(folder / "run", folder / "cache.h5")
    return folder / "run"


def name_cache(run: Path, cache: Path) -> None:
    """Writes where the features lie into a summary."""
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    summary["cache"]["file"] = str(cache)
    (run / "summary.json").write_text(json.dumps(summary), "utf-8")
    (run / "done").write_text(digests_of(run))


def made_run(folder: Path, domains: int, rounds: int, folds: int) -> Path:
    """A finished run of an older version, without digests, with as many domains, rounds and
    trainings as asked, and no adapters."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"domain {d}" for d in range(domains)]
    held_out = [[name] for name in names[:folds]]
    draw = random.Random(0)
    levels = {name: draw.uniform(0.5, 0.9) for name in names}

    def fold(out: list[str], round: int) -> dict:
        grown = {name: levels[name] + 0.05 * (1 - math.exp(-round / 50)) for name in names}
        seen = {name: value for name, value in grown.items() if name not in out}
        return {
            "held_out": out[0],
            "train_loss": {name: 2 - value for name, value in seen.items()},
            "val_accuracy": seen,
            "best": round % 50 == 0,
            "test_accuracy": grown if round % 50 == 0 else None,
            "train_accuracy": None,
        }

    with (folder / "rounds.jsonl").open("w") as log:
        for round in range(rounds):
            line = {"round": round, "folds": [fold(out, round) for out in held_out]}
            log.write(json.dumps(line) + "\n")
    cache = {"rows": 9, "width": 4, "classes": 3, "domains": names, "content_sha256": "0" * 64,
             "dataset": "made", "model": "ViT-B/32"}  # fmt: skip
    settings = {"held_out": held_out, "method": "fedavg", "rounds": rounds, "lr": 5e-5}
    described = {"settings": settings, "cache": cache, "backend": "torch", "device": "cpu"}
    (folder / "config.json").write_text(json.dumps(described))
    zero_shot = {"unseen": 0.6, "participants": 0.7, "overall": 0.65, "val_accuracy": 0.7,
                 "per_domain": dict.fromkeys(names, 0.6)}  # fmt: skip
    results = [
        {"held_out": out[0], "best_round": 0, "val_accuracy": 0.72, "unseen": 0.61,
         "participants": 0.71, "overall": 0.66, "per_domain": levels, "zero_shot": zero_shot,
         "gate": {"distance": 0.1, "changed": 1, "tested": 9}}
        for out in held_out
    ]  # fmt: skip
    summary = {"cache": cache, "results": results, "seconds": {"load": 1, "train": 2, "total": 3}}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "adapter.safetensors").write_bytes(save({}, {KEY: "{}"}))
    (folder / "done").touch()
    return folder


def made_sweep(folder: Path, trials: int = 60) -> Path:
    """Configurations with three seeds each; some trials diverged or were pruned."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    lines = []
    for number in range(trials):
        if number % 3 == 0:
            chosen = {"lr": draw.choice([5e-5, 3e-4, 1e-3, 1e-2]), "weight_decay": number,
                      "loss": draw.choice(["contrastive", HOSTILE[0]]),
                      "head": draw.choice(["attention", "cosine"]), "rounds": 20}  # fmt: skip
        lines.append(json.dumps(sealed(_trial(number, chosen, draw))))
    (folder / "trials.jsonl").write_text("".join(line + "\n" for line in lines))
    spec = sealed({"method": "random", "metric": "val_accuracy"})
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def _trial(number: int, settings: dict, draw: random.Random) -> dict:
    lr = settings["lr"]
    status = "diverged" if lr == 1e-2 and number % 2 else "pruned" if number % 7 == 0 else "done"
    value = round(0.6 + 0.04 * math.log10(lr / 5e-5) + draw.gauss(0, 0.02), 4)
    sides = {"unseen": value - 0.01, "participants": value, "overall": value, "val_accuracy": value,
             "per_domain": {HOSTILE[1]: value}}  # fmt: skip
    result = {"held_out": HOSTILE[1], "best_round": 3, **sides, "zero_shot": sides, "gate": None}
    lost = status == "diverged"
    return {
        "id": f"{number:04x}",
        "number": number,
        "settings": settings,
        "seed": number % 3,
        "status": status,
        "rounds": 20,
        "results": [] if lost else [result],
        "val_accuracy": None if lost else value,
        "seconds": 1.5,
    }


def made_bench(file: Path) -> Path:
    """A benchmark's result file with a floor, and a case without one."""
    machine = {"date": "2026-01-01", "cpu": HOSTILE[0], "cores": 2, "gpu": None}
    case = {"benchmark": "step", "case": "torch", "shape": "B 32", "unit": "step", "p20": 2e-3,
            "p50": 3e-3, "p80": 4e-3, "samples": 5, "times_baseline": 1.0,
            "of_ceiling": 0.25}  # fmt: skip
    other = {**case, "case": HOSTILE[1], "p50": 1e-3, "p20": 9e-4, "times_baseline": 3.0,
             "of_ceiling": None}  # fmt: skip
    lines = [{"machine": machine}, case, other]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def weights_of(run: Path, fold: int) -> list[np.ndarray]:
    """The kept adapter of one training, float64: w1, b1, w2, b2."""
    from safetensors.numpy import load_file

    tensors = load_file(run / "adapter.safetensors")
    return [tensors[f"best.{name}"][fold].astype(float) for name in ("w1", "b1", "w2", "b2")]


def copy(run: Path, target: Path, *names: str) -> Path:
    """Some files of a run in a folder of their own."""
    target.mkdir()
    for name in names:
        (target / name).write_bytes((run / name).read_bytes())
    return target
