"""Find the parts of a folder of features by the file names that tools use."""

import re
from pathlib import Path
from typing import NamedTuple

from cache.npz_keys import NEEDED, OPTIONAL, nearest_key
from cache.table import SPLITS, CacheError
from pipeline.datasets.layouts import split_of
from pipeline.features.arrays import ARRAYS

_CALLED = {  # Tip-Adapter's keys_16shots.pt, values_16shots.pt, test_f.pt, test_l.pt
    "f": "features",
    "l": "labels",
    "keys": "features",
    "values": "labels",
}
_BY_ROW = ("features", "labels", "domains")


class Part(NamedTuple):
    """A file of a folder and what it holds.

    key     of cache.npz.read_npz;  split  position in SPLITS; None if its name has none
    turned  whether it is a cache of Tip-Adapter, whose features are columns
    """

    file: Path
    key: str
    split: int | None
    turned: bool = False


def parts_of(folder: Path) -> tuple[list[Part], list[str]]:
    """The files of a folder with known names, and the names of the others.

    clip-retrieval's img_emb/img_emb_0.npy, ... are in the order of their numbers; other names are
    a key or a synonym (cache.npz_keys) and perhaps a split: features_train.pt,
    val_labels.npy, class_names.txt. Raises CacheError if two files are the same part.
    """
    inside = folder / "img_emb"
    if inside.is_dir():
        files = sorted(inside.glob("img_emb_*.npy"), key=_number)
        return [Part(file, "features", None) for file in files], []
    parts: list[Part] = []
    others: list[str] = []
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or not file.is_file():
            continue
        part = _part(file) if file.suffix.lower() in ARRAYS else None
        if part is None:
            others.append(file.name)
            continue
        same = [one for one in parts if one[1:3] == part[1:3]]
        if same:
            raise CacheError(
                f"{folder}: {same[0].file.name} and {file.name} are both {part.key}"
                + (f" of {SPLITS[part.split]}" if part.split is not None else "")
                + "; move one of them away, or name the files by options"
            )
        parts.append(part)
    return parts, others


def metadata_of(folder: Path) -> list[Path]:
    """clip-retrieval's metadata/metadata_0.parquet, ... in the order of their numbers."""
    return sorted((folder / "metadata").glob("metadata_*.parquet"), key=_number)


def expected(folder: Path) -> str:
    """The error for a folder without features."""
    inner = [one.name for one in sorted(folder.iterdir()) if one.is_dir()][:200]
    fitting = [name for name in inner if _has_features(folder / name)]
    there = f"; the folder {fitting[0]} in it has them: name that one" if fitting else ""
    return (
        f"{folder}: no features in it; expected features.npy and labels.npy, "
        "features_train.pt and targets_train.pt (CLIP_benchmark), keys_16shots.pt and "
        f"values_16shots.pt (Tip-Adapter), or img_emb/img_emb_0.npy (clip-retrieval){there}"
    )


def _has_features(folder: Path) -> bool:
    try:
        return any(part.key == "features" for part in parts_of(folder)[0])
    except (CacheError, OSError):
        return False


def _part(file: Path) -> Part | None:
    words = [w for w in re.split(r"[_\-. ]+", file.stem) if not re.fullmatch(r"\d+shots?", w)]
    named = [split_of(word) for word in words]
    found = [split for split in named if split is not None]
    rest = "_".join(word for word, split in zip(words, named, strict=True) if split is None)
    known = {key: key for key in (*NEEDED, *OPTIONAL)}
    key = _CALLED.get(rest.lower()) or known.get(rest.lower()) or _nearest(rest)
    if key is None or len(found) > 1 or (found and key not in _BY_ROW):
        return None
    turned = rest.lower() == "keys"
    is_cache = rest.lower() in ("keys", "values")
    return Part(file, key, found[0] if found else (0 if is_cache else None), turned)


def _nearest(name: str) -> str | None:
    return nearest_key(name) if len(name) > 2 else None


def _number(file: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", file.stem)
    return int(digits[-1][:12]) if digits else -1, file.name
