"""A folder of images as rows (path, label, domain) in a fixed order, and its content's hash."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.identity import DIGEST_BYTES

# torchvision.datasets.folder.IMG_EXTENSIONS, so that the rows are the ones ImageFolder finds.
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_LAYOUT = "expected FOLDER/domain/class/image, or FOLDER/class/image for one domain"
_JUNK = ("__macosx", "$recycle.bin", "system volume information")
# hashlib.file_digest clears as large a buffer for each file: 0.7, not 1.1 GB/s on 20 KB files.
_HASH_BYTES = 1 << 18
_HASH_ROWS = 64  # rows a task: tasks of one row cost more than reading a small image


class DataError(Exception):
    """A folder of images or a download that is not what was asked for."""

    exit_code = 6


@dataclass(frozen=True)
class ImageTree:
    """The images of a folder: domain after domain, class after class."""

    root: Path
    domain_names: tuple[str, ...]  # raw folder names in Python's string order
    class_names: tuple[str, ...]  # the same, over all domains
    paths: tuple[str, ...]  # (N,) relative to root, separated by "/"
    labels: np.ndarray  # (N,) int64
    domains: np.ndarray  # (N,) int64
    ignored: tuple[str, ...]  # stray files, and folders without an image ("/" last)


@dataclass(frozen=True)
class _Folder:
    images: list[str]  # names, sorted
    folders: dict[str, "_Folder"]  # by name, sorted; only those with an image somewhere below
    strays: list[str]  # relative to root, from here downwards


def scan(root: Path) -> ImageTree:
    """The images under `root`, a tree domain/class/image or, as one domain, class/image.

    Inside a domain the order is torchvision's ImageFolder's: classes by name, in a class folders
    by path, in a folder files by name; "/" separates on every system. A class that some domain
    lacks is no error, and a link that leads nowhere is a row like another. Left out and listed in
    `ignored`: names that begin with a dot, files that are no images, folders without images,
    images above the class folders.

    Raises DataError for a root that is no folder, a tree without images, and images at depths
    that fit neither layout.
    """
    root = Path(root)
    if not root.is_dir():
        found = "this is a file" if root.exists() else "there is no such folder"
        raise DataError(f"{root}: {found}; {_LAYOUT}")
    top = _read(str(root), "", frozenset())
    strays = top.strays + top.images
    if _is_one_domain(root, top):
        domains = {root.resolve().name or "images": ("", top.folders)}
    else:
        domains = {name: (f"{name}/", folder.folders) for name, folder in top.folders.items()}
        strays += [f"{name}/{image}" for name, f in top.folders.items() for image in f.images]
    class_names = tuple(sorted({name for _, classes in domains.values() for name in classes}))
    label_of = {name: label for label, name in enumerate(class_names)}
    paths: list[str] = []
    labels: list[int] = []
    rows: list[int] = []
    for prefix, classes in domains.values():
        before = len(paths)
        for name, folder in classes.items():
            paths += _in_order(folder, prefix + name)
            labels += [label_of[name]] * (len(paths) - len(labels))
        rows.append(len(paths) - before)
    _check_names(root, paths)
    return ImageTree(
        root=root,
        domain_names=tuple(domains),
        class_names=class_names,
        paths=tuple(paths),
        labels=np.array(labels, np.int64),
        domains=np.repeat(np.arange(len(rows), dtype=np.int64), rows),
        ignored=tuple(sorted(strays)),
    )


def image_digests(tree: ImageTree, progress: Callable[[int], object] | None = None) -> np.ndarray:
    """Size and sha256 of the content of every row's image, (N, DIGEST_BYTES) uint8.

    Zeros for a file that cannot be read. `progress` is called with the number of files hashed
    since its last call. cache.identity.manifest_sha256 makes one hash of them and the paths.
    """
    rows: list[bytes] = []
    starts = range(0, len(tree.paths), _HASH_ROWS)
    # Reading and hashing release the GIL; more threads than cores keep a slow disk busy.
    with ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        for some in pool.map(lambda start: _hash_rows(tree, start), starts):
            rows += some
            if progress:
                progress(len(some))
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, DIGEST_BYTES)


def _read(path: str, relative: str, above: frozenset[tuple[int, int]]) -> _Folder:
    try:
        status = os.stat(path)
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{path}: this folder cannot be listed: {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link back to a folder above: the same images without end
        return _Folder([], {}, [])
    images, folders, strays = [], {}, []
    for entry in entries:
        name, is_folder = entry.name, _holds(entry.is_dir)
        if name.startswith(".") or name.lower() in _JUNK:
            strays.append(f"{relative}{name}{'/' if is_folder else ''}")
        elif is_folder:
            folder = _read(entry.path, f"{relative}{name}/", above | {here})
            if folder.images or folder.folders:
                folders[name] = folder
                strays += folder.strays
            else:
                strays.append(f"{relative}{name}/")
        # A pipe or a device named like an image would block its reader; a dead link does not.
        elif name.lower().endswith(IMAGE_EXTENSIONS) and (
            _holds(entry.is_file) or not os.path.exists(entry.path)
        ):
            images.append(name)
        else:
            strays.append(f"{relative}{name}")
    return _Folder(images, folders, strays)


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself
        return False


def _below(folder: _Folder) -> int:
    return sum(len(inner.images) + _below(inner) for inner in folder.folders.values())


def _is_one_domain(root: Path, top: _Folder) -> bool:
    """Whether the folders in `root` are classes; True and False both leave no image in doubt."""
    if not top.folders:
        what = (
            f"its {len(top.images)} images lie directly in it" if top.images else "no image in it"
        )
        raise DataError(f"{root}: {what}; {_LAYOUT}")
    flat = [name for name, f in top.folders.items() if not f.folders]
    hollow = [name for name, f in top.folders.items() if not f.images]
    more_below = [len(f.images) < _below(f) for f in top.folders.values()]
    if not hollow and (flat or not any(more_below)):
        return True
    if flat or not all(more_below):
        classes = next(name for name, f in top.folders.items() if f.images)
        domains = next(name for name, f in top.folders.items() if f.folders)
        raise DataError(
            f"{root}: images lie at two depths, as {_first(top.folders[classes], classes, True)} "
            f"and as {_first(top.folders[domains], domains)}; {_LAYOUT}"
        )
    if not any(f.images for domain in top.folders.values() for f in domain.folders.values()):
        name, folder = next(iter(top.folders.items()))
        raise DataError(
            f"{root}: images lie too deep, as {_first(folder, name)}; {_LAYOUT}; "
            f"should it be {root / name}?"
        )
    return False


def _first(folder: _Folder, prefix: str, here: bool = False) -> str:
    if folder.images and (here or not folder.folders):
        return f"{prefix}/{folder.images[0]}"
    name, inner = next(iter(folder.folders.items()))
    return _first(inner, f"{prefix}/{name}")


def _in_order(folder: _Folder, prefix: str) -> list[str]:
    """Every image from `folder` downwards, as sorted(os.walk()) has them."""
    walk, todo = [], [(prefix, folder)]
    while todo:
        path, inner = todo.pop()
        walk.append((path, inner.images))
        todo += [(f"{path}/{name}", f) for name, f in inner.folders.items()]
    walk.sort(key=lambda step: step[0])
    return [f"{path}/{name}" for path, images in walk for name in images]


def _check_names(root: Path, paths: list[str]) -> None:
    try:
        "".join(paths).encode()
    except UnicodeEncodeError:
        bad = next(path for path in paths if path.encode(errors="replace").decode() != path)
        raise DataError(f"{root}: the name {ascii(bad)} is not UTF-8; rename it") from None


def _hash_rows(tree: ImageTree, start: int) -> list[bytes]:
    rows = []
    for path in tree.paths[start : start + _HASH_ROWS]:
        try:
            with open(os.path.join(tree.root, path), "rb", buffering=0) as file:
                content = hashlib.sha256()
                while block := file.read(_HASH_BYTES):
                    content.update(block)
                rows.append(file.tell().to_bytes(8, "little") + content.digest())
        except OSError:
            rows.append(bytes(DIGEST_BYTES))
    return rows
