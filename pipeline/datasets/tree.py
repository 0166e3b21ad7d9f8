"""A folder of images as rows (path, label, domain, split) in a fixed order; their digests."""

import contextlib
import hashlib
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np

from cache.identity import DIGEST_BYTES
from pipeline.contained import is_contained, read_contained
from pipeline.datasets.image_files import Folder, read_folder
from pipeline.datasets.layouts import EXPECTED, guess, no_images, read_as
from pipeline.errors import DataError
from pipeline.terminal import printable

__all__ = ["ImageTree", "as_tree", "image_digests", "read_root", "scan"]

# hashlib.file_digest clears as large a buffer for each file: 0.7, not 1.1 GB/s on 20 KB files.
_HASH_BYTES = 1 << 18
_MOST_BYTES = 1 << 30  # of one image in an archive
_HASH_ROWS = 64  # rows a task: tasks of one row cost more than reading a small image


@dataclass(frozen=True)
class ImageTree:
    """The images of a folder: domain after domain, split after split, class after class."""

    root: Path
    domain_names: tuple[str, ...]  # raw folder names in Python's string order
    class_names: tuple[str, ...]  # the same, over all domains; or other names, in their order
    paths: tuple[str, ...]  # (N,) relative to root, separated by "/"
    labels: np.ndarray  # (N,) int64
    domains: np.ndarray  # (N,) int64
    ignored: tuple[str, ...]  # what is left out: files, and folders ("/" last)
    layout: str = "domain/class"  # one of LAYOUTS
    split: np.ndarray | None = None  # (N,) int8, positions in cache.table.SPLITS; None: no folders
    renamed: Mapping[str, str] = field(default_factory=dict)  # {class folder: name} of all, or {}
    places: tuple[str, ...] | None = None  # (N,) of pipeline.contained or files; None: root/path

    def file(self, row: int) -> str:
        """Where the image of a row is read: a file, or a place of pipeline.contained."""
        return self.places[row] if self.places else os.path.join(self.root, self.paths[row])


def scan(root: str | PathLike[str], layout: str | None = None) -> ImageTree:
    """The images under `root`, in a stated layout (LAYOUTS) or in the one that it seems to have.

    Inside a class the order is torchvision's ImageFolder's: folders by path, in a folder files by
    name; domains and classes by name, splits in the order train, val, test; "/" separates on every
    system. A class that some domain lacks is no error, and a link that leads nowhere is a row like
    another. Left out and listed in `ignored`: what read_folder and read_as leave out.

    Raises DataError for a root that is not a folder and a tree without images, UnclearLayout for a
    tree that fits no layout.
    """
    root = Path(root)
    top = read_root(root)
    return as_tree(root, top, layout or guess(root, top))


def read_root(root: Path) -> Folder:
    """read_folder of a data set; DataError for a root that is not a folder, or holds no image."""
    root = Path(root)
    if not root.is_dir():
        found = "this is a file" if root.exists() else "there is no such folder"
        raise DataError(f"{printable(root)}: {found}; {EXPECTED}")
    top = read_folder(str(root))
    if not top.images and not top.folders:
        raise DataError(no_images(root, top.left_out))
    return top


def as_tree(root: Path, top: Folder, layout: str) -> ImageTree:
    """The rows of what read_root found, in that layout. Raises DataError when it has none in it."""
    groups, left_out = read_as(top, layout)
    if not groups:
        raise DataError(f"{printable(root)}: has no image in the layout {layout}/image; {EXPECTED}")
    here = named_after(root)
    domain_names = tuple(sorted({group.domain or here for group in groups}))
    class_names = tuple(sorted({group.class_folder for group in groups}))
    label_of = {name: label for label, name in enumerate(class_names)}
    domain_of = {name: number for number, name in enumerate(domain_names)}
    rows = [len(group.paths) for group in groups]
    paths = [path for group in groups for path in group.paths]
    _check_names(root, paths)
    split = np.repeat(np.array([group.split for group in groups], np.int8), rows)
    return ImageTree(
        root=root,
        domain_names=domain_names,
        class_names=class_names,
        paths=tuple(paths),
        labels=np.repeat(np.array([label_of[g.class_folder] for g in groups], np.int64), rows),
        domains=np.repeat(np.array([domain_of[g.domain or here] for g in groups], np.int64), rows),
        ignored=tuple(sorted(top.left_out + left_out)),
        layout=layout,
        split=split if "split" in layout else None,
    )


def named_after(root: Path) -> str:
    """What a data set without domains calls its one: the folder's name, a file's without suffix."""
    root = root.resolve()
    return (root.stem if root.is_file() else root.name) or "images"


def image_digests(tree: ImageTree, progress: Callable[[int], object] | None = None) -> np.ndarray:
    """Size and sha256 of the content of every row's image, (N, DIGEST_BYTES) uint8.

    Zeros for a file that cannot be read. `progress` is called with the number of files hashed
    since its last call. cache.identity.manifest_sha256 makes one hash of them and the paths.
    Ctrl-C ends it at once, also while files are on a disk that does not answer.
    """
    found = np.zeros((len(tree.paths), DIGEST_BYTES), np.uint8)
    starts = deque(range(0, len(tree.paths), _HASH_ROWS))
    tasks = len(starts)
    done: queue.SimpleQueue[tuple[int, list[bytes] | Exception]] = queue.SimpleQueue()

    def hash_some() -> None:
        while starts:
            with contextlib.suppress(IndexError):  # another thread took the last one
                start = starts.popleft()
                try:
                    done.put((start, _hash_rows(tree, start)))
                except Exception as error:
                    done.put((start, error))

    try:
        _start_threads(hash_some, min(16, 2 * (os.cpu_count() or 1), tasks))
        for _ in range(tasks):
            start, rows = done.get()
            if isinstance(rows, Exception):
                raise rows
            found[start : start + len(rows)] = np.frombuffer(b"".join(rows), np.uint8).reshape(
                -1, DIGEST_BYTES
            )
            if progress:
                progress(len(rows))
    finally:
        starts.clear()
    return found


def _start_threads(work: Callable[[], None], count: int) -> None:
    """Does work in threads that nobody waits for, or here where the system has none for it.

    Reading and hashing release the GIL; more threads than cores keep a slow disk busy. A pool's
    threads are joined when their process ends: one that waits for a dead disk would keep it.
    """
    for started in range(count):
        try:
            threading.Thread(target=work, name="hash", daemon=True).start()
        except RuntimeError:  # no more threads can be started: those there are do it
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


def _hash_rows(tree: ImageTree, start: int) -> list[bytes]:
    rows = []
    for row in range(start, min(start + _HASH_ROWS, len(tree.paths))):
        try:
            rows.append(_digest(tree.file(row)))
        except OSError:
            rows.append(bytes(DIGEST_BYTES))
    return rows


def _digest(place: str) -> bytes:
    content = hashlib.sha256()
    if is_contained(place):
        try:
            data = read_contained(place, _MOST_BYTES)
        except Exception:  # of damaged archives: that image is unreadable, which decoding says
            return bytes(DIGEST_BYTES)
        content.update(data)
        return len(data).to_bytes(8, "little") + content.digest()
    with open(place, "rb", buffering=0) as file:
        while block := file.read(_HASH_BYTES):
            content.update(block)
        return file.tell().to_bytes(8, "little") + content.digest()
