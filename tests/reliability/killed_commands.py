"""The commands that are killed, on tiny data, and what of their results is compared."""

import hashlib
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cache.store import write_table
from pipeline.digests import unsealed
from tests.datasets.loopback import Server
from tests.encoder import clips
from tests.runs.small_runs import small


class Command(NamedTuple):
    """A command line, in which {out} is where it writes; and what is looked at in the end."""

    words: str
    left: Callable[[Path, str], Any]  # (out, stdout) -> what must be equal
    ends: int = 0  # its exit code when it is left alone
    there: int = 0  # its exit code when what it makes is there already, whole


def files(*names: str) -> Callable[[Path, str], Any]:
    """The bytes of some files."""

    def left(out: Path, stdout: str) -> Any:
        return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}

    return left


def run_left(out: Path, stdout: str) -> Any:
    """A run's files; of its summary all but times and places."""
    summary = json.loads((out / "run" / "summary.json").read_text())
    for name in ("seconds", "run"):
        del summary[name]
    names = ("config.json", "rounds.jsonl", "adapter.safetensors")
    return files(*(f"run/{name}" for name in names))(out, stdout), summary


def sweep_left(out: Path, stdout: str) -> Any:
    """A sweep's trials, without their seconds and in the order of their numbers."""
    lines = (out / "sweep" / "trials.jsonl").read_text().splitlines()
    found = [unsealed(json.loads(line)) for line in lines]
    for each in found:
        del each["seconds"]
    return sorted(found, key=lambda each: each["number"])


def page_left(out: Path, stdout: str) -> Any:
    """The page without the minute it was written at."""
    text = (out / "page.html").read_text("utf-8")
    return hashlib.sha256(re.sub(r"Written [-0-9 :]+ by", "", text).encode()).hexdigest()


def export_left(out: Path, stdout: str) -> Any:
    """What an .npz holds; the archive has times in it."""
    with np.load(out / "x.npz") as found:
        return {name: found[name].tobytes() for name in found.files}


def reproduced_left(out: Path, stdout: str) -> Any:
    """The table, and the cache's bytes."""
    document = unsealed(json.loads((out / "sweep" / "reproduced.json").read_text()))
    return document["rows"], document["mean"], files("x.h5")(out, stdout)


def tree_left(out: Path, stdout: str) -> Any:
    """Every file of a data set."""
    found = sorted(path for path in (out / "PACS").rglob("*") if path.is_file())
    return [(str(path.relative_to(out)), path.read_bytes()) for path in found]


def predict_left(out: Path, stdout: str) -> Any:
    return json.loads(stdout)


def verify_left(out: Path, stdout: str) -> Any:
    return stdout


COMMANDS = {
    "extract": Command(
        "extract --dataset {data}/images --model {data}/clip.safetensors --out {out}/x.h5"
        " --device cpu --batch 2 --workers 2",
        files("x.h5"),
    ),
    "extract --shard": Command(
        "extract --dataset {data}/images --model {data}/clip.safetensors --out {out}/x.h5"
        " --device cpu --batch 2 --workers 2 --shard 2/3",
        files("x.shard-2-of-3.h5"),
    ),
    "cache merge": Command(
        "cache merge {data}/s.shard-1-of-3.h5 {data}/s.shard-2-of-3.h5 {data}/s.shard-3-of-3.h5"
        " --out {out}/x.h5",
        files("x.h5"),
        there=4,
    ),
    "federate": Command(
        "federate {data}/small.h5 --rounds 250 --batch 8 --lr 1e-3 --device cpu --out {out}/run",
        run_left,
    ),
    "federate, with memory": Command(
        "federate {data}/small.h5 --rounds 120 --batch 8 --lr 1e-3 --device cpu --out {out}/run"
        " --method fedadam --moments kept --payload int8 --held-out a",
        run_left,
    ),
    "sweep": Command(
        "sweep {data}/small.h5 --grid lr=1e-4,1e-3,1e-2 --grid head=attention,low-rank --seeds 2"
        " --rounds 40 --batch 8 --device cpu --memory 3M --out {out}/sweep",
        sweep_left,
    ),
    "sweep --halving": Command(
        "sweep {data}/small.h5 --grid lr=1e-5..1e-1 --random 9 --halving 3 --rounds 60 --batch 8"
        " --device cpu --memory 3M --out {out}/sweep",
        sweep_left,
    ),
    "predict": Command(
        "predict {data}/images --run {data}/run --held-out domain0 --model {data}/clip.safetensors"
        " --device cpu --json",
        predict_left,
    ),
    "report": Command("report {data}/run --cache {data}/x.h5 --out {out}/page.html", page_left),
    "cache import": Command("cache import {data}/big.npz --out {out}/x.h5", files("x.h5"), there=4),
    "cache export": Command("cache export {data}/big.h5 --out {out}/x.npz", export_left, there=4),
    "cache verify": Command("cache verify {data}/big.h5", verify_left),
    "reproduce": Command(
        "reproduce {data}/images --model {data}/clip.safetensors --seeds 2 --rounds 40 --workers 0"
        " --device cpu --cache {out}/x.h5 --out {out}/sweep",
        reproduced_left,
    ),
    # Its counts are not those that PACS is published with, so it ends with a word on that.
    "download": Command("download pacs --root {out} --url {url}", tree_left, ends=6),
}


def prepare(data: Path, server: Server) -> None:
    """Images, a small CLIP, caches and an archive to download."""
    clips.save(clips.build(), data / "clip.safetensors", "safetensors")
    draw = np.random.default_rng(0)
    for number in range(120):
        file = data / "images" / f"domain{number % 3}" / f"class{number % 2}" / f"{number:03}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (100, 100, 3), np.uint8)).save(file)
    write_table(data / "small.h5", small())
    big = {"features": draw.standard_normal((60_000, 64)).astype(np.float32)}
    big |= {"labels": np.arange(60_000) % 5, "domains": np.arange(60_000) % 3}
    np.savez(data / "big.npz", text_features=draw.standard_normal((5, 64)), **big)
    with zipfile.ZipFile(data / "PACS.zip", "w") as archive:
        for number in range(1200):
            domain = ("art_painting", "cartoon", "photo", "sketch")[number % 4]
            archive.writestr(f"PACS/{domain}/dog/{number}.jpg", draw.bytes(2000))
    server.content, server.block, server.pause = (data / "PACS.zip").read_bytes(), 1 << 15, 0.003
