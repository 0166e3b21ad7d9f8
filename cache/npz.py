"""Import and export of existing features: .npz <-> FeatureTable."""

import contextlib
import hashlib
import logging
import math
import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cache.container.checksums import check_features, content_of
from cache.container.disk import AnyPath, disk_error, refuse_folder, sync_folder
from cache.container.userblock import SCHEMA
from cache.described import is_unit, row_lengths, summary, surprises
from cache.identity import fingerprint
from cache.npz_keys import NEEDED, OPTIONAL
from cache.npz_members import read_members
from cache.npz_values import distinct, positions, shown, splits
from cache.table import BLOCK_ROWS, CacheError, FeatureTable, check_table

LOG = logging.getLogger(__name__)

_LOGIT_SCALE = 100.0  # where training bounds the multiplier; every released CLIP reached it
_NAME_LENGTH = 200
_KEPT = {"schema", "imported", *NEEDED, *OPTIONAL}  # fields of an identity that an .npz keeps
_LOG_BELOW = 10.0  # multipliers are above: CLIP's starts at 14.3, its logarithm ends at 4.605


def read_npz(path: AnyPath, *, ignore: Collection[str] = (), **settings: Any) -> FeatureTable:
    """The table in an .npz; pickles are never read.

    features       (N, D) float16, float32, or float64, which becomes float32
    labels         (N,) integers from labels_from, text that is in class_names, or (N, C) one-hot
    text_features  (C, D) float, one for each class
    and optionally
    domains        (N,) like labels, positions in domain_names (default 0)
    class_names    (C,) text (default class_0 ...);  domain_names likewise
    split          (N,) 0 train, 1 val, 2 test, or these words
    logit_scale    the multiplier (default 100)
    model, dataset  text;  normalised  whether features have length 1 (default: measured)

    ignore         keys not to read although they resemble a known one
    settings       of as_table

    Raises CacheError for a missing or misspelled key, Python objects, invalid shapes or numbers.
    """
    path = Path(path)
    given = [key for key in ("logit_scale", "dataset") if settings.get(key) is not None]
    return as_table(path, read_members(path, NEEDED, OPTIONAL, ignore, given), **settings)


def as_table(
    path: Path,
    arrays: dict[str, np.ndarray],
    *,
    logit_scale: float | None = None,
    feature_scale: float = 1.0,
    labels_from: int = 0,
    domains_from: int = 0,
    dataset: str | None = None,
) -> FeatureTable:
    """The table of arrays by the keys of read_npz; `path` is where they came from.

    logit_scale    replaces the file's; required if that looks like a logarithm (at most 10)
    feature_scale  features are multiplied by it: 10 gives CLIP's unit rows about their raw length
    labels_from, domains_from  the number of the first label and domain, 0 or 1
    dataset        its name; None: the file's key, or the file's name

    Raises CacheError as read_npz.
    """
    try:
        table = _table(arrays, path, labels_from, domains_from)
        scale = _logit_scale(arrays, path) if logit_scale is None else float(logit_scale)
        scaled = _scaled(table.features, feature_scale)
        table = replace(table, logit_scale=scale, features=scaled)
    except CacheError as error:
        prefix = "" if str(error).startswith(str(path)) else f"{path}: "
        raise CacheError(f"{prefix}{error}") from error
    check_table(table)
    if "logit_scale" not in arrays and logit_scale is None:
        LOG.info(f"no logit_scale: using {_LOGIT_SCALE:g}")
    lengths = row_lengths(table.features)
    unit = bool(is_unit(lengths).all())
    claimed = _scalar(arrays, "normalised", path, "b", None) if feature_scale == 1 else None
    if claimed is not None and claimed != unit:
        LOG.warning(
            f"the key normalised is {claimed}, but the mean length of the rows is "
            f"{lengths.mean():.4g}"
        )
    facts = {
        "dataset": _dataset(arrays, path, dataset),
        "model": _scalar(arrays, "model", path, "U", None),
        "normalised": unit if claimed is None else claimed,
    }
    if feature_scale != 1:
        facts["feature_scale"] = float(feature_scale)
    table = _identified(table, facts)
    for sentence in summary(table, lengths):
        LOG.info(sentence)
    for sentence in surprises(table, lengths):
        LOG.warning(sentence)
    return table


def write_npz(table: FeatureTable, path: AnyPath, *, force: bool = False) -> None:
    """Write the keys of read_npz; importing the file gives the same content_sha256.

    Raises CacheError when path exists, the features are damaged, or the disk refuses.
    """
    path = Path(path)
    arrays = arrays_of(table)
    with whole_file(path, table.features.nbytes, force=force) as file:
        np.savez(file, **arrays)


def arrays_of(table: FeatureTable) -> dict[str, Any]:
    """The arrays from which as_table makes this table. CacheError when features are damaged."""
    check_features(table)
    arrays: dict[str, Any] = {
        "features": table.features,
        "labels": table.labels,
        "domains": table.domains,
        "text_features": table.text_features,
        "class_names": np.array(table.class_names),
        "domain_names": np.array(table.domain_names),
        "logit_scale": np.float64(table.logit_scale),
        "normalised": np.bool_(
            table.identity.get("normalised") or is_unit(row_lengths(table.features)).all()
        ),
    }
    if table.split is not None:
        arrays["split"] = table.split
    for key in ("model", "dataset"):
        if isinstance(table.identity.get(key), str):
            arrays[key] = np.array(table.identity[key])
    return arrays


@contextlib.contextmanager
def whole_file(path: Path, nbytes: int, *, force: bool) -> Iterator[BinaryIO]:
    """Yields a file that appears at `path`, complete and synced, unless an exception is raised.

    nbytes  its size, for the error about a full disk

    Raises CacheError when it exists and not `force`, or the disk refuses.
    """
    refuse_folder(path)
    if path.exists() and not force:
        raise CacheError(f"{path} exists; pass --force to replace it, or give another name")
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise disk_error(path, error, nbytes) from error
        raise


def not_exported(facts: dict[str, Any]) -> list[str]:
    """What an .npz leaves out of a cache, one sentence each; facts as of cache.store.info."""
    left = [name for name in facts["identity"] if name not in _KEPT]
    sentences = []
    if facts["unreadable"]:
        sentences.append(f"not exported: {facts['unreadable']:,} rows of unreadable images")
    if facts["paths"]:
        sentences.append("not exported: the images' paths")
    if left:
        sentences.append(f"not exported, of what the cache was made from: {shown(left)}")
    return sentences


def _table(
    arrays: dict[str, np.ndarray], path: Path, labels_from: int, domains_from: int
) -> FeatureTable:
    """The arrays as a table without identity, logit scale 1; CacheError for invalid ones."""
    features = _floats(arrays["features"], "features", path)
    text = _floats(arrays["text_features"], "text_features", path).astype(np.float32)
    if features.ndim != 2 or text.ndim != 2 or 0 in features.shape:
        raise CacheError(
            f"{path}: features must be (N, D) and text_features (C, D), N and D above 0; got "
            f"{features.shape} and {text.shape}"
        )
    named = _names(arrays, "class_names", path)
    labels = positions(arrays["labels"], "labels", named, len(text), labels_from)
    domain_names = _names(arrays, "domain_names", path)
    given = arrays.get("domains", np.full(len(features), domains_from))
    if domain_names is None and given.dtype.kind == "U":
        domain_names = tuple(np.unique(given).tolist())
    count = len(domain_names or ())
    domains = positions(given, "domains", domain_names, count, domains_from)
    if domain_names is None:
        domain_names = _numbered("domain", int(domains.max(initial=0)) + 1)
        if len(domains) and domains.min() == 1:
            LOG.warning("no row has domain 0; if domains count from 1, pass --domains-from 1")
    return FeatureTable(
        source=str(path),
        features=features,
        labels=labels,
        domains=domains,
        text_features=text,
        logit_scale=1.0,
        class_names=_numbered("class", len(text)) if named is None else distinct(named),
        domain_names=domain_names,
        split=splits(arrays["split"]) if "split" in arrays else None,
        identity={},
    )


def _logit_scale(arrays: dict[str, np.ndarray], path: Path) -> float:
    """The multiplier of the file; CacheError if it looks like its logarithm."""
    scale = float(_scalar(arrays, "logit_scale", path, "fiu", _LOGIT_SCALE))
    if 0 < scale <= _LOG_BELOW:
        power = math.exp(scale)
        raise CacheError(
            f"{path}: {scale:.4g} looks like CLIP's logit_scale parameter, a logarithm: its "
            f"exponential is {power:.1f}; pass --logit-scale {power:.4g} (the multiplier) or "
            f"--logit-scale {scale:.4g} to keep it"
        )
    return scale


def _scaled(features: np.ndarray, factor: float) -> np.ndarray:
    """features times factor in float32, rounded to their dtype; CacheError unless factor > 0."""
    if factor == 1:
        return features
    if not (math.isfinite(factor) and factor > 0):
        raise CacheError(f"--feature-scale must be a number above 0; got {factor}")
    out = np.empty_like(features)
    with np.errstate(over="ignore"):  # what overflows is refused as Inf
        for start in range(0, len(features), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            out[rows] = features[rows].astype(np.float32) * np.float32(factor)
    return out


def _dataset(arrays: dict[str, np.ndarray], path: Path, given: str | None) -> str | None:
    """The data set's name: as given, the file's key, or the file's name if printable."""
    name = _scalar(arrays, "dataset", path, "U", None) if given is None else given
    if name is None:
        return path.stem if path.stem.isprintable() else None
    if not name or not name.isprintable() or len(name) > _NAME_LENGTH:
        raise CacheError(
            f"{path}: a data set's name must be printable, at most {_NAME_LENGTH} characters; "
            f"got {name[:_NAME_LENGTH]!r}"
        )
    return str(name)


def _identified(table: FeatureTable, facts: dict[str, Any]) -> FeatureTable:
    """The table with its identity: a hash of the numbers, since their source is unknown."""
    content = content_of(table)
    split = None if table.split is None else hashlib.sha256(table.split.tobytes()).hexdigest()
    identity = {
        "schema": SCHEMA,
        "imported": content,
        **facts,
        "class_names": list(table.class_names),
        "domain_names": list(table.domain_names),
        "logit_scale": table.logit_scale,
        "split": split,
    }
    return replace(
        table, identity=identity, fingerprint=fingerprint(identity), content_sha256=content
    )


def _floats(array: np.ndarray, key: str, path: Path) -> np.ndarray:
    """Native float16 or float32, row-major; float64 becomes float32."""
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise CacheError(f"{path}: {key} must be float16, float32 or float64; got {array.dtype}")
    with np.errstate(over="ignore"):  # what overflows is refused as Inf
        return np.ascontiguousarray(array, np.float16 if array.dtype.itemsize == 2 else np.float32)


def _scalar(arrays: dict[str, np.ndarray], key: str, path: Path, kinds: str, default: Any) -> Any:
    if key not in arrays:
        return default
    array = arrays[key]
    if array.size != 1 or array.dtype.kind not in kinds:
        raise CacheError(f"{path}: {key} must be one value; got {array.shape} {array.dtype}")
    return array.reshape(()).item()


def _names(arrays: dict[str, np.ndarray], key: str, path: Path) -> tuple[str, ...] | None:
    if key not in arrays:
        return None
    if arrays[key].dtype.kind != "U" or arrays[key].ndim != 1:
        raise CacheError(
            f"{path}: {key} must be a list of text, as np.array(names, dtype=str); got "
            f"{arrays[key].shape} {arrays[key].dtype}"
        )
    return tuple(arrays[key].tolist())


def _numbered(kind: str, count: int) -> tuple[str, ...]:
    return tuple(f"{kind}_{number}" for number in range(count))
