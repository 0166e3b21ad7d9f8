"""Find the data set that a user names: the built-in one, a known one, or a folder."""

import re
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from pipeline.datasets.archives import read_parquets, read_tars, read_zip
from pipeline.datasets.counts import KNOWN
from pipeline.datasets.demo.draw import PICTURES, draw_dataset, picture_counts
from pipeline.datasets.doubts import COPIES_AT_ONCE, copies, doubts, refuse, renamed, unclear
from pipeline.datasets.image_files import Folder, read_folder
from pipeline.datasets.known import compare_counts, find_dataset, known_dataset
from pipeline.datasets.layouts import guess
from pipeline.datasets.lists import SUFFIXES, read_list
from pipeline.datasets.stated import Stated
from pipeline.datasets.tree import ImageTree, as_tree, image_digests, read_root
from pipeline.datasets.understood import lines
from pipeline.errors import DataError, UnclearLayout
from pipeline.terminal import printable

FILES = (*SUFFIXES, ".zip", ".parquet", ".tar")
"""Suffixes of files that can be a data set."""
NOTHING = Stated()
SHOWN = 10  # differences from published counts listed one by one; the rest is a number


def dataset_name(dataset: str) -> str:
    """Its name in a cache: the key of a known data set, else the folder's own name.

    dataset  "demo", a known name in any usual spelling, or a folder
    """
    path = Path(dataset).expanduser().resolve()
    is_file = path.suffix.lower() in FILES
    name = (path.stem if is_file else path.name) if _is_path(dataset) or is_file else dataset
    try:
        return known_dataset(name)
    except DataError:
        return name.lower() if name.lower() == "demo" else name


def find_images(
    dataset: str,
    root: str | PathLike[str],
    say: Callable[[str], None],
    *,
    stated: Stated = NOTHING,
    templates: Sequence[str] = (),
    draw: bool = True,
) -> ImageTree:
    """The rows of that data set, after reporting how it was read.

    dataset    "demo", a known name to find in `root`, or a folder: anything with a / in it, and
               a word that is not a known name but a folder here
    stated     what the user states about layout, class names and oddities
    templates  of prompts, the first of which is shown with a class name
    draw       whether to draw missing built-in pictures; False: the tree that drawing would
               give
    say        is called with a few lines, and with differences from a published data set

    Raises DataError when it is missing or has no images, Doubtful when a guess would be risky and
    nothing is stated.
    """
    root = Path(root)
    if not draw and dataset.lower() == "demo":
        tree = drawn_tree(root / "demo")
        for line in lines(tree, templates):
            say(line)
        return tree
    folder, name = find_folder(dataset, root), dataset_name(dataset)
    known = KNOWN[name].class_names if name in KNOWN else ()
    tree, top = _rows(folder, stated, say)
    tree = renamed(tree, stated)
    _refuse_unprintable(tree)
    differences = compare_counts(tree, name) if known else []
    for line in differences[:SHOWN]:
        say(f"{printable(folder)} differs from the published {KNOWN[name].title}: {line}")
    if len(differences) > SHOWN:
        say(f"... and {len(differences) - SHOWN:,} more counts")
    found = doubts(tree, stated, known)
    everything = found if stated == NOTHING else doubts(tree, NOTHING, known)
    accepted = [one for one in everything if one.what not in {doubt.what for doubt in found}]
    for line in lines(tree, templates, accepted):
        say(line)
    if found and not known and len(tree.paths) <= COPIES_AT_ONCE:
        found += [] if "duplicates" in stated.accept else copies(tree, image_digests(tree))
    refuse(tree, found, stated, top)
    return tree


def _rows(folder: Path, stated: Stated, say: Callable[[str], None]) -> tuple[ImageTree, Folder]:
    found = read_source(folder, say, stated.layout) if folder.exists() else None
    if found:
        return found
    top = read_root(folder)
    try:
        return as_tree(folder, top, stated.layout or guess(folder, top)), top
    except UnclearLayout as error:
        raise unclear(folder, top, stated, error) from error


def read_source(
    root: Path, say: Callable[[str], None], layout: str | None = None
) -> tuple[ImageTree, Folder] | None:
    """The rows of a file of FILES, or of a folder of parquet or tar files; None for other folders.

    returns  the rows; and of a zip what read_folder would find, else an empty Folder
    Raises DataError as the readers do, UnclearLayout for a zip that fits no layout.
    """
    if root.is_file():
        suffix = root.suffix.lower()
        if suffix == ".zip":
            return read_zip(root, layout)
        if suffix in SUFFIXES:
            return read_list(root, say, layout), Folder()
        if suffix == ".parquet":
            return read_parquets(root, [root], say), Folder()
        if suffix == ".tar":
            return read_tars(root, [root], say), Folder()
        raise DataError(
            f"{printable(root)}: this is a file; supported files are {', '.join(FILES)}, or name a "
            "folder"
        )
    for pattern, read in (("*.parquet", read_parquets), ("*.tar", read_tars)):
        files = sorted((*root.glob(pattern), *root.glob(f"data/{pattern}")))
        if files and not _has_images(root):
            return read(root, files, say), Folder()
    return None


def refuse_copies(
    dataset: str, tree: ImageTree, digests: np.ndarray, stated: Stated, say: Callable[[str], None]
) -> None:
    """Raises Doubtful when images of equal content are in several domains, splits or classes.

    If accepted, and for known data sets, which are used as published, it is only reported.
    """
    found = copies(tree, digests)
    if dataset_name(dataset) not in KNOWN and "duplicates" not in stated.accept:
        refuse(tree, found, stated, Folder())
    for one in found:
        say(one.what)


def find_folder(dataset: str, root: Path) -> Path:
    """The folder of a data set's images, as in find_images; built-in ones are drawn."""
    if not dataset:  # for pathlib "" is the current folder
        raise DataError("--dataset is empty; name a data set or a folder, or leave it out for demo")
    name, folder = dataset_name(dataset), Path(dataset).expanduser()
    if dataset.lower() == "demo":
        try:
            return draw_dataset(root / "demo")
        except ValueError as error:  # there are pictures it did not draw
            raise DataError(str(error)) from error
        except OSError as error:
            if error.filename is None:  # not about a file, such as a lack of processes or memory
                raise
            raise DataError(
                f"the built-in data cannot be drawn in {root / 'demo'}: {error.filename}: "
                f"{error.strerror}; check space and permissions, or name another folder with --root"
            ) from error
    is_file = folder.suffix.lower() in FILES and folder.is_file()
    if not _is_path(dataset) and not is_file and (name in KNOWN or not folder.is_dir()):
        return find_dataset(dataset, root)  # reports the known names for an unknown one
    return folder


def drawn_tree(folder: Path) -> ImageTree:
    """The rows that the built-in data set will have once it is drawn there."""
    counts = picture_counts(PICTURES)
    groups = sorted((domain, thing) for domain, thing in counts)
    made = Folder()
    for domain, thing in groups:
        inner = made.folders.setdefault(domain, Folder()).folders
        inner[thing] = Folder([f"{number:04}.png" for number in range(counts[domain, thing])])
    return as_tree(folder, made, "domain/class")


def _has_images(root: Path) -> bool:
    top = read_folder(str(root), cannot=lambda path, why: None)
    return bool(top.images or top.folders)


def _refuse_unprintable(tree: ImageTree) -> None:
    for what, names, way in (
        ("domain", tree.domain_names, "rename it"),
        ("class", tree.class_names, "rename it, or name it in a file with --class-names FILE"),
    ):
        for name in names:
            if not name.isprintable():
                raise DataError(
                    f"{printable(tree.root)}: the {what} folder {printable(name)!r} has characters "
                    f"in its name that cannot be shown; {way}"
                )


def _is_path(dataset: str) -> bool:
    return bool(re.search(r"[/\\]", dataset)) or dataset.startswith((".", "~"))
