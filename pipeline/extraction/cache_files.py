"""The path of the cache of a data set, a model and prompts, and finding that cache."""

import hashlib
import json
import re
from pathlib import Path

import torch

from cache.store import compare_identity, info
from pipeline.datasets.find import dataset_name
from pipeline.encoder.model import load_model
from pipeline.encoder.towers import UNNAMED, Towers
from pipeline.encoder.weights import MODEL_NAMES, OPENAI_NAMES, find_weights
from pipeline.errors import WeightsError
from pipeline.places import CACHES

TEMPLATES = ("a picture of a {}",)  # the released code's prompt


def cache_path(dataset: str, model: str, templates: tuple[str, ...] = TEMPLATES) -> Path:
    """The path at which `extract` creates the cache of these words without --out."""
    name = find_weights(model)[0]
    stem = name if find_weights(model)[1] is None or name in MODEL_NAMES else Path(name).stem
    words = [re.sub(r"[^\w.+-]+", "-", word) for word in (dataset_name(dataset), stem)]
    if templates != TEMPLATES:
        words.append(hashlib.sha256(json.dumps(templates).encode()).hexdigest()[:8])
    return CACHES / f"{'-'.join(words)}.h5"


def find_cache(dataset: str, model: str, towers: Towers = UNNAMED) -> Path | None:
    """The cache that `extract` creates of these words without --out, if it exists.

    Raises StaleCache when it was made from another data set, other prompts or another model; a
    model file is loaded for that, with `towers`, see load_model. The images are not
    read: they may be missing.
    """
    path, name = cache_path(dataset, model), find_weights(model)[0]
    if not path.exists():
        return None
    found = info(path)["identity"]
    asked = {"dataset": dataset_name(dataset), "templates": list(TEMPLATES)}
    if name in OPENAI_NAMES:
        asked["model"] = name
    elif name not in MODEL_NAMES:
        clip = load_model(model, torch.device("cpu"), towers)
        asked |= {"weights_sha256": clip.weights_sha256, "architecture": clip.architecture}
    if name in MODEL_NAMES and towers != UNNAMED:
        raise WeightsError(f"--model {name}: --heads and --activation are for files of weights")
    # An imported cache records less about its origin; its file name decides.
    if "imported" in found:
        del asked["dataset"]
    asked = {field: value for field, value in asked.items() if found.get(field) is not None}
    way_out = "./run.sh extract --force recreates it; or name the file of another cache"
    compare_identity(asked, {field: found[field] for field in asked}, path, way_out)
    return path
