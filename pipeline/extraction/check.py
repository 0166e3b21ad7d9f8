"""Check a cache against its images: encode some rows again and compare."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache.container.checksums import check_features
from cache.store import compare_identity, info, read_paths, read_table
from cache.table import CacheError
from kernels.backends import pick_device
from pipeline.datasets.find import dataset_name, find_folder, read_source
from pipeline.encoder.decoding import decoded_images
from pipeline.encoder.model import ClipModel, encode_images, encode_prompts, load_model
from pipeline.encoder.pixels import DECODERS, IMAGE_LIMITS, PREPROCESSING, Limits
from pipeline.encoder.towers import UNNAMED, Towers, towers_fact
from pipeline.errors import DataError
from pipeline.extraction.cache_files import TEMPLATES, cache_path
from pipeline.places import DATA

LOG = logging.getLogger(__name__)

BATCH = 16
# Relative to a row's largest number, and 1 - cosine. Storing as float16 costs up to 2^-11; the
# built-in CLIP on 200 pictures, stored so: 4.7e-4 and 3e-8; bilinear, not bicubic: 0.21 and 2e-2.
# With float16 arithmetic (a GPU) each layer rounds; its limit is an estimate.
LIMITS = {"float32": (1e-3, 1e-6), "float16": (3e-2, 1e-3)}


@dataclass(frozen=True)
class Check:
    """How far rows encoded again are from the cache's, in units of a row's largest number.

    rows        compared rows;   gone  {path: reason} of images that cannot be read now
    worst       path of the row with the largest difference
    difference, cosine                    the largest difference and the least cosine over rows
    prompt_difference, prompt_cosine      the same over all class prompts
    allowed_difference, allowed_cosine    the limits that arithmetic and storage explain
    """

    path: Path
    rows: int
    worst: str
    difference: float
    cosine: float
    prompt_difference: float
    prompt_cosine: float
    allowed_difference: float
    allowed_cosine: float
    gone: dict[str, str] = field(default_factory=dict)

    @property
    def as_expected(self) -> bool:
        """Whether every row and prompt equals the cache's up to rounding."""
        return (
            not self.gone
            and max(self.difference, self.prompt_difference) <= self.allowed_difference
            and min(self.cosine, self.prompt_cosine) >= self.allowed_cosine
        )


def check_cache(
    dataset: str | PathLike[str],
    rows: int,
    *,
    root: str | PathLike[str] | None = None,
    model: str | PathLike[str] = "demo",
    towers: Towers = UNNAMED,
    out: str | PathLike[str] | None = None,
    templates: tuple[str, ...] = TEMPLATES,
    device: str = "auto",
    seed: int | None = None,
    limits: Limits = IMAGE_LIMITS,
) -> Check:
    """Encode `rows` rows again, drawn without replacement, and compare them with a cache.

    Only the drawn images are read; the others may be missing. A device other than the
    cache's, and other versions of the decoding libraries, are reported and allowed for.

    out   the cache; None: the path of extract;  rows  all if it has fewer
    seed  of the draw; None: a different draw each time

    Raises CacheError when the cache is missing or damaged, or was imported without image
    paths; StaleCache when it was made with other weights, prompts or preprocessing; DataError when
    the images are missing; otherwise as extract.
    """
    dataset, model = fspath(dataset), fspath(model)
    where, path = pick_device(device), Path(out or cache_path(dataset, model, templates))
    if not path.exists():
        raise CacheError(f"{path}: no such cache to check; run this without --check to create it")
    identity = info(path)["identity"]
    table, paths = read_table(path), read_paths(path)
    if not all(paths) or not identity.get("weights_sha256"):
        raise CacheError(
            f"{path}: was imported and does not record which images its rows are, so "
            "none can be encoded again; ./run.sh cache verify compares it with its checksums"
        )
    check_features(table)
    folder = find_folder(dataset, Path(root or DATA))
    if not folder.exists():
        raise DataError(f"{folder}: no such folder; name the folder of the data set")
    place_of = _places(folder)
    clip = load_model(model, where, towers)
    _compare(identity, dataset_name(dataset), clip, templates, path)
    drawn = sorted(np.random.default_rng(seed).permutation(len(paths))[:rows].tolist())
    pixels, gone = _decoded({row: paths[row] for row in drawn}, place_of, clip, limits)
    if not pixels:
        first, why = next(iter(gone.items()))
        raise DataError(f"none of {len(gone)} images can be read: {folder / first}: {why}")
    kept = list(pixels)
    differences, cosines = _distances(_encode(clip, [*pixels.values()]), table.features[kept])
    prompts = encode_prompts(clip, table.class_names, templates)
    prompt_differences, prompt_cosines = _distances(prompts, table.text_features)
    computed = {str(clip.dtype).removeprefix("torch."), _object(identity, "compute").get("dtype")}
    difference, cosine = LIMITS["float16" if "float16" in computed else "float32"]
    return Check(
        path=path,
        rows=len(kept),
        worst=paths[kept[int(differences.argmax())]],
        difference=float(differences.max()),
        cosine=float(cosines.min()),
        prompt_difference=float(prompt_differences.max()),
        prompt_cosine=float(prompt_cosines.min()),
        allowed_difference=difference,
        allowed_cosine=1 - cosine,
        gone=gone,
    )


def _places(folder: Path) -> Callable[[str], str | None]:
    """A function from a path in the cache to where the image is now; None if it is missing."""
    if source := read_source(folder, LOG.info):
        tree = source[0]
        return {path: tree.file(row) for row, path in enumerate(tree.paths)}.get
    return lambda path: str(folder / path) if (folder / path).is_file() else None


def _decoded(
    paths: dict[int, str], place_of: Callable[[str], str | None], clip: ClipModel, limits: Limits
) -> tuple[dict[int, np.ndarray], dict[str, str]]:
    """{row: pixels} of the images that can be read, and {path: reason} of the others."""
    there = {row: place for row, path in paths.items() if (place := place_of(path))}
    gone = {path: "not in the data set now" for row, path in paths.items() if row not in there}
    pixels = {}
    files = list(there.values())
    with decoded_images(files, clip.resolution, workers=0, limits=limits) as images:
        for row, one in zip(there, images, strict=True):
            if one.pixels is None:
                gone[paths[row]] = one.reason
            else:
                pixels[row] = one.pixels
    return pixels, gone


def _compare(
    identity: dict[str, Any], dataset: str, clip: ClipModel, templates: tuple[str, ...], path: Path
) -> None:
    made = _object(identity, "preprocessing")

    def facts(of: dict[str, Any], architecture: object, preprocessing: dict[str, Any]) -> Any:
        fixed = {name: value for name, value in preprocessing.items() if name not in DECODERS}
        return {**of, **towers_fact(architecture), "preprocessing": fixed}

    asked = {
        "dataset": dataset,
        "templates": list(templates),
        "weights_sha256": clip.weights_sha256,
    }
    compare_identity(
        facts(asked, clip.architecture, PREPROCESSING),
        facts({name: identity.get(name) for name in asked}, identity.get("architecture"), made),
        path,
        "pass the options that it was extracted with",
    )
    for name in DECODERS:
        if made.get(name) != PREPROCESSING[name]:
            LOG.warning(
                f"{path}: images were decoded by {made.get(name)}, now by {PREPROCESSING[name]}"
            )


def _object(identity: dict[str, Any], name: str) -> dict[str, Any]:
    found = identity.get(name)
    return found if isinstance(found, dict) else {}


def _encode(clip: ClipModel, pixels: list[np.ndarray]) -> np.ndarray:
    blocks = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
    return torch.cat([encode_images(clip, torch.from_numpy(np.stack(b))) for b in blocks]).numpy()


def _distances(found: np.ndarray, cached: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row max |found - cached| / max |found|, and the cosine; both (n,) float64."""
    x, y = found.astype(np.float64), cached.astype(np.float64)
    differences = abs(x - y).max(axis=1) / abs(x).max(axis=1)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return differences, (x * y).sum(axis=1) / np.where(lengths == 0, 1, lengths)
