"""Walk folders of images; one list of file extensions for extract and predict."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Never

from pipeline.errors import DataError
from pipeline.terminal import printable

# torchvision.datasets.folder.IMG_EXTENSIONS, so that the rows are those of ImageFolder; then other
# names of formats that pipeline/encoder/pixels.py decodes.
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".jfif", ".jpe", ".gif", ".avif", ".jp2", ".j2k", ".jpx", ".pbm", ".pnm", ".apng"),
)
# Common image formats that Pillow does not decode, at least with requirements.txt alone.
NEEDS_CONVERTER = {
    ".heic": "HEIC", ".heif": "HEIF", ".jxl": "JPEG XL", ".tga": "TGA", ".svg": "SVG",
    ".psd": "PSD",
    ".dng": "DNG", ".cr2": "CR2", ".cr3": "CR3", ".nef": "NEF", ".arw": "ARW", ".raf": "RAF",
}  # fmt: skip
DEEPEST = 100  # nested folders; Python's own recursion limit is 1,000
MOST_VISITS = 300  # of one folder, by links; k folders that link to each other have k! paths

_JUNK = {
    "@eadir": "thumbnails of a NAS",
    ".@__thumb": "thumbnails of a NAS",
    **dict.fromkeys(("#recycle", "@recycle", "#snapshot", "~snapshot", "@tmp"), "files of a NAS"),
    "@recently-snapshot": "files of a NAS",
    "__macosx": "files of macOS",
    **dict.fromkeys((".ds_store", ".appledouble", ".trashes", ".fseventsd"), "files of macOS"),
    **dict.fromkeys(("thumbs.db", "ehthumbs.db", "desktop.ini"), "files of Windows"),
    **dict.fromkeys(("$recycle.bin", "system volume information"), "files of Windows"),
    "lost+found": "lost+found",
    **dict.fromkeys((".git", ".svn", ".hg"), "version control"),
    ".ipynb_checkpoints": "Jupyter checkpoints",
}


@dataclass(frozen=True)
class Folder:
    """The content of a folder and all folders in it; names are sorted."""

    images: list[str] = field(default_factory=list)
    folders: dict[str, "Folder"] = field(default_factory=dict)  # with an image somewhere below
    left_out: list[str] = field(default_factory=list)  # relative to the root; folders end in "/"


def refuse(path: str, why: str) -> Never:
    """Raises DataError for a folder that cannot be read."""
    raise DataError(f"{printable(path)}: this folder cannot be listed: {why}")


def read_folder(path: str, cannot: Callable[[str, str], None] = refuse) -> Folder:
    """Everything below `path`; links are followed, except back to a folder above.

    A dead link counts as an image if it is named like one. Left out: hidden
    names and those of _JUNK, files that are not images, pipes and devices, folders without images.

    cannot  is called with the path of an unlistable folder, which counts as empty, and the reason
    """
    return _read(path, "", (), Counter(), cannot)


def images_below(folder: Folder, prefix: str) -> list[str]:
    """Every image below `folder` in the order of sorted(os.walk()); paths with "/"."""
    walk, todo = [], [(prefix, folder)]
    while todo:
        path, inner = todo.pop()
        walk.append((path, inner.images))
        todo += [(f"{path}/{name}", f) for name, f in inner.folders.items()]
    walk.sort(key=lambda step: step[0])
    return [f"{path}/{name}" for path, images in walk for name in images]


def count_images(folder: Folder) -> int:
    """The number of images below `folder`."""
    return len(folder.images) + sum(map(count_images, folder.folders.values()))


def folders_in(path: Path) -> list[Path]:
    """The folders in `path`, sorted, without hidden ones; [] if it cannot be listed."""
    try:
        with os.scandir(path) as entries:
            names = [e.name for e in entries if e.name[0] not in "._" and e.is_dir()]
    except OSError:
        return []
    return [Path(path, name) for name in sorted(names)]


def kind_of(left_out: str) -> str:
    """The kind of a path of Folder.left_out in words: "thumbnails of a NAS", "HEIC images", ..."""
    name = PurePosixPath(left_out).name.lower()
    if name in _JUNK:
        return _JUNK[name]
    if name.startswith("."):
        return "files of macOS" if name.startswith("._") else "hidden"
    if left_out.endswith("/"):
        return "folders without images"
    suffix = PurePosixPath(name).suffix
    if suffix in NEEDS_CONVERTER:
        return f"{NEEDS_CONVERTER[suffix]} images"
    return "in no class folder" if suffix in IMAGE_EXTENSIONS else "not images"


def converter(path: str) -> str | None:
    """What to do about an image that Pillow cannot decode; None for other files."""
    name = PurePosixPath(path)
    kind = NEEDS_CONVERTER.get(name.suffix.lower())
    if path.endswith("/") or name.name.startswith("."):
        return None
    return kind and f"{kind} needs a converter: save it as JPEG or PNG"


def _read(
    path: str,
    relative: str,
    above: tuple[tuple[int, int], ...],
    visits: Counter[tuple[int, int]],
    cannot: Callable[[str, str], None],
) -> Folder:
    try:
        status = os.stat(path)
        with os.scandir(path) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        cannot(path, error.strerror or str(error))
        return Folder()
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link back to a folder above would repeat the same images forever
        return Folder()
    visits[here] += 1
    if visits[here] > MOST_VISITS:
        if visits[here] == MOST_VISITS + 1:  # report it once
            cannot(path, "links lead to it in circles")
        return Folder()
    if len(above) >= DEEPEST:
        cannot(path, f"more than {DEEPEST} folders deep")
        return Folder()
    images: list[str] = []
    folders: dict[str, Folder] = {}
    left_out: list[str] = []
    for entry in entries:
        name, is_folder = entry.name, _holds(entry.is_dir)
        if name.startswith(".") or (is_folder and name.lower() in _JUNK):
            left_out.append(f"{relative}{name}{'/' if is_folder else ''}")
        elif is_folder:
            folder = _read(entry.path, f"{relative}{name}/", (*above, here), visits, cannot)
            if folder.images or folder.folders:
                folders[name] = folder
                left_out += folder.left_out
            else:
                # Files that need a converter are reported even if a folder has nothing else.
                left_out += [p for p in folder.left_out if converter(p)] or [f"{relative}{name}/"]
        # A pipe or device named like an image would block its reader; a dead link does not.
        elif name.lower().endswith(IMAGE_EXTENSIONS) and (
            _holds(entry.is_file) or not os.path.exists(entry.path)
        ):
            images.append(name)
        else:
            left_out.append(f"{relative}{name}")
    return Folder(images, folders, left_out)


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # as for a link to itself
        return False
