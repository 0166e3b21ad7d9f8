"""What extract --check prints and how it ends. Heavy packages are imported inside it."""

import dataclasses
import json
import logging

from pipeline.cli.console import show

LOG = logging.getLogger(__name__)


def run_check(
    dataset: str,
    model: str,
    prompts: tuple[str, ...],
    rows: int,
    as_json: bool,
    settings: dict,
) -> None:
    """Compares rows with the cache and prints how far they lie apart.

    settings  extract's other options; root, out, device, towers and the limits of an image count

    Raises CacheError when they are further apart than arithmetic explains.
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
        told = {**dataclasses.asdict(found), "as_expected": found.as_expected}
        show(json.dumps(told, default=str, allow_nan=False))
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
