"""What the fuzzer damages and who reads it: kinds of files, and the functions that take them in.

A Kind's `read` puts the damaged bytes where the file belongs and returns what each reader made of
them, by reader; a reader that refused with one of the product's own errors is not in it. Where a
kind is strict, whatever was made must be what the undamaged file gives.
"""

import contextlib
import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cache import store
from cache.disk import partial_of
from cache.npz import read_npz
from cache.table import CacheError, FeatureTable
from kernels.backends import BackendUnavailable
from pipeline import run_folder, seals, trials
from pipeline.config import ConfigError, RunConfig
from pipeline.report_data import read_run
from pipeline.report_page import read, report_html
from pipeline.report_trials import read_sweep
from pipeline.search import listed_trials
from pipeline.sweep_run import sweep
from pipeline.sweep_spec import from_options
from pipeline.sweep_wandb import from_wandb
from pipeline.sweep_yaml import read_yaml
from pipeline.trained import read_trained
from tests import caches
from tests.report_folders import made_bench, real_run
from tests.test_federate import config, small
from tests.test_store_forged import seal

EXPECTED = (CacheError, ConfigError, BackendUnavailable)
"""The product's own errors, each with an exit code."""


class Kind(NamedTuple):
    """One sort of file."""

    prepare: Callable[[Path], list[bytes]]  # makes what stands around it; sound files of the kind
    read: Callable[[Path, bytes], dict[str, str]]  # reader -> digest of what it made of the bytes
    strict: bool = True


def taken(readers: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """What each reader returns, as a digest; those that refuse are left out."""
    found = {}
    for name, reader in readers.items():
        try:
            found[name] = digest(reader())
        except EXPECTED as error:
            assert "\n" not in str(error).strip() and isinstance(error.exit_code, int), error
    return found


def digest(value: Any) -> str:
    """The same for the same content, arrays by their bytes."""
    if isinstance(value, FeatureTable):
        value = {k: v for k, v in vars(value).items() if k != "source"}
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        value = (value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest())
    if isinstance(value, dict):
        value = sorted((str(k), digest(v)) for k, v in value.items())
    elif isinstance(value, list | tuple):
        value = [digest(v) for v in value]
    return hashlib.sha256(repr(value).encode("utf-8", "backslashreplace")).hexdigest()[:16]


# --- caches ---------------------------------------------------------------------------------------

DRAWN = caches.draw(60, 6)


def make_cache(place: Path) -> list[bytes]:
    """A complete cache, and one with unreadable rows and a split."""
    one = caches.make(place / "one.h5", DRAWN)
    split = np.arange(60).astype(np.int8) % 3
    other = caches.make(place / "two.h5", DRAWN, unreadable=(3, 7), split=split)
    return [one.read_bytes(), other.read_bytes()]


def read_cache(place: Path, data: bytes) -> dict[str, str]:
    path = place / "a.h5"
    path.write_bytes(data)
    return taken(
        {
            "read_table": lambda: (t := store.read_table(path), store.load_features(t)),
            "read_paths": lambda: store.read_paths(path),
            "info": lambda: store.info(path),
            "verify": lambda: store.verify(path),
        }
    )


def read_forged_cache(place: Path, data: bytes) -> dict[str, str]:
    path = place / "a.h5"
    path.write_bytes(data)
    with contextlib.suppress(Exception):  # what cannot be sealed is read as it is
        seal(path)
    return read_cache(place, path.read_bytes())


def make_partial(place: Path) -> list[bytes]:
    """A cache that was begun, half filled; and the whole that it becomes."""
    (place / "whole.h5").unlink(missing_ok=True)
    caches.make(place / "whole.h5", DRAWN)
    with caches.begin(place / "a.h5", DRAWN) as writer:
        some = writer.todo[:30]
        writer.put(some, DRAWN["features"][some], np.ones(30))
    return [partial_of(place / "a.h5").read_bytes()]


def read_partial(place: Path, data: bytes) -> dict[str, str]:
    """Gone on with: refused, or it ends with the bytes of an undisturbed one."""
    path = place / "a.h5"
    path.unlink(missing_ok=True)
    partial_of(path).write_bytes(data)

    def resume() -> bytes:
        with caches.begin(path, DRAWN) as writer:
            caches.fill(writer, DRAWN)
            writer.publish()
        return path.read_bytes()

    return taken({"open_writer": resume})


# --- features from elsewhere ----------------------------------------------------------------------


def arrays() -> dict[str, np.ndarray]:
    """Every key that an .npz may have."""
    draw = np.random.default_rng(0)
    return {
        "features": draw.standard_normal((40, 5)).astype(np.float16),
        "labels": draw.integers(0, 3, 40),
        "text_features": draw.standard_normal((3, 5)).astype(np.float32),
        "domains": np.arange(40) % 2,
        "class_names": np.array(["cat", "dog", "Größe"]),
        "domain_names": np.array(["photo", "sketch"]),
        "split": (np.arange(40) % 3).astype(np.int8),
        "logit_scale": np.float64(50),
        "model": np.array("ViT-B/32"),
        "normalised": np.bool_(False),
    }


def make_npz(place: Path) -> list[bytes]:
    """Stored and deflated."""
    found = []
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, **arrays())
        found.append(buffer.getvalue())
    return found


def read_imported(place: Path, data: bytes) -> dict[str, str]:
    path = place / "a.npz"
    path.write_bytes(data)
    return taken({"read_npz": lambda: read_npz(path)})


def make_members(place: Path) -> list[bytes]:
    """Each member alone, its name's number in front."""
    found = []
    for number, value in enumerate(arrays().values()):
        buffer = io.BytesIO()
        np.save(buffer, value)
        found.append(bytes([number]) + buffer.getvalue())
    return found


def read_member(place: Path, data: bytes) -> dict[str, str]:
    """A damaged .npy under a right checksum of the archive."""
    names = list(arrays())
    damaged = names[(data or b"\0")[0] % len(names)]
    with zipfile.ZipFile(place / "a.npz", "w") as archive:
        for name, value in arrays().items():
            buffer = io.BytesIO()
            np.save(buffer, value)
            archive.writestr(f"{name}.npy", data[1:] if name == damaged else buffer.getvalue())
    return taken({"read_npz": lambda: read_npz(place / "a.npz")})


# --- runs -----------------------------------------------------------------------------------------

SETTINGS = config(rounds=3)


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
        if old:  # an older version's `done` lists nothing
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


# --- sweeps ---------------------------------------------------------------------------------------


def make_sweep(name: str) -> Callable[[Path], list[bytes]]:
    def prepare(place: Path) -> list[bytes]:
        spec = from_options(["lr=1e-3,1e-2", "batch=8,16"])
        base = replace(SETTINGS, held_out=(("a",),))
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
            with trials.open_sweep(folder, described) as opened:
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


KINDS = {
    "cache": Kind(make_cache, read_cache),
    "cache, forged": Kind(make_cache, read_forged_cache, strict=False),
    "cache, unfinished": Kind(make_partial, read_partial),
    "npz": Kind(make_npz, read_imported),
    "npz, forged": Kind(make_members, read_member, strict=False),
    **{
        f"{name}, {'finished' if finished else 'unfinished'} run": Kind(
            make_run(name, finished), read_run_file(name, finished)
        )
        for finished in (True, False)
        for name in seals.FINISHED
        if finished or name != "summary.json"
    },
    "done": Kind(make_run("done", True), read_run_file("done", True)),
    **{
        f"{name}, older run": Kind(
            make_run(name, True), read_run_file(name, True, old=True), strict=False
        )
        for name in ("config.json", "rounds.jsonl", "summary.json")
    },
    "adapter.safetensors, forged": Kind(make_facts, read_facts, strict=False),
    "trials.jsonl": Kind(make_sweep("trials.jsonl"), read_sweep_file("trials.jsonl")),
    "trials.jsonl, forged": Kind(make_sweep("trials.jsonl"), read_forged_trials, strict=False),
    "spec.json": Kind(make_sweep("spec.json"), read_sweep_file("spec.json")),
    "sweep.yaml": Kind(lambda place: [YAML, GRID], read_spec, strict=False),
    "bench.jsonl": Kind(make_bench, read_bench_file, strict=False),
}
