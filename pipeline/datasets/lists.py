"""Read list files, CSV and Dassl's split files: path, label and perhaps domain and split."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from cache.table import SPLITS
from pipeline.datasets.class_names import some
from pipeline.datasets.counts import plain
from pipeline.datasets.image_files import IMAGE_EXTENSIONS, folders_in
from pipeline.datasets.layouts import split_of
from pipeline.datasets.tree import MOST_ROWS, ImageTree, Row, listed_tree
from pipeline.errors import DataError
from pipeline.terminal import printable

SUFFIXES = (".csv", ".tsv", ".txt", ".json")
EXPECTED = (
    "expected a header of path and label, and perhaps domain and split; lines of 'path label'; or "
    "Dassl's JSON of train, val and test"
)
_COLUMNS = {  # their names in headers, in lower case without punctuation
    "path": ("path image filename file filepath imagepath imagefile img impath imgpath fname name "
             "imagename imageid"),
    "label": "label class classname category target labelname species cls y classid labelid",
    "domain": "domain domainname environment env style site source",
    "split": "split partition subset fold set",
}  # fmt: skip
_MOST_BYTES = 1 << 31
_TRIED = 50  # rows whose files are searched for in each folder


def read_list(file: Path, say: Callable[[str], None], layout: str | None = None) -> ImageTree:
    """The images listed in a file of one of SUFFIXES; paths are relative to it, or to a folder
    beside it.

    layout  "domain/class": if the list has no domains, a path's first folder is its domain

    Labels may be words; numbers get the name of the images' folder if each number has one
    of its own. Raises DataError for another kind of file, for rows that cannot be read, and if
    the listed files are missing.
    """
    shown = printable(file)
    if file.stat().st_size > _MOST_BYTES:
        raise DataError(f"{shown}: larger than {_MOST_BYTES:,} bytes; {EXPECTED}")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown}: is not UTF-8 text; {EXPECTED}") from error
    names: list[str] = []
    if file.suffix.lower() == ".json":
        rows, names = _of_json(text, shown)
    else:
        rows = _of_text(text, shown)
    if not rows:
        raise DataError(f"{shown}: lists no image; {EXPECTED}")
    if len(rows) > MOST_ROWS:
        raise DataError(f"{shown}: lists {len(rows):,} images, over {MOST_ROWS:,}")
    rows = [row._replace(path=_clean(row.path, shown)) for row in rows]
    if layout == "domain/class" and not any(row.domain for row in rows):
        rows = [row._replace(domain=row.path.split("/")[0]) for row in rows]
    if not names and all(row.class_name.isdecimal() for row in rows):
        named = _names_of_folders(rows)
        if named:
            say(f"{shown}: its numbers are named after the images' folders")
            rows = [row._replace(class_name=named[row.class_name]) for row in rows]
            names = [named[label] for label in sorted(named, key=int)]
        else:
            names = sorted({row.class_name for row in rows}, key=int)
    base = _base(file, [row.path for row in rows])
    say(f"{shown}: {len(rows):,} images, below {printable(base)}")
    placed = [row._replace(place=os.path.join(base, row.path)) for row in rows]
    return listed_tree(file, placed, "list", class_names=names)


def _of_text(text: str, shown: str) -> list[Row]:
    """The rows of a text, their paths as they stand there; nothing is known of their places."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    separator = next((mark for mark in "\t,;" if mark in lines[0]), None)
    rows = list(csv.reader(lines, delimiter=separator)) if separator else [_split(n) for n in lines]
    columns = _header(rows[0])
    if columns is None:
        if len(rows[0]) > 2:
            raise DataError(
                f"{shown}: its lines have {len(rows[0])} parts and no header names them; {EXPECTED}"
            )
        columns, body = {"path": 0, "label": 1}, rows
    else:
        body = rows[1:]
    found = []
    for number, row in enumerate(body, 1 + (body is not rows)):
        if len(row) != len(rows[0]):
            raise DataError(
                f"{shown}: line {number} has {len(row)} parts, the first has {len(rows[0])}"
            )
        part = {name: row[at].strip() for name, at in columns.items()}
        if not (part["path"] and part.get("label")):
            raise DataError(f"{shown}: line {number} has no path or no label; {EXPECTED}")
        split = _split_of(part.get("split", ""), shown, number)
        found.append(Row(part.get("domain", ""), split, part["label"], part["path"], ""))
    return found


def _split(line: str) -> list[str]:
    """Split a line without commas: the label is its last word, as paths may have spaces."""
    return line.strip().rsplit(None, 1)


def _header(row: Sequence[str]) -> dict[str, int] | None:
    """{path, label, domain, split: column} of a header; None if the first line holds data."""
    found: dict[str, int] = {}
    for at, cell in enumerate(row):
        for name, words in _COLUMNS.items():
            if plain(cell) in words.split():
                found.setdefault(name, at)
    if not {"path", "label"} <= found.keys():
        return None
    is_data = row[found["path"]].strip().lower().endswith(IMAGE_EXTENSIONS)
    return None if is_data else found


def _split_of(word: str, shown: str, line: int) -> int | None:
    if not word:
        return None
    found = SPLITS.index(word) if word in SPLITS else split_of(word)
    if found is None:
        raise DataError(
            f"{shown}: line {line} has the split {word!a}; must be one of {', '.join(SPLITS)}"
        )
    return found


def _of_json(text: str, shown: str) -> tuple[list[Row], list[str]]:
    """CoOp's split_zhou_X.json: {"train": [[path, label, class name], ...], "val": ...}."""
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown}: is not JSON ({str(error)[:80]}); {EXPECTED}") from error
    splits = {name: split_of(str(name)) for name in parts} if isinstance(parts, dict) else {}
    if not splits or None in splits.values():
        raise DataError(f"{shown}: is not an object of train, val and test; {EXPECTED}")
    found = []
    name_of: dict[int, str] = {}
    for name, split in splits.items():
        for item in parts[name] if isinstance(parts[name], list) else [None]:
            if not (isinstance(item, list) and [type(part) for part in item] == [str, int, str]):
                raise DataError(f"{shown}: {name} is not a list of [path, label, class name]")
            path, label, class_name = item
            if name_of.setdefault(label, class_name) != class_name:
                raise DataError(f"{shown}: label {label} is {name_of[label]!a} and {class_name!a}")
            found.append(Row("", split, class_name, path, ""))
    names = [name_of[label] for label in sorted(name_of)]
    if len(set(names)) < len(names):
        raise DataError(f"{shown}: two labels have one class name; {some(sorted(names))}")
    return found, names


def _clean(path: str, shown: str) -> str:
    """A relative path with "/"; DataError for one that leaves its folder."""
    clean = path.replace("\\", "/").removeprefix("./")
    parts = clean.split("/")
    if clean.startswith("/") or ":" in parts[0] or any(part in ("", "..", ".") for part in parts):
        raise DataError(
            f"{shown}: {printable(path)}: paths are relative to the list or a folder beside it, "
            "and must not leave it"
        )
    if "\0" in clean:
        raise DataError(f"{shown}: a path with a zero byte")
    return clean


def _names_of_folders(rows: Sequence[Row]) -> dict[str, str] | None:
    """{number: folder} if numbers and folders correspond one to one, else None."""
    pairs = {(row.class_name, PurePosixPath(row.path).parent.name) for row in rows}
    named = dict(pairs)
    one_to_one = len(named) == len(pairs) == len(set(named.values()))
    return named if one_to_one and all(named.values()) else None


def _base(file: Path, paths: Sequence[str]) -> Path:
    """The folder that the paths are relative to: the list's, one in it, or its parent."""
    tried = paths[:: max(1, len(paths) // _TRIED)]

    def there(base: Path) -> int:
        return sum(os.path.lexists(os.path.join(base, path)) for path in tried)

    bases = [file.parent, *folders_in(file.parent), file.resolve().parent.parent]
    best = max(bases, key=there)
    if not there(best):
        raise DataError(
            f"{printable(file)}: {printable(paths[0])} is neither in {printable(file.parent)} nor "
            "in a folder in it or above; put the list beside the images"
        )
    return best
