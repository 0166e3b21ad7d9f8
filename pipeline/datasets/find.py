"""The data set a user names: the built-in one, a known one, or a folder."""

import re
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from pipeline.datasets.demo.draw import PICTURES, draw_dataset, picture_counts
from pipeline.datasets.doubts import (
    COPIES_AT_ONCE,
    copies,
    doubts,
    refuse,
    renamed,
    unclear,
)
from pipeline.datasets.image_files import Folder
from pipeline.datasets.known import KNOWN, compare_counts, find_dataset, known_dataset
from pipeline.datasets.layouts import guess
from pipeline.datasets.sources import FILES, read_source
from pipeline.datasets.stated import Stated
from pipeline.datasets.tree import ImageTree, as_tree, image_digests, read_root
from pipeline.datasets.understood import lines
from pipeline.errors import DataError, UnclearLayout
from pipeline.terminal import printable

NOTHING = Stated()
SHOWN = 10  # differences from published counts said one by one; the rest is a number


def dataset_name(dataset: str) -> str:
    """What a cache calls it: the key of a known data set, else the folder's own name.

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
    """The rows of that data set, after saying what was understood of it.

    dataset    "demo", a known name looked for in `root`, or a folder: whatever has a / in it, and
               a word that is no known name but a folder here
    stated     what the user says of layout, class names and oddities
    templates  of prompts, one of which is shown with the name of a class
    draw       whether built-in pictures that are missing are drawn; else the tree is of those that
               would be
    say        takes a few lines, and where a known data set differs from the published one

    Raises DataError when it is not there or has no images, Doubtful where a guess is dangerous and
    not stated.
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
    unlike = compare_counts(tree, name) if known else []
    for line in unlike[:SHOWN]:
        say(f"{printable(folder)} differs from the published {KNOWN[name].title}: {line}")
    if len(unlike) > SHOWN:
        say(f"... and {len(unlike) - SHOWN:,} more counts")
    found = doubts(tree, stated, known)
    everything = found if stated == NOTHING else doubts(tree, NOTHING, known)
    meant = [one for one in everything if one.what not in {doubt.what for doubt in found}]
    for line in lines(tree, templates, meant):
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


def refuse_copies(
    dataset: str,
    tree: ImageTree,
    digests: np.ndarray,
    stated: Stated,
    say: Callable[[str], None],
) -> None:
    """Raises Doubtful when images of equal content lie in several domains, splits or classes.

    Where that is stated as meant it is said, as of known data sets, which are taken as published.
    """
    found = copies(tree, digests)
    if dataset_name(dataset) not in KNOWN and "duplicates" not in stated.accept:
        refuse(tree, found, stated, Folder())
    for one in found:
        say(one.what)


def find_folder(dataset: str, root: Path) -> Path:
    """Where the images of a data set lie, as find_images has it; built-in ones are drawn."""
    if not dataset:  # pathlib takes "" for this folder
        raise DataError("--dataset is empty; name a data set or a folder, or leave it out for demo")
    name, folder = dataset_name(dataset), Path(dataset).expanduser()
    if dataset.lower() == "demo":
        try:
            return draw_dataset(root / "demo")
        except ValueError as error:  # there are pictures that it has not drawn
            raise DataError(str(error)) from error
        except OSError as error:
            if error.filename is None:  # not about a file: too few processes, memory
                raise
            raise DataError(
                f"the built-in data cannot be drawn in {root / 'demo'}: {error.filename}: "
                f"{error.strerror}; free space or permissions, or name another folder with --root"
            ) from error
    is_file = folder.suffix.lower() in FILES and folder.is_file()
    if not _is_path(dataset) and not is_file and (name in KNOWN or not folder.is_dir()):
        return find_dataset(dataset, root)  # it says what there is for a name that is unknown
    return folder


def drawn_tree(folder: Path) -> ImageTree:
    """The rows that the built-in data set has once it is drawn there."""
    counts = picture_counts(PICTURES)
    groups = sorted((domain, thing) for domain, thing in counts)
    made = Folder()
    for domain, thing in groups:
        inner = made.folders.setdefault(domain, Folder()).folders
        inner[thing] = Folder([f"{number:04}.png" for number in range(counts[domain, thing])])
    return as_tree(folder, made, "domain/class")


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
