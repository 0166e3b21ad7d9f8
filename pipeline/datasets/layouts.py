"""What the levels of an image folder mean, stated or guessed: domains, splits, classes."""

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from cache.table import SPLITS
from pipeline.datasets.image_files import Folder, converter, count_images, images_below
from pipeline.errors import DataError, TooDeep, UnclearLayout
from pipeline.terminal import printable

EXPECTED = (
    "expected FOLDER/domain/class/image, or FOLDER/class/image for one domain; either may have "
    "train, val and test folders above or below its domains"
)
# In trees of ImageFolder and TensorFlow, Dassl's VLCS ("crossval"), Kaggle ("training_set").
_PACKED = (".zip", ".csv", ".tsv", ".json")
_SPLIT_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev", "devel", "crossval", "crossvalidation", "eval"),
    "test": ("test", "testing", "tst"),
}
_SPLIT_OF = {word: SPLITS.index(split) for split, words in _SPLIT_NAMES.items() for word in words}
_BESIDE = re.compile(r"(set|data|split|images?|imgs?)$")


class Group(NamedTuple):
    """The images of one class folder; as a tuple it sorts like the rows."""

    domain: str  # "" if no level is the domain
    split: int  # position in SPLITS; 0 if no level is the split
    class_folder: str
    paths: list[str]  # relative to the root


def split_of(name: str) -> int | None:
    """The position in SPLITS that a folder's name means ("Train", "test_set", "val2017"), or None.

    Case, digits, separators and a final "set", "data" or "images" are ignored.
    """
    word = re.sub(r"[\W_\d]+", "", unicodedata.normalize("NFKC", name).casefold())
    return _SPLIT_OF.get(word, _SPLIT_OF.get(_BESIDE.sub("", word)))


def read_as(top: Folder, layout: str) -> tuple[list[Group], list[str]]:
    """The class folders of a tree in a layout, and what does not fit it.

    returns  the groups, sorted; paths of images above the class folders, and of folders (with "/")
             that should name a split but do not
    """
    left_out: list[str] = []

    def below(
        folder: Folder, levels: list[str], prefix: str, domain: str, split: int
    ) -> Iterator[Group]:
        left_out.extend(prefix + image for image in folder.images)
        for name, inner in folder.folders.items():
            path = prefix + name
            if levels[0] == "class":
                yield Group(domain, split, name, images_below(inner, path))
            elif levels[0] == "domain":
                yield from below(inner, levels[1:], f"{path}/", name, split)
            elif (named := split_of(name)) is None:
                left_out.append(f"{path}/")
            else:
                yield from below(inner, levels[1:], f"{path}/", domain, named)

    return sorted(below(top, layout.split("/"), "", "", 0)), left_out


def guess(root: object, top: Folder) -> str:
    """Guess the layout of a tree from its shape; it fits every image.

    If all folders of a level name splits, it is the split. Raises DataError without class folders,
    UnclearLayout for images at several depths and for more levels than LAYOUTS have.
    """
    if not top.folders:
        what = f"its {len(top.images):,} images lie directly in it" if top.images else "no image"
        raise DataError(f"{printable(root)}: {what}{'' if top.images else ' in it'}; {EXPECTED}")
    shape = _shape(top)
    if shape == "classes":
        return "class"
    if shape == "mixed":
        flat = next(name for name, f in top.folders.items() if f.images)
        deep = next(name for name, f in top.folders.items() if f.folders)
        raise _two_depths(
            root, _first(top.folders[flat], flat, True), _first(top.folders[deep], deep)
        )
    by_first = [split_of(name) is not None for name in top.folders]
    second = [(f"{a}/{b}", f) for a, one in top.folders.items() for b, f in one.folders.items()]
    by_second = [split_of(path.split("/", 1)[1]) is not None for path, _ in second]
    if any(f.images for _, f in second):
        for (path, f), named in zip(second, by_second, strict=True):
            if named and not f.images:  # one domain has splits, another has not
                flat, one = next((p, f) for p, f in second if f.images)
                raise _two_depths(root, _first(one, flat, True), _first(f, path))
        return "split/class" if all(by_first) else "domain/class"
    if any(f.images for _, one in second for f in one.folders.values()):
        if all(by_first) and not all(by_second):
            return "split/domain/class"
        if all(by_second) and not any(by_first):
            return "domain/split/class"
    name, folder = next(iter(top.folders.items()))
    raise TooDeep(
        f"{printable(root)}: images lie too deep, as {printable(_first(folder, name))}; {EXPECTED}"
    )


def no_images(root: object, left_out: list[str]) -> str:
    """The error for a folder without images: what it has instead."""
    needy = [path for path in left_out if converter(path)]
    if not needy:
        packed = next((path for path in left_out if path.lower().endswith(_PACKED)), None)
        hint = f"; {printable(packed)} in it may be the data set: name that file" if packed else ""
        return f"{printable(root)}: no image in it{hint}; {EXPECTED}"
    return (
        f"{printable(root)}: no image in it that can be decoded; {len(needy):,} as "
        f"{printable(needy[0])}: {converter(needy[0])}"
    )


def _two_depths(root: object, one: str, other: str) -> UnclearLayout:
    return UnclearLayout(
        f"{printable(root)}: images lie at two depths, as {printable(one)} and as "
        f"{printable(other)}; {EXPECTED}"
    )


def _shape(folder: Folder) -> str:
    """Whether the folders in `folder` are "classes", "deeper" (above classes) or "mixed"."""
    inner = folder.folders.values()
    flat = any(not f.folders for f in inner)
    hollow = any(not f.images for f in inner)
    more_below = [len(f.images) < count_images(f) - len(f.images) for f in inner]
    if not hollow and (flat or not any(more_below)):
        return "classes"
    return "deeper" if not flat and all(more_below) else "mixed"


def _first(folder: Folder, prefix: str, here: bool = False) -> str:
    if folder.images and (here or not folder.folders):
        return f"{prefix}/{folder.images[0]}"
    name, inner = next(iter(folder.folders.items()))
    return _first(inner, f"{prefix}/{name}")
