"""Features that people already have: .npz <-> FeatureTable."""

import contextlib
import hashlib
import os
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from cache.checksums import check_features, content_sha256, row_blocks
from cache.disk import disk_error
from cache.identity import fingerprint
from cache.npz_members import read_members
from cache.table import CacheError, FeatureTable, check_table
from cache.userblock import SCHEMA

_NEEDED = ("features", "labels", "text_features")
_OPTIONAL = (
    "domains",
    "class_names",
    "domain_names",
    "split",
    "logit_scale",
    "model",
    "normalised",
)
_LOGIT_SCALE = 100.0  # every released CLIP was trained until its multiplier met this bound


def read_npz(path: str | PathLike[str]) -> FeatureTable:
    """The table in an .npz; keys it does not know are left alone, pickles are never read.

    features       (N, D) float16, float32, or float64, which becomes float32
    labels         (N,) integers from 0
    text_features  (C, D) float, one for each class
    and where they are there
    domains        (N,) integers from 0 (else all are 0)
    class_names    (C,) text (else class_0 ...);  domain_names likewise
    split          (N,) 0 train, 1 val, 2 test
    logit_scale    the multiplier (else 100)
    model          text;  normalised  whether features have length 1 (else measured)

    Raises CacheError for a missing key, Python objects, wrong shapes or numbers.
    """
    path = Path(path)
    arrays = read_members(path, _NEEDED, _OPTIONAL)
    features = _floats(arrays["features"], "features", path)
    text = _floats(arrays["text_features"], "text_features", path).astype(np.float32)
    if features.ndim != 2 or text.ndim != 2 or 0 in features.shape:
        raise CacheError(
            f"{path}: features must be (N, D) and text_features (C, D), N and D above 0; got "
            f"{features.shape} and {text.shape}"
        )
    domains = arrays.get("domains", np.zeros(len(features), np.int64))
    domains = _integers(domains, "domains", path)
    split = _integers(arrays["split"], "split", path) if "split" in arrays else None
    if split is not None and not np.isin(split, (0, 1, 2)).all():
        raise CacheError(f"{path}: split must be 0 train, 1 val or 2 test in every row")
    table = FeatureTable(
        source=str(path),
        features=features,
        labels=_integers(arrays["labels"], "labels", path),
        domains=domains,
        text_features=text,
        logit_scale=float(_scalar(arrays, "logit_scale", path, "fiu", _LOGIT_SCALE)),
        class_names=_names(arrays, "class_names", path, "class", len(text)),
        domain_names=_names(
            arrays, "domain_names", path, "domain", int(domains.max(initial=0)) + 1
        ),
        split=None if split is None else split.astype(np.int8),
        identity={},
        fingerprint="",
        content_sha256="",
    )
    check_table(table)
    model = _scalar(arrays, "model", path, "U", None)
    unit = _scalar(arrays, "normalised", path, "b", None)
    return _identified(table, model, _unit_length(features) if unit is None else unit)


def write_npz(table: FeatureTable, path: str | PathLike[str], *, force: bool = False) -> None:
    """Write the keys of read_npz, so that importing them again gives the same content_sha256.

    Raises CacheError when path exists, the features are damaged, or the disk refuses.
    """
    path = Path(path)
    if path.exists() and not force:
        raise CacheError(f"{path} exists; pass --force to replace it, or give another name")
    check_features(table)
    arrays: dict[str, Any] = {
        "features": table.features,
        "labels": table.labels,
        "domains": table.domains,
        "text_features": table.text_features,
        "class_names": np.array(table.class_names),
        "domain_names": np.array(table.domain_names),
        "logit_scale": np.float64(table.logit_scale),
        "normalised": np.bool_(table.identity.get("normalised") or _unit_length(table.features)),
    }
    if table.split is not None:
        arrays["split"] = table.split
    if isinstance(table.identity.get("model"), str):
        arrays["model"] = np.array(table.identity["model"])
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise disk_error(path, error, table.features.nbytes) from error


def _identified(table: FeatureTable, model: str | None, unit: bool) -> FeatureTable:
    """The table with its identity: what the numbers are, as nobody knows where they came from."""
    content = content_sha256(
        row_blocks(table.features),
        table.features.dtype,
        table.labels,
        table.domains,
        table.text_features,
    )
    split = None if table.split is None else hashlib.sha256(table.split.tobytes()).hexdigest()
    identity = {
        "schema": SCHEMA,
        "imported": content,
        "model": model,
        "normalised": bool(unit),
        "class_names": list(table.class_names),
        "domain_names": list(table.domain_names),
        "logit_scale": table.logit_scale,
        "split": split,
    }
    return replace(
        table, identity=identity, fingerprint=fingerprint(identity), content_sha256=content
    )


def _unit_length(features: np.ndarray) -> bool:
    """Whether every row has length 1, within the rounding of float16."""
    for block in row_blocks(features):
        lengths = np.linalg.norm(block.astype(np.float32), axis=1)
        if abs(lengths - 1).max() > 0.01:
            return False
    return True


def _floats(array: np.ndarray, key: str, path: Path) -> np.ndarray:
    """Native float16 or float32, row-major; float64 becomes float32."""
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise CacheError(f"{path}: {key} must be float16, float32 or float64; got {array.dtype}")
    with np.errstate(over="ignore"):  # what overflows is refused as Inf
        return np.ascontiguousarray(array, np.float16 if array.dtype.itemsize == 2 else np.float32)


def _integers(array: np.ndarray, key: str, path: Path) -> np.ndarray:
    if array.dtype.kind not in "iu":
        raise CacheError(f"{path}: {key} must be integers; got {array.dtype}")
    return array.astype(np.int64)


def _scalar(arrays: dict[str, np.ndarray], key: str, path: Path, kinds: str, default: Any) -> Any:
    if key not in arrays:
        return default
    array = arrays[key]
    if array.size != 1 or array.dtype.kind not in kinds:
        raise CacheError(f"{path}: {key} must be one value; got {array.shape} {array.dtype}")
    return array.reshape(()).item()


def _names(
    arrays: dict[str, np.ndarray], key: str, path: Path, kind: str, count: int
) -> tuple[str, ...]:
    if key not in arrays:
        return tuple(f"{kind}_{number}" for number in range(count))
    if arrays[key].dtype.kind != "U" or arrays[key].ndim != 1:
        raise CacheError(f"{path}: {key} must be a list of text; got {arrays[key].dtype}")
    return tuple(arrays[key].tolist())
