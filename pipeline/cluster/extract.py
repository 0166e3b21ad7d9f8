"""Extracts shards on a Ray cluster, and merges them into the bytes of a single extraction."""

import glob
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cache.store import info, shard_path
from pipeline.cluster.connect import Size, options, ray, refuse_without_nodes
from pipeline.datasets.find import find_images
from pipeline.datasets.stated import Stated
from pipeline.errors import ConfigError, Interrupted
from pipeline.extraction.cache_files import cache_path
from pipeline.extraction.extract import BATCH, ExtractReport, extract
from pipeline.extraction.shards import merge
from pipeline.files import errors_of, make_folder, naming
from pipeline.places import DATA
from pipeline.progress import progress_bar
from pipeline.signals import noted_signals

LOG = logging.getLogger(__name__)
BLOCK = 64 << 20  # bytes of a shard that travel as one object
RETRIES = 3  # for a shard whose worker died
EACH = 2  # shards for each worker: halves the wait for the last one
TICK = 0.5  # seconds within which a signal is noticed


def extract_on_ray(dataset: str, size: Size, **asked: Any) -> ExtractReport:
    """extract(dataset, **asked) with each shard as a task on a worker of that size; in `connected`.

    Workers read images and weights from the same paths. Shards return through the object store and
    are kept beside the cache until all are there, so that after a kill the next call encodes only
    the missing ones. An existing cache, and a data set of one batch, are left to this process.

    Raises what extract does, and ConfigError if no node can hold a worker of that size.
    """
    began = time.monotonic()
    size = size._replace(gpus=0.0) if asked["device"] == "cpu" and size.gpus is None else size
    nodes = refuse_without_nodes(size)
    cards = any(node.gpus for node in nodes)
    batch = asked.get("batch") or BATCH["cuda" if cards else "cpu"]
    out = Path(asked.get("out") or cache_path(dataset, asked["model"], asked["templates"]))
    asked |= {"batch": batch, "out": out, "root": Path(asked.get("root") or DATA).resolve()}
    blocks = -(-_images(dataset, asked) // batch)
    if (out.exists() and not asked["force"]) or blocks < 2:
        return extract(dataset, **asked)
    there = 0 if asked["force"] else _begun(out)
    count = there or min(blocks, max(2, EACH * sum(node.workers for node in nodes)))
    files = [shard_path(out, index, count) for index in range(1, count + 1)]
    todo = [at for at, file in enumerate(files, 1) if asked["force"] or not file.exists()]
    LOG.info("encoding %d of %d shards on the Ray cluster", len(todo), count)
    reports = _encode(dataset, asked, todo, files, options(nodes[0], anywhere=True))
    whole = merge(files, out, force=asked["force"], accept=asked["accept"])
    for file in files:
        file.unlink()
    found, spent = info(whole), time.monotonic() - began
    encoded = sum(one.encoded for one in reports)
    return ExtractReport(
        path=whole,
        rows=found["rows"],
        encoded=encoded,
        resumed=found["rows"] - encoded - sum(one.unreadable for one in reports),
        unreadable=found["unreadable"],
        turned=sum(one.turned for one in reports),
        seconds={"total": round(spent, 3)},
        images_per_second=round(encoded / spent, 1),
    )


def encoded_shard(
    dataset: str, shard: str, asked: dict[str, Any]
) -> Iterator[bytes | ExtractReport]:
    """A task: yields the bytes of one shard's file in blocks, then extract's report."""
    with tempfile.TemporaryDirectory() as place:
        report = extract(dataset, **asked, shard=shard, out=Path(place, "cache.h5"))
        with report.path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
        yield report


def _encode(
    dataset: str, asked: dict[str, Any], todo: Sequence[int], files: Sequence[Path], place: dict
) -> list[ExtractReport]:
    """Encodes the missing shards into their files and returns their reports."""
    asked = {name: value for name, value in asked.items() if name not in ("out", "force")}
    if asked.get("workers") is None:
        asked["workers"] = max(1, int(place["num_cpus"]))
    task = ray.remote(encoded_shard).options(
        num_returns="streaming", max_retries=RETRIES, retry_exceptions=False, **place
    )
    words = {at: f"{at}/{len(files)}" for at in todo}
    streams = {task.remote(dataset, word, asked): files[at - 1] for at, word in words.items()}
    reports: list[ExtractReport] = []
    make_folder(files[0].parent)
    with (
        noted_signals() as stop,
        progress_bar(total=len(todo), unit=" shards", desc="extract") as bar,
        errors_of(files[0].parent),
    ):
        while streams:
            ready, _ = ray.wait(list(streams), timeout=TICK, fetch_local=False)
            if stop:
                raise Interrupted(
                    f"stopped; {len(reports)} of {len(todo)} shards are saved; run the same "
                    "command to resume",
                    stop[0],
                )
            for stream in ready:
                reports.append(_received(stream, streams.pop(stream)))
                bar.update(1)
    return reports


def _received(stream: Any, file: Path) -> ExtractReport:
    """Writes a shard as it arrives, under a temporary name until it is complete."""
    fresh = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with naming(fresh), fresh.open("wb") as opened:
            for answer in stream:
                said = ray.get(answer)
                if isinstance(said, ExtractReport):
                    opened.flush()
                    os.fsync(opened.fileno())
                    os.replace(fresh, file)
                    return said
                opened.write(said)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{file.name}: its worker was lost {RETRIES + 1} times ({reason}); run the same "
            "command to resume, with a smaller --batch if the worker ran out of memory"
        ) from error
    finally:
        fresh.unlink(missing_ok=True)
    raise AssertionError("a shard without a report")


def _images(dataset: str, asked: dict[str, Any]) -> int:
    stated = Stated(asked.get("layout"), asked.get("class_names"), tuple(asked["accept"]))
    templates = asked["templates"]
    tree = find_images(dataset, asked["root"], LOG.info, stated=stated, templates=templates)
    return len(tree.paths)


def _begun(out: Path) -> int:
    """The number of shards of an interrupted call; 0 if there was none."""
    files = out.parent.glob(f"{glob.escape(out.stem)}.shard-*-of-*{out.suffix}")
    found = (re.search(r"\.shard-[0-9]+-of-([0-9]+)\.", file.name) for file in files)
    return max((int(match[1]) for match in found if match), default=0)
