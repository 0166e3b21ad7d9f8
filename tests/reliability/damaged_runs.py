"""Damaged files of runs, and what reads them."""

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save as as_safetensors

from kernels.heads.plain import first_row, named
from pipeline import digests as seals
from pipeline.reports.data import read_run
from pipeline.reports.page import read, report_html
from pipeline.runs import folder as run_folder
from pipeline.runs.adapters import read_trained
from tests.reliability.taken import digest, taken
from tests.reports.report_folders import real_run
from tests.runs.small_runs import KIND


def make_run(name: str, finished: bool) -> Callable[[Path], list[bytes]]:
    def prepare(place: Path) -> list[bytes]:
        for seed in (0, 1):
            real_run(place / f"made {seed}", seed=seed)
            if not finished:
                for file in ("done", "summary.json"):
                    (place / f"made {seed}" / "run" / file).unlink()
        return [(place / f"made {seed}" / "run" / name).read_bytes() for seed in (0, 1)]

    return prepare


def read_run_file(name: str, finished: bool, old: bool = False) -> Callable:
    def readers(place: Path, data: bytes) -> dict[str, str]:
        folder, cache = place / "run", place / "made 0" / "cache.h5"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(place / "made 0" / "run", folder)
        if old:  # an older version's `done` lists nothing, and its adapters have no digest
            adapters = folder / "adapter.safetensors"
            tensors, facts = run_folder.read_adapters(adapters)
            arrays = {part: tensor.numpy() for part, tensor in tensors.items()}
            whole = as_safetensors(arrays, {seals.KEY: json.dumps(facts)})
            adapters.unlink()  # the tensors lie in it
            adapters.write_bytes(whole)
            (folder / "done").write_bytes(b"")
        (folder / name).write_bytes(data)
        described = json.loads((place / "made 0" / "run" / "config.json").read_text())

        def go_on() -> Any:
            """What federate takes from the folder; starting anew is as good as going on."""
            with run_folder.open_run(folder) as opened:
                opened.describe(described, force=False)
                found = opened.summary if finished else opened.resume()
                log = (folder / "rounds.jsonl").read_bytes()
                return "anew" if found is None else (found, log)

        def page() -> str:
            data = read(folder)
            html = report_html([data], cache=cache)
            assert b"<script>document.title" not in html and b"<img src=x" not in html
            # What an unfinished run's page tells is no result; a finished one's is.
            return digest(vars(read_run(folder))) if finished else "unfinished"

        parts = {"federate": go_on}
        if name == "adapter.safetensors":
            parts["read_adapters"] = lambda: run_folder.read_adapters(folder / name)
            held_out = described["settings"]["held_out"][0][0]
            parts["predict"] = lambda: vars(read_trained(folder, held_out))
        found = taken({"report": page, **parts})
        if found.get("federate") == digest("anew"):
            del found["federate"]
        if not finished:
            found.pop("report", None)
        return found

    return readers


def make_facts(place: Path) -> list[bytes]:
    """The facts of an adapter file as JSON."""
    make_run("adapter.safetensors", finished=False)(place)
    found = []
    for seed in (0, 1):
        file = place / f"made {seed}" / "run" / "adapter.safetensors"
        found.append(json.dumps(run_folder.read_adapters(file)[1]).encode())
    return found


def read_facts(place: Path, data: bytes) -> dict[str, str]:
    """Damaged facts under a right digest, as a forger would make them."""
    file = place / "made 0" / "run" / "adapter.safetensors"
    tensors, _ = run_folder.read_adapters(place / "sound" if (place / "sound").exists() else file)
    if not (place / "sound").exists():
        shutil.copy(file, place / "sound")
    try:
        facts = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(facts, dict):
        return {}
    with contextlib.suppress(ValueError, RecursionError):
        run_folder.write_adapters(place / "forged", tensors, facts)
        forged = (place / "forged").read_bytes()
        return read_run_file("adapter.safetensors", finished=False)(place, forged)
    return {}


def make_first_adapter(place: Path) -> list[bytes]:
    """What --init-adapter takes: the parts of one adapter, made by whomever."""
    adapter = named(KIND, first_row(KIND, "default", 0, torch.ones(4, 12)))
    return [as_safetensors({name: part.numpy() for name, part in adapter.items()})]


def read_first_adapter(place: Path, data: bytes) -> dict[str, str]:
    (place / "first").write_bytes(data)
    return taken({"federate": lambda: run_folder.read_first_adapter(place / "first", KIND)})
