"""The built-in data set: seven things in four drawing styles, identical on every machine."""

import json
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from pipeline.datasets.demo.scenes import OTHER_HABITS, Habit, compose
from pipeline.datasets.demo.shapes import SHAPES
from pipeline.datasets.demo.styles import STYLES
from pipeline.files import naming
from pipeline.machine import cores

VERSION = 1  # increased when drawings change; folders of an older version are redrawn
PICTURES = 3000
HABIT = 0.6  # how often a choice follows the habits, with which the CLIP was not trained
# No two domains have the same size, nor the classes of one: clients are unequal, as in practice.
DOMAIN_SHARES = {"cartoon": 76, "painted": 68, "shaded": 58, "sketch": 98}
CLASS_SHARES = (10, 14, 8, 12, 16, 9, 11)  # of the classes in order, rotated by one per domain
TASK = 25  # pictures that a worker draws at a time
ALONE = 200  # for fewer pictures, starting workers takes longer than drawing


def draw_dataset(
    folder: Path, *, seed: int = 0, pictures: int = PICTURES, workers: int | None = None
) -> Path:
    """Draw the data set as folder/<domain>/<class>/<number>.png, unless it is already there.

    Every picture depends only on (seed, domain, class, number), so the files do not depend on
    `workers` (None: one per core). Files appear complete, by rename; <folder>.json beside the
    folder records what is drawn there and whether it is finished, so a killed drawing is completed
    by the next call, and one of another seed, size or version is redrawn.

    returns  folder
    Raises ValueError for fewer pictures than there are pairs of domain and class, and for a
    folder with pictures of its own.
    """
    folder = Path(folder)
    counts = picture_counts(pictures)
    wanted = {"version": VERSION, "seed": seed, "pictures": pictures}
    record = folder.with_name(folder.name + ".json")
    if _read(record) == wanted | {"finished": True} and not _missing(folder, counts):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        begun = _read(record)
        if begun is None and any(folder.glob("*/*/*")):
            raise ValueError(
                f"{folder} has pictures, but {record} does not record that they were drawn here; "
                "name another folder, or remove this one"
            )
        keep = begun is None or {**begun, "finished": True} == wanted | {"finished": True}
        _remove(folder, "*.png.partial" if keep else "*.png*")
        _write(record, wanted | {"finished": False})
        for domain, thing in counts:
            (folder / domain / thing).mkdir(parents=True, exist_ok=True)
        _draw_all(_missing(folder, counts), folder, seed, workers)
        _write(record, wanted | {"finished": True})
    return folder


def draw_picture(
    domain: str,
    thing: str,
    seed: int,
    number: int,
    habits: dict[str, Habit] = OTHER_HABITS,
    habit: float = HABIT,
) -> tuple[Image.Image, dict[str, str]]:
    """Picture `number` of the class `thing` in `domain`: an RGB image and words for it."""
    key = [seed, list(STYLES).index(domain), list(SHAPES).index(thing), number]
    rng = np.random.default_rng(key)
    scene = compose(thing, habits[thing], habit, rng)
    return STYLES[domain](scene, rng), scene.words


def picture_counts(pictures: int) -> dict[tuple[str, str], int]:
    """The share of `pictures` of each (domain, class), in order; their sum is `pictures`."""
    pairs = [(domain, thing) for domain in STYLES for thing in SHAPES]
    if pictures < len(pairs):
        raise ValueError(
            f"asked for {pictures} pictures; {len(STYLES)} domains of {len(SHAPES)} classes "
            f"need at least {len(pairs)}, one each"
        )
    shares = [
        DOMAIN_SHARES[domain] * CLASS_SHARES[(d + c) % len(SHAPES)]
        for d, domain in enumerate(STYLES)
        for c in range(len(SHAPES))
    ]
    ends = np.cumsum(shares) / sum(shares) * (pictures - len(pairs))
    counts = np.diff(np.rint(ends).astype(int), prepend=0) + 1
    return dict(zip(pairs, counts.tolist(), strict=True))


def _draw_all(
    missing: list[tuple[str, str, int]], folder: Path, seed: int, workers: int | None
) -> None:
    workers = cores() if workers is None else workers
    tasks = [(folder, seed, missing[n : n + TASK]) for n in range(0, len(missing), TASK)]
    if workers < 2 or len(missing) < ALONE:
        for task in tasks:
            _draw_some(task)
        return
    spawn = multiprocessing.get_context("spawn")  # the only method on Windows
    try:
        with ProcessPoolExecutor(workers, spawn, _leave_with_parent) as pool:
            for _ in pool.map(_draw_some, tasks):
                pass
    except (OSError, ImportError, RuntimeError):
        # No semaphores, as where /dev/shm is not writable; no process or thread can be
        # started, or one was killed. Disk errors will recur and be reported.
        _draw_all(missing, folder, seed, 1)


def _draw_some(task: tuple[Path, int, list[tuple[str, str, int]]]) -> None:
    folder, seed, pictures = task
    for domain, thing, number in pictures:
        image, _ = draw_picture(domain, thing, seed, number)
        target = folder / domain / thing / _name(number)
        partial = target.with_name(target.name + ".partial")
        with naming(target):
            image.save(partial, "PNG", compress_level=3)
            os.replace(partial, target)


def _leave_with_parent() -> None:
    """End this worker when its parent process has been killed."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _missing(folder: Path, counts: dict[tuple[str, str], int]) -> list[tuple[str, str, int]]:
    missing = []
    for (domain, thing), count in counts.items():
        there = {file.name for file in (folder / domain / thing).glob("*.png")}
        missing += [(domain, thing, n) for n in range(count) if _name(n) not in there]
    return missing


def _name(number: int) -> str:
    return f"{number:04}.png"


def _remove(folder: Path, pattern: str) -> None:
    """Delete files of that pattern only where pictures are drawn."""
    for domain in STYLES:
        for thing in SHAPES:
            for file in (folder / domain / thing).glob(pattern):
                file.unlink()


def _read(record: Path) -> dict | None:
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(record: Path, content: dict) -> None:
    partial = record.with_name(record.name + ".partial")
    partial.write_text(json.dumps(content) + "\n", encoding="utf-8")
    os.replace(partial, record)
