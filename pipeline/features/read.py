"""Read a file or folder of features, in the formats of other tools, as a FeatureTable."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from cache.npz import as_table
from cache.npz_keys import NEEDED, OPTIONAL, misnamed, nearest_key
from cache.npz_members import read_members
from cache.npz_values import shown
from cache.table import CacheError, FeatureTable
from pipeline.encoder.towers import UNNAMED, Towers
from pipeline.features.arrays import ONE, read_arrays, read_one
from pipeline.features.folders import Part, expected, metadata_of, parts_of
from pipeline.parquet_files import open_parquet

LOG = logging.getLogger(__name__)

FILES = ("labels", "text_features", "class_names", "domains", "domain_names", "split")
"""The keys of cache.npz.read_npz that can come from separate files."""
Arrays = dict[str, np.ndarray]
_TRIED_ROWS = 5000  # for the zero-shot accuracy reported after an import


@dataclass(frozen=True)
class Stated:
    """What the user states about the source.

    files         {key: file} of FILES
    keys          {key: its name in the source}
    label_column  of clip-retrieval's metadata
    model         the CLIP that encodes the text features, see load_model; with templates and towers
    """

    files: Mapping[str, str | PathLike[str]] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    label_column: str | None = None
    model: str | None = None
    templates: Sequence[str] = ("a picture of a {}",)
    towers: Towers = UNNAMED


def read_features(
    source: str | PathLike[str],
    stated: Stated | None = None,
    *,
    ignore: Sequence[str] = (),
    **settings: Any,
) -> FeatureTable:
    """Read the table of a source, whose parts have the shapes and forms of cache.npz.read_npz.

    source    .npz; .npy, .pt, .safetensors or .h5 of features or arrays by name; or a folder,
              see features.folders.parts_of
    ignore    keys not to read although they resemble a known one
    settings  of cache.npz.as_table

    Transposed matrices, such as Tip-Adapter's keys and classifiers (D, C), are transposed back,
    which is logged. Raises CacheError naming what is missing and its option, and for
    untrustworthy content; WeightsError for an unavailable model.
    """
    source, stated = Path(source).expanduser(), stated or Stated()
    given = {key: read_one(Path(file)) for key, file in stated.files.items()}
    if source.is_dir():
        arrays = _of_folder(source, stated, given)
    elif source.suffix.lower() == ".npz":
        arrays = _of_npz(source, stated, {*given, *_none_set(settings)}, ignore)
    else:
        arrays = _of_file(source, stated, given, ignore)
    arrays = {key: _as_text(array, key, source) for key, array in {**arrays, **given}.items()}
    _refuse_missing(arrays, source, stated)
    _turn(arrays)
    if stated.model and "text_features" in arrays:
        LOG.warning("--model: not used for text features; the source has its own")
    elif stated.model:
        _add_text(arrays, source, stated)
    table = as_table(source, arrays, **settings)
    if stated.model:
        _say_zero_shot(table)
    return table


def _none_set(settings: Mapping[str, Any]) -> set[str]:
    return {key for key in ("logit_scale", "dataset") if settings.get(key) is not None}


def _of_npz(source: Path, stated: Stated, given: set[str], ignore: Sequence[str]) -> Arrays:
    here = {*given, *stated.keys}
    missing = [key for key in NEEDED if key not in here]
    needed = [key for key in missing if not (key == "text_features" and stated.model)]
    optional = [key for key in (*OPTIONAL, *missing) if key not in (*here, *needed)]
    theirs = set(stated.keys.values())
    found = read_members(source, (*needed, *theirs), tuple(optional), ignore, here)
    own = {key: array for key, array in found.items() if key not in theirs}
    return own | {key: found[name] for key, name in stated.keys.items()}


def _of_file(source: Path, stated: Stated, given: Arrays, ignore: Sequence[str]) -> Arrays:
    if stated.keys:
        return read_arrays(source, dict(stated.keys))
    found = read_arrays(source)
    if set(found) == {ONE}:
        return {"features": found[ONE]}
    if len(found) == 1 and "features" not in found:
        LOG.info(f"features: the one array {next(iter(found))!a}")
        return {"features": next(iter(found.values()))}
    known = {key: found[key] for key in (*NEEDED, *OPTIONAL) if key in found}
    odd = misnamed([*found, *given], ignore)
    if odd and ("features" not in known or not ignore):
        name, _, meant = odd[0].partition(" looks like ")
        raise CacheError(
            f"{source}: {'; '.join(odd[:4])}; pass --key {meant.split()[0]}={name[1:-1]} and so on "
            "for each intended one"
        )
    if "features" not in known:
        names = [f"{ascii(name)[1:-1]} {array.shape}" for name, array in found.items()]
        raise CacheError(
            f"{source}: has no features, only {shown(names)}; pass --key features=NAME"
        )
    if others := sorted(set(found) - set(known)):
        LOG.warning(f"ignored: {shown([ascii(name)[1:-1] for name in others])}")
    return known


def _of_folder(folder: Path, stated: Stated, given: Arrays) -> Arrays:
    parts, others = parts_of(folder)
    if not any(part.key == "features" for part in parts):
        raise CacheError(expected(folder))
    if others:
        LOG.warning(f"ignored files: {shown([ascii(name)[1:-1] for name in others])}")
    parts = [part for part in parts if part.key not in given]
    arrays = {part.key: _read_part(part) for part in parts if part.split is None}
    numbered = [part for part in parts if part.key == "features" and part.split is None]
    if len(numbered) > 1:  # clip-retrieval's
        arrays["features"] = _joined([read_one(part.file) for part in numbered], "features", folder)
        LOG.info(f"features: {len(numbered)} files in the order of their numbers")
    if tables := metadata_of(folder):
        arrays |= {
            k: a
            for k, a in _metadata(tables, stated.label_column, folder).items()
            if k not in given
        }
    splits = sorted({part.split for part in parts if part.split is not None})
    if not splits:
        return arrays
    return arrays | _of_splits([part for part in parts if part.split is not None], splits, folder)


def _of_splits(parts: list[Part], splits: list[int], folder: Path) -> Arrays:
    """The parts of train, val and test concatenated, with `split`."""
    found: dict[str, list[np.ndarray]] = {}
    lengths = []
    for split in splits:
        here = {part.key: part for part in parts if part.split == split}
        if "features" not in here:
            raise CacheError(
                f"{folder}: {next(iter(here.values())).file.name} has no features beside it"
            )
        arrays = {key: _read_part(part) for key, part in here.items()}
        lengths.append(len(arrays["features"]))
        for key, array in arrays.items():
            if len(array) != lengths[-1]:
                raise CacheError(
                    f"{folder}: {here[key].file.name} has {len(array):,} rows, "
                    f"{here['features'].file.name} {lengths[-1]:,}"
                )
            found.setdefault(key, []).append(array)
    for key, arrays_of_key in found.items():
        if len(arrays_of_key) < len(splits):
            raise CacheError(f"{folder}: {key} exist only for some of its splits")
    names = ", ".join(part.file.name for part in parts)
    LOG.info(f"{folder.name}: read {names}")
    joined = {key: _joined(arrays, key, folder) for key, arrays in found.items()}
    return joined | {"split": np.repeat(np.array(splits, np.int8), lengths)}


def _read_part(part: Part) -> np.ndarray:
    array = read_one(part.file)
    if part.turned and array.ndim == 2:
        LOG.info(f"{part.file.name}: Tip-Adapter's cache, one feature per column: transposed")
        return np.ascontiguousarray(array.T)
    return array


def _joined(arrays: list[np.ndarray], key: str, folder: Path) -> np.ndarray:
    kinds = {(array.dtype.kind, array.shape[1:]) for array in arrays}
    if len(kinds) > 1:
        shapes = ", ".join(f"{array.shape} {array.dtype}" for array in arrays[:4])
        raise CacheError(f"{folder}: the files of {key} have mismatched shapes: {shapes}")
    return np.concatenate(arrays)


def _metadata(tables: list[Path], column: str | None, folder: Path) -> Arrays:
    """The columns of clip-retrieval's metadata with labels, domains or splits."""
    columns: dict[str, list[Any]] = {}
    for path in tables:
        file = open_parquet(path)
        names = list(file.schema_arrow.names)
        meant = {"labels": column} if column else {}
        for key in ("labels", "domains", "split"):
            like = [name for name in names if nearest_key(name) == key]
            if key not in meant and len(like) == 1:
                meant[key] = like[0]
        if meant.get("labels") not in names:
            what = f"no column {column!a}" if column else "no column of labels"
            raise CacheError(
                f"{path}: {what}; it has {shown(names)}; pass --label-column NAME (for a column of "
                "paths, the images' folders are used), or --labels FILE"
            )
        for key, name in meant.items():
            columns.setdefault(key, []).extend(file.read([str(name)]).column(0).to_pylist())
    return {key: _column(values, key, folder) for key, values in columns.items()}


def _column(values: list[Any], key: str, folder: Path) -> np.ndarray:
    empty = sum(value is None for value in values)
    if empty or not values:
        raise CacheError(
            f"{folder}: {empty:,} of {len(values):,} rows have no {key} in the metadata"
        )
    if key == "labels" and all(isinstance(value, str) and "/" in value for value in values):
        LOG.info("labels: the folders of the images' paths")
        values = [value.rsplit("/", 2)[-2] for value in values]
    return np.array(values)


def _as_text(array: np.ndarray, key: str, source: Path) -> np.ndarray:
    if array.dtype.kind != "S":
        return array
    try:
        return np.char.decode(array, "utf-8")
    except UnicodeDecodeError as error:
        raise CacheError(f"{source}: {key} are bytes that are not UTF-8 text") from error


def _refuse_missing(arrays: Arrays, source: Path, stated: Stated) -> None:
    ways: list[tuple[str, Callable[[], str]]] = [
        ("features", lambda: "--key features=NAME"),
        ("labels", lambda: "--labels FILE, a number or a name per row" + _beside(source)),
        (
            "text_features",
            lambda: (
                "--text-features FILE with a row per class, or --model NAME, which encodes "
                "--prompt with the class names"
            ),
        ),
    ]
    for key, way in ways:
        if key not in arrays and not (key == "text_features" and stated.model):
            raise CacheError(f"{source}: has no {key}; pass {way()}")
    for key in ("features", "text_features"):
        if key in arrays and arrays[key].ndim != 2:
            raise CacheError(f"{source}: {key} must be a matrix; got {arrays[key].shape}")
    if arrays["labels"].ndim == 0:
        raise CacheError(f"{source}: labels must be one per row; got a single value")


def _beside(source: Path) -> str:
    try:
        near = [f.name for f in sorted(source.parent.iterdir()) if nearest_key(f.stem) == "labels"]
    except OSError:
        return ""
    return f" (there is {near[0]})" if near else ""


def _turn(arrays: Arrays) -> None:
    """Transpose features (D, N) and text features (D, C) if the other parts show that they are."""
    features, rows = arrays["features"], len(arrays["labels"])
    if len(features) != rows == features.shape[1]:
        LOG.info(f"features {features.shape}: {rows} labels, so one feature per column: transposed")
        arrays["features"] = features = np.ascontiguousarray(features.T)
    text, width = arrays.get("text_features"), features.shape[1]
    if text is not None and text.shape[1] != width == text.shape[0]:
        LOG.info(
            f"text_features {text.shape}: features are {width} wide, so one class per column: "
            "transposed"
        )
        arrays["text_features"] = np.ascontiguousarray(text.T)


def _add_text(arrays: Arrays, source: Path, stated: Stated) -> None:
    """Add text features from the model; class names from the labels if these are words."""
    labels = arrays["labels"]
    if "class_names" not in arrays:
        if labels.dtype.kind != "U":
            raise CacheError(
                f"{source}: --model {stated.model} needs the names of the classes; pass "
                "--class-names FILE, one per line in the order of the labels"
            )
        arrays["class_names"] = np.unique(labels)
    names = arrays["class_names"]
    if names.dtype.kind != "U" or names.ndim != 1:
        raise CacheError(
            f"{source}: class_names must be a list of text; got {names.shape} {names.dtype}"
        )
    import torch

    from pipeline.encoder.model import encode_prompts, load_model

    clip = load_model(str(stated.model), torch.device("cpu"), stated.towers)
    width = arrays["features"].shape[1]
    if clip.width != width:
        raise CacheError(
            f"{source}: its features are {width} wide, those of --model {stated.model} "
            f"{clip.width}; name the model that encoded them"
        )
    arrays["text_features"] = encode_prompts(clip, names.tolist(), stated.templates)
    arrays.setdefault("logit_scale", np.array(clip.logit_scale))
    arrays.setdefault("model", np.array(clip.name))
    LOG.info(f"text features: {stated.model}, {stated.templates[0]!r} of {len(names):,} classes")


def _say_zero_shot(table: FeatureTable) -> None:
    """Log the zero-shot accuracy, which shows whether the features come from the same model."""
    rows = np.random.default_rng(0).permutation(len(table.labels))[:_TRIED_ROWS]
    text = table.text_features / np.linalg.norm(table.text_features, axis=1, keepdims=True)
    answers = (table.features[np.sort(rows)].astype(np.float32) @ text.T).argmax(axis=1)
    right, chance = float((answers == table.labels[np.sort(rows)]).mean()), 1 / len(text)
    LOG.info(f"zero-shot accuracy with these text features: {right:.1%} of {len(rows):,} rows")
    if len(text) > 1 and right < 1.5 * chance:
        LOG.warning(
            f"that is near chance ({chance:.1%}): are the features from another model, or "
            "the class names in another order?"
        )
