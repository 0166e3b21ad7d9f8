"""Labels, domains, splits and names of an .npz, in the forms in which they are saved."""

import difflib
import logging
from collections.abc import Sequence

import numpy as np

from cache.table import SPLITS, CacheError

LOG = logging.getLogger(__name__)

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "tr"), 0),
    **dict.fromkeys(("val", "valid", "validation", "dev"), 1),
    **dict.fromkeys(("test", "testing", "te"), 2),
}


def positions(
    array: np.ndarray, key: str, names: Sequence[str] | None, count: int, first: int
) -> np.ndarray:
    """(N,) int64 positions from 0, from numbers, words or one-hot rows.

    array  (N,) or (N, 1) integers, whole floats, or bool; (N,) text; (N, count) one-hot
    names  in which words are looked up; None if there are none
    first  the number of the first position, 0 or 1; ignored for words and one-hot rows

    Raises CacheError, without the file's name, for anything else.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
        LOG.info(f"{key} has shape ({len(array)}, 1): read as ({len(array)},)")
    if array.ndim == 2 and array.shape[1] == count and _one_hot(array):
        LOG.info(f"{key} are one-hot rows: read as the position of each row's 1")
        return np.asarray(array.argmax(axis=1), np.int64)
    if array.dtype.kind == "U":
        return _looked_up(array, key, names)
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        LOG.info(f"{key} are whole numbers saved as {array.dtype}: read as integers")
        array = _whole(array, key)
    if array.dtype.kind == "b":
        LOG.info(f"{key} are True and False: read as 1 and 0")
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise CacheError(
            f"{key} must be integers, or text that is in {_names_key(key)}; got {array.dtype}"
        )
    numbers = _whole(array, key) - first
    if first == 0 and numbers.ndim == 1 and len(numbers) and count:
        low, high = int(numbers.min()), int(numbers.max())
        if (low, high) == (1, count):
            raise CacheError(
                f"{key} count from 1 ({low} to {high}, for {count} {_names_key(key)}); pass "
                f"--{key}-from 1"
            )
    return numbers


def splits(array: np.ndarray) -> np.ndarray:
    """(N,) int8, 0 train, 1 val, 2 test, from these numbers or words. Raises CacheError."""
    if array.dtype.kind == "U" and array.ndim == 1:
        words, inverse = np.unique(array, return_inverse=True)
        known = [_SPLIT_WORDS.get(word.strip().casefold()) for word in words.tolist()]
        odd = [word for word, one in zip(words.tolist(), known, strict=True) if one is None]
        if odd:
            raise CacheError(f"split must be 0 train, 1 val or 2 test in every row; got {odd[0]!r}")
        LOG.info("split is text: read as 0 train, 1 val, 2 test")
        return np.array(known, np.int8)[inverse.reshape(array.shape)]
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        LOG.info(f"split has whole numbers saved as {array.dtype}: read as integers")
        array = _whole(array, "split")
    if array.dtype.kind not in "iu":
        raise CacheError(f"split must be integers: 0 train, 1 val, 2 test; got {array.dtype}")
    odd_rows = np.flatnonzero(~np.isin(array, range(len(SPLITS))))
    if len(odd_rows):
        value = array.reshape(-1)[odd_rows[0]]
        hint = "rows without a split" if value < 0 else f"got {value}"
        raise CacheError(
            f"split must be 0 train, 1 val or 2 test in every row; {hint}: {len(odd_rows):,} rows, "
            f"first row {odd_rows[0]} ({value}); give each row one, or leave the key out"
        )
    return array.astype(np.int8)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number after repeated ones: "crane", "crane (2)"."""
    taken, found = set(names), []
    seen: dict[str, int] = {}
    for name in names:
        number = seen[name] = seen.get(name, 0) + 1
        fresh = name
        if number > 1:
            while (fresh := f"{name} ({number})") in taken:
                number += 1
            seen[name] = number
            taken.add(fresh)
        found.append(fresh)
    twice = [name for name, count in seen.items() if count > 1]
    if twice:
        LOG.warning(
            f"class names are listed more than once: {shown(twice)}; the later ones get a "
            f"number: {shown([name for name in found if name not in names])}"
        )
    return tuple(found)


def shown(names: Sequence[str], most: int = 8) -> str:
    """The first names and the number of others, on one line."""
    first = ", ".join(name if name.isprintable() else repr(name) for name in names[:most])
    return first + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _one_hot(array: np.ndarray) -> bool:
    if array.dtype.kind not in "biuf":
        return False
    return bool(np.isin(array, (0, 1)).all() and (array.astype(bool).sum(axis=1) == 1).all())


def _whole(array: np.ndarray, key: str) -> np.ndarray:
    """As int64; CacheError if that would change a number."""
    if array.size and max(int(array.max()), -int(array.min())) >= 1 << 62:
        raise CacheError(f"{key} must be positions from 0; got numbers up to {array.max()}")
    return array.astype(np.int64)


def _looked_up(array: np.ndarray, key: str, names: Sequence[str] | None) -> np.ndarray:
    if names is None:
        raise CacheError(
            f"{key} are text, but there is no {_names_key(key)} to say which row of text_features "
            f"each means; add {_names_key(key)}, (C,) text in the order of text_features"
        )
    words, inverse = np.unique(array, return_inverse=True)
    numbers = []
    for word in words.tolist():
        found = [number for number, name in enumerate(names) if name == word]
        if len(found) != 1:
            near = difflib.get_close_matches(word, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near and not found else ""
            many = f"{len(found)} times" if found else "not"
            raise CacheError(f"{key} has {word!r}, which is {many} in {_names_key(key)}{hint}")
        numbers += found
    LOG.info(f"{key} are text: read as positions in {_names_key(key)}")
    return np.array(numbers, np.int64)[inverse.reshape(array.shape)]


def _names_key(key: str) -> str:
    return "class_names" if key == "labels" else "domain_names"
