"""Class names from a file, for folders whose names are numbers or codes."""

import csv
import dataclasses
import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from pipeline.datasets.tree import ImageTree
from pipeline.errors import DataError
from pipeline.terminal import printable

FORMS = (
    "a line 'folder<TAB>name', 'folder=name' or 'folder,name' for each class, or one name a line "
    'in the order of the folders, or JSON {"folder": "name"}'
)
_MOST_BYTES = 1 << 24
_SEPARATORS = ("\t", "=", ",", None)  # None: white space, as in ImageNet's LOC_synset_mapping.txt


def with_names(tree: ImageTree, file: Path) -> ImageTree:
    """The tree with the class names of a file; folders of the same name become one class.

    file  in one of FORMS. A folder that it does not name keeps its own name; names of other folders
          are ignored. Lines without folders name them in sorted order, or in numeric order if
          all are whole numbers: line 11 names folder 10 of 0 to 99.

    Classes keep the order of their first folders. Raises DataError for a file that cannot be
    read, names none of the folders, or has fewer or more names than there are folders.
    """
    found = _read(file, tree)
    names = [found.get(folder, folder) for folder in tree.class_names]
    class_names = tuple(dict.fromkeys(names))
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[name] for name in names], np.int64)[tree.labels]
    renamed = dict(zip(tree.class_names, names, strict=True))
    return dataclasses.replace(tree, class_names=class_names, labels=labels, renamed=renamed)


def some(
    names: Iterable[str],
    shown: int = 3,
    show: Callable[[str], str] = lambda name: repr(printable(name)),
    between: str = ", ",
) -> str:
    """The first names, printable, and the number of others."""
    listed = list(names)
    more = f" and {len(listed) - shown:,} more" if len(listed) > shown else ""
    return between.join(map(show, listed[:shown])) + more


def _read(file: Path, tree: ImageTree) -> dict[str, str]:
    """{class folder: name} of the folders that the file names."""
    shown = f"--class-names {printable(file)}"
    try:
        with file.open("rb") as opened:
            raw = opened.read(_MOST_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{shown}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{shown}: is not UTF-8 text; expected {FORMS}") from error
    if len(raw) > _MOST_BYTES:
        raise DataError(f"{shown}: larger than {_MOST_BYTES:,} bytes; expected {FORMS}")
    if text.lstrip().startswith(("{", "[")):
        found = _from_json(text, shown, tree.class_names)
    else:
        found = _from_lines(text, shown, tree.class_names)
    for folder, name in found.items():
        if not name or not name.isprintable():
            raise DataError(f"{shown}: the name of {printable(folder)} is empty or not printable")
    if not found:
        raise DataError(
            f"{shown}: names none of the class folders {some(tree.class_names, 5)}; "
            f"expected {FORMS}"
        )
    return found


def _from_json(text: str, shown: str, folders: Sequence[str]) -> dict[str, str]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown}: is not JSON ({error}); expected {FORMS}") from error
    if isinstance(found, list) and all(isinstance(name, str) for name in found):
        return _in_order([name.strip() for name in found], shown, folders)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise DataError(f"{shown}: its JSON holds more than strings; expected {FORMS}")
    return _known({folder: name.strip() for folder, name in found.items()}, folders)


def _from_lines(text: str, shown: str, folders: Sequence[str]) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line.strip()]
    for separator in _SEPARATORS:
        pairs = [_pair(line, separator) for line in lines]
        if all(len(pair) == 2 for pair in pairs):
            both = {(key, name.strip()) for key, name in pairs}
            found = _known(dict(both), folders)
            if found and len({key for key, _ in both}) < len(both):
                raise DataError(f"{shown}: gives a folder two names; expected {FORMS}")
            if found:
                return found
    return _in_order([line.strip() for line in lines], shown, folders)


def _pair(line: str, separator: str | None) -> list[str]:
    if separator == "," and line.lstrip().startswith('"'):
        return next(csv.reader([line.strip()]))
    # The folders "dog " and "dog" differ, so a key keeps its spaces unless they separate.
    return line.split(separator, 1)


def _known(found: dict[str, str], folders: Sequence[str]) -> dict[str, str]:
    """Names of the tree's folders, matched exactly, else without outer spaces and in NFC."""
    loose = {_loose(folder): name for folder, name in found.items()}
    named = {folder: found.get(folder, loose.get(_loose(folder))) for folder in folders}
    return {folder: name for folder, name in named.items() if name is not None}


def _loose(folder: str) -> str:
    return unicodedata.normalize("NFC", folder).strip()


def _in_order(names: list[str], shown: str, folders: Sequence[str]) -> dict[str, str]:
    if len(names) != len(folders):
        raise DataError(
            f"{shown}: has {len(names):,} names for {len(folders):,} class folders "
            f"({some(folders, 5)}); expected {FORMS}"
        )
    numbers = all(folder.isdecimal() for folder in folders)
    ordered = sorted(folders, key=lambda folder: (int(folder) if numbers else 0, folder))
    return dict(zip(ordered, names, strict=True))
