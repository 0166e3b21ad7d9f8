"""Damaged files of sweeps, reproductions, benchmarks and downloads, and what reads them."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import digests as seals
from pipeline.reports.page import read, report_html
from pipeline.reports.trials import read_sweep
from pipeline.settings import RunConfig
from pipeline.sweeps import trials
from pipeline.sweeps.reproduced import FIGURES, compared
from pipeline.sweeps.run import sweep
from pipeline.sweeps.search import listed_trials
from pipeline.sweeps.spec import from_options
from pipeline.sweeps.trials import open_sweep
from pipeline.sweeps.wandb import from_wandb, read_yaml
from pipeline.transfer import connection
from tests.reliability.taken import taken
from tests.reports.report_folders import made_bench
from tests.runs.small_runs import config, small


def make_sweep(name: str) -> Callable[[Path], list[bytes]]:
    def prepare(place: Path) -> list[bytes]:
        spec = from_options(["lr=1e-3,1e-2", "batch=8,16"])
        base = config(rounds=3, held_out=(("a",),))
        sweep(small(), spec, base, runs=place, out=place / "made", device="cpu")
        return [(place / "made" / name).read_bytes()]

    return prepare


def read_sweep_file(name: str) -> Callable[[Path, bytes], dict[str, str]]:
    def readers(place: Path, data: bytes) -> dict[str, str]:
        sound, folder = place / "made", place / "sweep"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(sound, folder)
        (folder / name).write_bytes(data)
        described = seals.unsealed(json.loads((sound / "spec.json").read_text()))
        whole, _ = trials.read_trials(sound / "trials.jsonl")

        def go_on() -> str:
            with open_sweep(folder, described) as opened:
                # A line that is lost is trained again; one that is there must be as it was.
                lines = opened.records.values()
                return "sound" if all(whole.get(r.id) == r for r in lines) else "changed"

        def page() -> str:
            found = read_sweep(folder)
            report_html([read(folder)])
            known = {t.id: t for t in read_sweep(sound).trials}
            same = all(known.get(t.id) == t for t in found.trials)
            return "sound" if same and found.spec == read_sweep(sound).spec else "changed"

        return taken({"sweep": go_on, "report": page})

    return readers


def read_forged_trials(place: Path, data: bytes) -> dict[str, str]:
    """Damaged lines under right digests."""
    lines = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(line)
            lines.append(json.dumps(seals.sealed(found) if isinstance(found, dict) else found))
    return read_sweep_file("trials.jsonl")(place, "\n".join([*lines, ""]).encode())


YAML = b"""program: train.py
method: random
metric: {name: val_accuracy, goal: maximize}
run_cap: 5
early_terminate: {type: hyperband, eta: 3, min_iter: 2}
parameters:
  lr: {distribution: log_uniform_values, min: 1.0e-5, max: 1.0e-2}
  weight_decay: {values: [0, 0.2]}
  batch: {distribution: q_uniform, min: 8, max: 64, q: 8}
  seed: {values: [0, 1]}
"""
GRID = b"""method: grid
parameters:
  lr:
    values: [5.0e-5, 3.0e-4]
  head:
    value: low-rank
  rank:
    values: [2, 4]
"""


def read_spec(place: Path, data: bytes) -> dict[str, str]:
    """A file that a person writes: another one is another sweep, not a damaged one."""
    (place / "sweep.yaml").write_bytes(data)

    def trials_of() -> Any:
        found = from_wandb(read_yaml(place / "sweep.yaml"), rounds=9)
        return listed_trials(found, RunConfig()) if found.method != "bayes" else found

    return taken({"sweep": trials_of})


def read_bench_file(place: Path, data: bytes) -> dict[str, str]:
    (place / "a.jsonl").write_bytes(data)
    return taken({"report": lambda: report_html([read(place / "a.jsonl")]) and "page"})


def make_bench(place: Path) -> list[bytes]:
    return [made_bench(place / "made.jsonl").read_bytes()]


def make_reproduced(place: Path) -> list[bytes]:
    """reproduced.json in a sweep's folder."""
    make_sweep("spec.json")(place)
    zero = dict.fromkeys(FIGURES, 0.5)
    fold = {"held_out": "a", "zero_shot": zero, **dict.fromkeys(FIGURES, 0.6)}
    facts = {"dataset": "small", "model": "demo", "counts": [], "rounds": 3, "lost": []}
    found = {**facts, **compared({0: [fold], 1: [fold]}, {"a": 0.55})}
    return [json.dumps(seals.sealed(found), indent=2).encode()]


def read_reproduced(place: Path, data: bytes) -> dict[str, str]:
    (place / "made" / "reproduced.json").write_bytes(data)
    written = re.compile(rb"Written [^<]* by")  # the minute of it
    return taken({"report": lambda: written.sub(b"", report_html([read(place / "made")]))})


def make_note(place: Path) -> list[bytes]:
    """What lies beside a download that goes on later."""
    note = {"url": "http://a/PACS.zip", "etag": '"one"', "modified": None, "length": 300_000}
    return [json.dumps(note).encode()]


def read_note(place: Path, data: bytes) -> dict[str, str]:
    """A note that says another version makes the download start afresh."""
    (place / "note").write_bytes(data)
    return taken(
        {"download": lambda: (n := connection._read_note(place / "note")) and n.condition()}
    )
