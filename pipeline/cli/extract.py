"""The command extract: parse, call, print. Heavy packages are imported inside functions."""

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import click

from pipeline.cli.command import PATH, Command, option, together
from pipeline.cli.console import PROMPT, default_model, run_extract, show
from pipeline.cli.options import (
    DATA,
    HARDWARE,
    connection,
    device_option,
    json_option,
    layout_options,
    limit_options,
    model_option,
    ray_options,
    root_option,
    tower_options,
    workers_option,
)
from pipeline.datasets.counts import KNOWN
from pipeline.datasets.stated import Stated
from pipeline.errors import ConfigError
from pipeline.places import DATA as DATA_FOLDER

LOG = logging.getLogger(__name__)


@click.command(cls=Command)
@option(
    "--dataset", default="demo", show_default=True, metavar="NAME|FOLDER", section=DATA,
    help=f"One of demo, {', '.join(KNOWN)}; a folder domain/class/image or class/image, optionally "
    "with train, val and test folders; or a zip, list, CSV, parquet or tar file (docs/folders.md).",
)  # fmt: skip
@root_option
@layout_options
@model_option
@tower_options
@option(
    "--prompt", "prompts", multiple=True, default=(PROMPT,), show_default=True, section=DATA,
    help="Prompt with {} in place of the class name; several are averaged.",
)  # fmt: skip
@option(
    "--on-bad-image", default="fail", type=click.Choice(["fail", "skip"]), show_default=True,
    section=DATA, help="Whether an unreadable image ends the extraction or is skipped.",
)  # fmt: skip
@limit_options
@device_option
@option(
    "--batch", type=click.IntRange(1), section=HARDWARE, note="depends on the device",
    help="Number of images encoded at a time.",
)  # fmt: skip
@workers_option
@option(
    "--compile", is_flag=True, section=HARDWARE,
    help="Compile the image encoder with torch.compile first; pays for thousands of images.",
)  # fmt: skip
@option(
    "--shard", metavar="I/N", section=HARDWARE,
    note="as set by torchrun or srun, else all images",
    help="Encode only part I of N on this machine or GPU; join the parts with `cache merge`.",
)  # fmt: skip
@together(*ray_options)
@option("--out", type=PATH, note="cache/files/<name>.h5", help="Cache file to write.")
@option(
    "--store", default="fp16", type=click.Choice(["fp16", "fp32"]), show_default=True,
    help="Precision of the stored features.",
)  # fmt: skip
@option("--force", is_flag=True, help="Encode all images again, even if they are in the cache.")
@option("--dry-run", is_flag=True, help="Show how the images would be read, and stop.")
@option(
    "--check", type=click.IntRange(1), metavar="N",
    help="Encode N random rows again and compare them with the cache; write nothing.",
)  # fmt: skip
@json_option
def extract(
    dataset: str,
    model: str | None,
    prompts: tuple[str, ...],
    shard: str | None,
    check: int | None,
    dry_run: bool,
    as_json: bool,
    ray: str | None,
    ray_worker: str | None,
    **settings,
) -> None:
    """Encode images and prompts once with frozen CLIP and cache the features (stage one).

    \b
        ./run.sh extract --dataset pacs --model ViT-B/32
        ./run.sh extract --dataset my_images --prompt "a photo of a {}"
        ./run.sh extract --dataset my_images --dry-run
        ./run.sh extract --dataset pacs --model ViT-B/32 --check 100
        ./run.sh extract --dataset pacs --model ViT-B/32 --shard 2/8
        ./run.sh extract --dataset pacs --model ViT-B/32 --ray auto
    """
    if dry_run:
        if check is not None:
            raise ConfigError("--dry-run and --check cannot be combined; pass only one of them")
        _show_images(dataset, prompts, as_json, settings)
        return
    if check is not None:
        if shard:
            raise ConfigError("--check compares a whole cache; leave out --shard")
        _check(dataset, default_model(dataset, model), prompts, check, as_json, settings)
        return
    if ray and shard:
        raise ConfigError("--ray makes shards itself; leave out --shard")
    with connection(ray, ray_worker) as size:
        if size is None:
            report = run_extract(dataset, model, prompts, **_named_shard(shard), **settings)
        else:
            from pipeline.cluster.extract import extract_on_ray

            named = {"model": default_model(dataset, model), "templates": prompts}
            report = extract_on_ray(dataset, size, **named, **settings)
    if as_json:
        show(json.dumps(dataclasses.asdict(report), default=str))
        return
    show(
        f"{report.path}: {report.rows:,} rows, {report.encoded:,} encoded now at "
        f"{report.images_per_second:,.0f} images/s, {report.unreadable} unreadable, "
        f"{report.seconds['total']:.1f} s in all"
    )


def _show_images(
    dataset: str, prompts: tuple[str, ...], as_json: bool, settings: dict[str, Any]
) -> None:
    """Prints how extract would read the images; writes nothing and does not load CLIP.

    settings  extract's other options, of which root, layout, class_names and accept are used

    Raises DataError as extract does.
    """
    from pipeline.datasets.find import find_images, refuse_copies
    from pipeline.datasets.tree import image_digests
    from pipeline.datasets.understood import as_json as facts

    root: Path = settings["root"] or DATA_FOLDER
    stated = Stated(settings["layout"], settings["class_names"], settings["accept"])

    tell = LOG.info if as_json else show
    tree = find_images(dataset, root, tell, stated=stated, templates=prompts, draw=False)
    if dataset.lower() != "demo":
        refuse_copies(dataset, tree, image_digests(tree), stated, tell)
    if as_json:
        show(json.dumps(facts(tree)))


def _check(
    dataset: str, model: str, prompts: tuple[str, ...], rows: int, as_json: bool, settings: dict
) -> None:
    """Compares rows with the cache and prints their difference.

    settings  extract's other options, of which root, out, device, towers and image limits are used

    Raises CacheError if they differ by more than rounding explains.
    """
    from cache.table import CacheError
    from pipeline.encoder.pixels import image_limits
    from pipeline.extraction.check import check_cache

    used = {name: settings[name] for name in ("root", "out", "device", "towers")}
    limits = image_limits(
        settings["max_megapixels"], settings["max_image_seconds"], settings["max_image_mib"]
    )
    found = check_cache(dataset, rows, model=model, templates=prompts, limits=limits, **used)
    if as_json:
        outcome = {**dataclasses.asdict(found), "as_expected": found.as_expected}
        show(json.dumps(outcome, default=str, allow_nan=False))
    else:
        show(
            f"{found.path}: {found.rows:,} rows encoded again differ by at most "
            f"{found.difference:.2g} of a row's largest number ({found.worst}), least cosine "
            f"{found.cosine:.9f}; prompts by {found.prompt_difference:.2g}, "
            f"{found.prompt_cosine:.9f}; allowed are {found.allowed_difference:.2g} and "
            f"{found.allowed_cosine:.9f}: {'as expected' if found.as_expected else 'NOT THE SAME'}"
        )
    for path, why in found.gone.items():
        LOG.warning("in the cache, but cannot be read now: %s: %s", path, why)
    if not found.as_expected:
        raise CacheError(
            f"{found.path}: does not match its images: the images or the cache were changed; pass "
            "--force in place of --check to recreate it"
        )


def _named_shard(words: str | None) -> dict:
    """The shard to encode: from --shard, else from the launcher's environment."""
    from pipeline.extraction.shards import launched_task

    task = launched_task(os.environ, level=logging.INFO if words is None else logging.DEBUG)
    return {"shard": words or (task.shard if task else None), "card": task.local if task else None}
