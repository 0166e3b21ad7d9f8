"""An image folder as rows (path, label, domain, split) in a fixed order; image digests."""

import contextlib
import hashlib
import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache.identity import DIGEST_BYTES
from pipeline.contained import is_contained, read_contained
from pipeline.datasets.image_files import Folder, read_folder
from pipeline.datasets.layouts import EXPECTED, Group, guess, no_images, read_as
from pipeline.errors import DataError
from pipeline.terminal import printable

# hashlib.file_digest clears a buffer of this size for each file: 0.7, not 1.1 GB/s on 20 KB files.
_HASH_BYTES = 1 << 18
_MOST_BYTES = 1 << 30  # of one image in an archive
MOST_ROWS = 20_000_000  # of a list, a table or an archive
_HASH_ROWS = 64  # rows per task: tasks of one row cost more than reading a small image


@dataclass(frozen=True)
class ImageTree:
    """The images of a folder, ordered by domain, split and class."""

    root: Path
    domain_names: tuple[str, ...]  # raw folder names in Python's string order
    class_names: tuple[str, ...]  # likewise over all domains; or other names, in their order
    paths: tuple[str, ...]  # (N,) relative to root, separated by "/"
    labels: np.ndarray  # (N,) int64
    domains: np.ndarray  # (N,) int64
    ignored: tuple[str, ...]  # files and folders (with a final "/") that are left out
    layout: str = "domain/class"  # one of LAYOUTS
    split: np.ndarray | None = None  # (N,) int8, positions in cache.table.SPLITS; None: no folders
    renamed: Mapping[str, str] = field(default_factory=dict)  # {class folder: name} of all, or {}
    places: tuple[str, ...] | None = None  # (N,) of pipeline.contained or files; None: root/path

    def file(self, row: int) -> str:
        """The file of a row's image, or its place as of pipeline.contained."""
        return self.places[row] if self.places else os.path.join(self.root, self.paths[row])


class Row(NamedTuple):
    """One image.

    domain      "" if there is none;  split  position in SPLITS, or None
    path        its name in the cache;   place  where it is read
    """

    domain: str
    split: int | None
    class_name: str
    path: str
    place: str


def scan(root: str | PathLike[str], layout: str | None = None) -> ImageTree:
    """The images under `root` in a stated layout (LAYOUTS), or in the one guessed.

    Inside a class the order is that of torchvision's ImageFolder: folders by path, their files by
    name; domains and classes by name; splits in the order train, val, test; "/" separates on every
    system. A class missing from some domain is not an error, and a dead link is a row like any
    other. `ignored` lists what read_folder and read_as leave out.

    Raises DataError for a root that is not a folder and a tree without images, UnclearLayout for a
    tree that fits no layout.
    """
    root = Path(root)
    top = read_root(root)
    return as_tree(root, top, layout or guess(root, top))


def read_root(root: Path) -> Folder:
    """read_folder of a data set; DataError for a root that is not a folder or has no image."""
    root = Path(root)
    if not root.is_dir():
        found = "this is a file" if root.exists() else "there is no such folder"
        raise DataError(f"{printable(root)}: {found}; {EXPECTED}")
    top = read_folder(str(root))
    if not top.images and not top.folders:
        raise DataError(no_images(root, top.left_out))
    return top


def as_tree(root: Path, top: Folder, layout: str) -> ImageTree:
    """The rows of what read_root found, in that layout. Raises DataError if there are none."""
    groups, left_out = read_as(top, layout)
    if not groups:
        raise DataError(f"{printable(root)}: has no image in the layout {layout}/image; {EXPECTED}")
    _check_names(root, [path for group in groups for path in group.paths])
    ignored = sorted(top.left_out + left_out)
    return of_groups(root, groups, layout, ignored, has_split="split" in layout)


def of_groups(
    root: Path, groups: Sequence[Group], layout: str, ignored: Sequence[str], *,
    has_split: bool, class_names: Sequence[str] = (),
) -> ImageTree:  # fmt: skip
    """The rows of groups, in their order.

    class_names  in their order, all that groups have; (): those of the groups, sorted
    """
    here = named_after(root)
    domain_names = tuple(sorted({group.domain or here for group in groups}))
    names = tuple(class_names) or tuple(sorted({group.class_folder for group in groups}))
    label_of = {name: label for label, name in enumerate(names)}
    domain_of = {name: number for number, name in enumerate(domain_names)}
    sizes = [len(group.paths) for group in groups]

    def column(values: list[int], kind: type) -> np.ndarray:
        return np.repeat(np.array(values, kind), sizes)

    return ImageTree(
        root=root,
        domain_names=domain_names,
        class_names=names,
        paths=tuple(path for group in groups for path in group.paths),
        labels=column([label_of[group.class_folder] for group in groups], np.int64),
        domains=column([domain_of[group.domain or here] for group in groups], np.int64),
        ignored=tuple(ignored),
        layout=layout,
        split=column([group.split for group in groups], np.int8) if has_split else None,
    )


def listed_tree(
    root: Path, rows: Sequence[Row], layout: str, ignored: Sequence[str] = (),
    class_names: Sequence[str] = (),
) -> ImageTree:  # fmt: skip
    """The rows in the order of a folder's: by domain, split, class and path.

    layout       the kind of source, for messages
    class_names  in the order that the source fixes; (): those of the rows, sorted

    Raises DataError without rows, for a repeated path, and if only some rows have a
    domain or a split.
    """
    shown = printable(root)
    if not rows:
        raise DataError(f"{shown}: no image in it")
    for what, given in (("domain", [r.domain for r in rows]), ("split", [r.split for r in rows])):
        lacking = sum(one in ("", None) for one in given)
        if 0 < lacking < len(rows):
            raise DataError(f"{shown}: {lacking:,} of {len(rows):,} rows have no {what}")
    ordered = sorted(rows, key=lambda row: (row.domain, row.split or 0, row.class_name, row.path))
    paths = tuple(row.path for row in ordered)
    if len(set(paths)) < len(paths):
        twice = Counter(paths).most_common(1)[0][0]
        raise DataError(f"{shown}: {printable(twice)} is listed twice")
    if class_names and (unknown := {row.class_name for row in rows} - set(class_names)):
        raise DataError(
            f"{shown}: a row has the class {printable(min(unknown))}, which has no name"
        )
    groups = [
        Group(*key, [row.path for row in some])
        for key, some in groupby(ordered, key=lambda row: (row.domain, row.split or 0, row[2]))
    ]
    # A single split, as in parquet files of Hugging Face, divides nothing.
    has_split = len({row.split for row in rows}) > 1
    tree = of_groups(root, groups, layout, ignored, has_split=has_split, class_names=class_names)
    return replace(tree, places=tuple(row.place for row in ordered))


def named_after(root: Path) -> str:
    """The only domain of a data set without domains: the folder's name, or the file's stem."""
    root = root.resolve()
    return (root.stem if root.is_file() else root.name) or "images"


def image_digests(tree: ImageTree) -> np.ndarray:
    """Size and content SHA-256 of every row's image, (N, DIGEST_BYTES) uint8.

    Zeros for a file that cannot be read. cache.identity.manifest_sha256 combines them with the
    paths. Ctrl-C ends it at once, even while a disk does not respond.
    """
    found = np.zeros((len(tree.paths), DIGEST_BYTES), np.uint8)
    starts = deque(range(0, len(found), _HASH_ROWS))
    tasks = len(starts)
    done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def hash_some() -> None:
        while starts:
            with contextlib.suppress(IndexError):  # another thread took the last one
                start = starts.popleft()
                try:
                    for row in range(start, min(start + _HASH_ROWS, len(found))):
                        found[row] = np.frombuffer(_digest(tree.file(row)), np.uint8)
                    done.put(None)
                except Exception as error:
                    done.put(error)

    try:
        _start_threads(hash_some, min(16, 2 * (os.cpu_count() or 1), tasks))
        for _ in range(tasks):
            if error := done.get():
                raise error
    finally:
        starts.clear()
    return found


def _start_threads(work: Callable[[], None], count: int) -> None:
    """Run `work` in daemon threads, or in this one if the system has no other.

    Reading and hashing release the GIL; more threads than cores keep a slow disk busy. A pool's
    threads are joined at exit: one that waits for a dead disk would block that.
    """
    for started in range(count):
        try:
            threading.Thread(target=work, name="hash", daemon=True).start()
        except RuntimeError:  # no more threads can be started: the existing ones do the work
            if not started:
                work()
            return


def _check_names(root: Path, paths: list[str]) -> None:
    try:
        "".join(paths).encode()
    except UnicodeEncodeError:
        bad = next(path for path in paths if path.encode(errors="replace").decode() != path)
        raise DataError(
            f"{printable(root)}: the name {ascii(bad)} is not UTF-8; rename it"
        ) from None


def _digest(place: str) -> bytes:
    """Zeros for what cannot be read: decoding reports that image as unreadable."""
    content = hashlib.sha256()
    if is_contained(place):
        try:
            data = read_contained(place, _MOST_BYTES)
        except Exception:  # damaged archives raise nearly anything
            return bytes(DIGEST_BYTES)
        content.update(data)
        return len(data).to_bytes(8, "little") + content.digest()
    try:
        with open(place, "rb", buffering=0) as file:
            while block := file.read(_HASH_BYTES):
                content.update(block)
            return file.tell().to_bytes(8, "little") + content.digest()
    except OSError:
        return bytes(DIGEST_BYTES)
