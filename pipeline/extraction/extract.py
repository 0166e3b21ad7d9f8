"""Stage one: encode the images and prompts of a data set with frozen CLIP, once, into a cache."""

import json
import logging
import platform
import time
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.identity import manifest_sha256
from cache.store import (
    SCHEMA,
    compare_identity,
    info,
    no_features,
    open_writer,
    partial_of,
    shard_identity,
    shard_path,
)
from cache.table import FeatureTable
from kernels.backends import pick_device
from pipeline.datasets.find import dataset_name, find_images, refuse_copies
from pipeline.datasets.stated import Stated
from pipeline.datasets.tree import ImageTree, image_digests
from pipeline.encoder.model import (
    ClipModel,
    compiled,
    encode_prompts,
    load_model,
    refuse_bad_templates,
)
from pipeline.encoder.pixels import IMAGE_LIMITS, MIB, PREPROCESSING, image_limits
from pipeline.encoder.towers import UNNAMED, Towers
from pipeline.errors import ConfigError, Interrupted
from pipeline.extraction.cache_files import TEMPLATES, cache_path
from pipeline.extraction.image_changes import in_words_of_images
from pipeline.extraction.rate import Rate, keep_rate
from pipeline.extraction.rows import Encoded, Pace, encode_rows
from pipeline.extraction.shards import parse_shard, part_of, pick_card
from pipeline.places import DATA
from pipeline.terminal import counted

LOG = logging.getLogger(__name__)

STORE = {"fp16": "float16", "fp32": "float32"}
BATCH = {"cpu": 16, "cuda": 256}  # on the CPU one thread encodes a batch, and 16 is as fast as 64
NOTHING = Encoded(0, 0, {})
SHOWN = 20  # unreadable images listed one by one; the rest is a count


@dataclass(frozen=True)
class ExtractReport:
    """The result of one extraction.

    path        of the cache                 rows    in it, including unreadable ones
    encoded     images in this run           resumed rows done by earlier runs
    unreadable  rows without features, of all runs
    turned      images of this run with an EXIF orientation, which CLIP's preprocessing ignores
    seconds     {part: seconds}; images_per_second  while encoding, including decoding
    """

    path: Path
    rows: int
    encoded: int
    resumed: int
    unreadable: int
    turned: int
    seconds: dict[str, float]
    images_per_second: float


def extract(
    dataset: str | PathLike[str],
    *,
    root: str | PathLike[str] | None = None,
    model: str | PathLike[str] = "demo",
    towers: Towers = UNNAMED,
    out: str | PathLike[str] | None = None,
    templates: tuple[str, ...] = TEMPLATES,
    device: str = "auto",
    batch: int | None = None,
    workers: int | None = None,
    store: str = "fp16",
    compile: bool = False,
    on_bad_image: str = "fail",
    max_megapixels: float = IMAGE_LIMITS.pixels / 1e6,
    max_image_seconds: float = IMAGE_LIMITS.seconds,
    max_image_mib: float = IMAGE_LIMITS.bytes / MIB,
    force: bool = False,
    shard: str | None = None,
    card: int | None = None,
    layout: str | None = None,
    class_names: str | None = None,
    accept: tuple[str, ...] = (),
) -> ExtractReport:
    """Encode what the cache does not have yet; after a kill, the next call resumes.

    dataset       "demo", a known name (KNOWN) looked for in `root`, or a folder
    model         a name of MODEL_NAMES, or a weights file
    towers        heads and activation of a weights file, see config_files.choose_towers
    out           the cache; None: cache_path. A shard's file is derived from it, x.shard-2-of-8.h5
    batch         images encoded together; None: 16 on the CPU, 256 on a GPU
    workers       decoding processes; 0: this process decodes; None: one per core
    compile       compile the image encoder with torch.compile; the cache says so
    on_bad_image  "fail" stops at an unreadable image, "skip" leaves its row without features
    max_megapixels, max_image_seconds, max_image_mib  an image that exceeds one is unreadable;
                  MiB of memory, in each worker
    force         recreate the cache even if there is one
    shard         "2/8": only the rows of that part; cache.store.merge_shards joins them
    card          the number of the GPU to use, of several
    layout        the levels of the folder, one of LAYOUTS; None: a guess, refused if
                  that is risky
    class_names   a file that names the class folders, or "folder" for their own names
    accept        intended oddities, of ACCEPT

    An undisturbed extraction and a resumed one with the same batch give the same bytes.
    Raises ConfigError, BackendUnavailable, DataError, WeightsError, CacheError, StaleCache for a
    cache of other images, weights, prompts or settings, and Interrupted after SIGINT or SIGTERM.
    """
    _check_settings(templates, batch, workers, store, on_bad_image)
    limits = image_limits(max_megapixels, max_image_seconds, max_image_mib)
    stated = Stated(layout, class_names, tuple(accept))
    part = parse_shard(shard) if shard else None
    where, pace = pick_card(pick_device(device), card), Pace()
    batch = batch or BATCH[where.type]
    dataset, model = fspath(dataset), fspath(model)
    usual = cache_path(dataset, model, templates)  # refuses an unknown model before reading images
    out = Path(out or usual)
    if part:
        out = shard_path(out, *part)
    with pace.part("scan"):
        whole = find_images(
            dataset, Path(root or DATA), LOG.info, stated=stated, templates=templates
        )
        tree = part_of(whole, part, batch) if part else whole
    with pace.part("model"):
        clip = load_model(model, where, towers)
        clip = compiled(clip) if compile else clip
    with pace.part("manifest"):
        digests = image_digests(tree)
        identity = _identity(dataset_name(dataset), tree, clip, templates, STORE[store], digests)
    if part:
        identity = shard_identity(identity, whole.paths, **part._asdict(), batch=batch)
    if out.exists() and not force:
        found = info(out)
        with in_words_of_images(out, tree):
            compare_identity(identity, found["identity"], out)
        LOG.info(f"{out} is up to date: {found['rows']:,} rows, {found['unreadable']} unreadable")
        return _report(out, found, pace)
    refuse_copies(dataset, tree, digests, stated, LOG.info)
    named = f"shard {part.index}/{part.count}, " if part else ""
    LOG.info(f"encoding {named}{len(tree.paths):,} images with {clip.name} on {device_name(where)}")
    if clip.compiled:
        LOG.info("the first images wait for the compiler, about half a minute")
    with pace.part("prompts"):
        text_features = encode_prompts(clip, tree.class_names, templates)
    table = FeatureTable(
        source=str(out),
        features=no_features(len(tree.paths), clip.width, STORE[store]),
        labels=tree.labels,
        domains=tree.domains,
        text_features=text_features,
        logit_scale=clip.logit_scale,
        class_names=tree.class_names,
        domain_names=tree.domain_names,
        split=tree.split,
        identity=identity,
    )
    with (
        in_words_of_images(partial_of(out), tree),
        open_writer(
            out, table, paths=tree.paths, image_digests=digests if part else None, force=force
        ) as writer,
    ):
        partial = partial_of(out)
        if len(writer.todo) < len(tree.paths):
            LOG.info(f"{partial}: resuming, {len(writer.todo):,} images are left")
        skip = on_bad_image == "skip"
        try:
            done = encode_rows(
                clip, tree, writer, pace,
                batch=batch, workers=workers, skip=skip, limits=limits,
            )  # fmt: skip
        except Interrupted as stopped:
            why = f"stopped; run the same command to resume from {partial}"
            raise Interrupted(why, stopped.number) from None
        with pace.part("publishing"):
            writer.publish()
    _warn_of_odd_images(done)
    found = info(out)
    if done.images and not part:  # a merged cache has no single rate
        rate = Rate(done.images, pace.seconds["rows"], device_name(where))
        keep_rate(out, found["content_sha256"], rate)
    return _report(out, found, pace, done)


def device_name(device: torch.device) -> str:
    """The device's name: "cuda (NVIDIA H100)", "cpu (AMD EPYC 7B13, 2 threads)"."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({_processor()}, {counted(torch.get_num_threads(), 'thread')})"


def _check_settings(
    templates: tuple[str, ...], batch: int | None, workers: int | None, store: str, bad: str
) -> None:
    refuse_bad_templates(templates)
    if batch is not None and batch < 1:
        raise ConfigError(f"--batch {batch}: must be at least 1")
    if workers is not None and workers < 0:
        raise ConfigError(f"--workers {workers}: pass 0 to decode in this process, or 1 or more")
    if store not in STORE:
        raise ConfigError(f"--store {store}: choose from {', '.join(STORE)}")
    if bad not in ("fail", "skip"):
        raise ConfigError(f"--on-bad-image {bad}: choose from fail, skip")


def _identity(
    dataset: str,
    tree: ImageTree,
    clip: ClipModel,
    templates: tuple[str, ...],
    store: str,
    digests: np.ndarray,
) -> dict[str, Any]:
    """Everything that determines the cache's content, as JSON; any difference means another cache.

    Without batch, torch's version and processor, which change features by float rounding.
    """
    identity: dict[str, Any] = {
        "schema": SCHEMA,
        "dataset": dataset,
        "model": clip.architecture["name"],
        "templates": templates,
        "weights_sha256": clip.weights_sha256,
        "architecture": clip.architecture,
        "preprocessing": PREPROCESSING,
        "compute": {"device": clip.device.type, "dtype": str(clip.dtype).removeprefix("torch.")},
        "store_dtype": store,
        "layer": "projection",
        "normalised": False,
        "class_names": tree.class_names,
        "domain_names": tree.domain_names,
    }
    # Only if they say something: caches of older releases have none of them.
    if clip.compiled:
        identity["compute"]["compiled"] = True
    if tree.split is not None:
        identity["layout"] = tree.layout
    if tree.renamed:
        identity["class_folders"] = dict(tree.renamed)
    # The last field, as in merge_shards.
    identity["manifest_sha256"] = manifest_sha256(tree.paths, digests)
    # Tuples as lists, as they come back from the cache.
    return dict(json.loads(json.dumps(identity)))


def _warn_of_odd_images(done: Encoded) -> None:
    for path, reason in list(done.unreadable.items())[:SHOWN]:
        LOG.warning(f"unreadable, left without features: {path}: {reason}")
    if len(done.unreadable) > SHOWN:
        LOG.warning(f"... and {len(done.unreadable) - SHOWN:,} more unreadable images")
    if done.turned:
        LOG.warning(
            f"{done.turned:,} images have an EXIF orientation tag; it is ignored, as in CLIP's "
            "preprocessing"
        )


def _report(out: Path, found: dict[str, Any], pace: Pace, done: Encoded = NOTHING) -> ExtractReport:
    seconds = pace.seconds | {"total": time.perf_counter() - pace.began}
    busy = seconds.get("rows", 0.0)
    return ExtractReport(
        path=out,
        rows=found["rows"],
        encoded=done.images,
        resumed=found["rows"] - done.images - len(done.unreadable),
        unreadable=found["unreadable"],
        turned=done.turned,
        seconds={part: round(spent, 3) for part, spent in seconds.items()},
        images_per_second=round(done.images / busy, 1) if busy else 0.0,
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
