"""Detect where guessing about a folder of images is risky, and which options settle it."""

import re
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cache.table import SPLITS
from pipeline.datasets.class_names import some, with_names
from pipeline.datasets.image_files import Folder, folders_in
from pipeline.datasets.layouts import guess, split_of
from pipeline.datasets.stated import FOLDER, LAYOUTS, Stated
from pipeline.datasets.tree import ImageTree, as_tree, read_root
from pipeline.errors import DataError, Doubtful, TooDeep, UnclearLayout
from pipeline.terminal import counted, printable

COPIES_AT_ONCE = 20_000  # up to so many images are searched for copies along with other doubts
_SHOWN = 3  # names in a message
_SEPARATE = "if its folders are data sets of their own, name one: {}"
_WNID = re.compile(r"n\d{8}")
_CODE = re.compile(r"(class|cls|label|category|id|c)?[\W_]*\d+", re.IGNORECASE)


class Doubt(NamedTuple):
    """One thing that is risky to guess, in words, and the options that settle it."""

    what: str
    words: tuple[str, ...]  # ("--layout", "domain/class"); () if it is only reported


def renamed(tree: ImageTree, stated: Stated) -> ImageTree:
    """The tree with the class names of the stated file, if any."""
    if stated.class_names in (None, FOLDER):
        return tree
    return with_names(tree, Path(str(stated.class_names)).expanduser())


def doubts(tree: ImageTree, stated: Stated, known: Sequence[str] = ()) -> list[Doubt]:
    """What is risky to guess in a tree and not stated.

    known  classes of a published data set, whose names are intended
    """
    accepted, by_file = stated.accept, stated.class_names
    codes = ("--accept", "codes") if by_file else ("--class-names", FOLDER)
    checks = (  # whether to check, the options that settle it, what is found
        (
            not stated.layout and tree.layout in LAYOUTS,  # lists and tables state their levels
            ("--layout", tree.layout),
            _of_levels(tree, known),
        ),
        (by_file != FOLDER and "codes" not in accepted, codes, _of_codes(tree, known)),
        ("spelling" not in accepted, ("--accept", "spelling"), _of_spelling(tree)),
        ("same-name" not in accepted, ("--accept", "same-name"), _of_one_name(tree)),
    )
    return [Doubt(what, words) for asked, words, found in checks if asked for what in found]


def copies(tree: ImageTree, digests: np.ndarray) -> list[Doubt]:
    """Find images of equal content in several domains, splits or classes.

    digests  (N, DIGEST_BYTES) uint8, as image_digests gives them; empty and unreadable files do
             not count

    Copies between domains or splits put test images into training. Copies between classes do
    not, and images may have several labels: these need no option.
    """
    readable = np.flatnonzero(digests[:, :8].any(axis=1))
    keys = np.ascontiguousarray(digests[readable]).view(f"S{digests.shape[1]}").ravel()
    _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
    alike: dict[int, list[int]] = defaultdict(list)  # rows by group, of groups with several
    for at in np.flatnonzero(counts[group] > 1).tolist():
        alike[int(group[at])].append(int(readable[at]))
    found = []
    for level, values in (("domain", tree.domains), ("split", tree.split), ("class", tree.labels)):
        if values is None:
            continue
        apart = [rows for _, rows in sorted(alike.items()) if len(np.unique(values[rows])) > 1]
        if apart:
            one, *others = apart[0]
            two = next(row for row in others if values[row] != values[one])
            pair = " = ".join(printable(tree.paths[row]) for row in (one, two))
            words = ("--accept", "duplicates") if level != "class" else ()
            count = sum(map(len, apart))
            found.append(Doubt(f"{count:,} images have a copy in another {level} ({pair})", words))
    return found


def refuse(tree: ImageTree, found: Sequence[Doubt], stated: Stated, top: Folder) -> None:
    """Raises Doubtful if there are doubts: how the tree was read, the doubts, what settles them."""
    found = [doubt for doubt in found if doubt.words]
    if not found:
        return
    words, others = _words(found), []
    if any(doubt.words[0] == "--layout" for doubt in found):
        others = [*_other_folders(tree, top), *_other_layouts(tree.root, top, stated, tree.layout)]
    raise Doubtful(
        f"{printable(tree.root)}: read as {brief(tree)}, but {'; '.join(d.what for d in found)}. "
        f"If this is intended, add {words}" + "".join(f"; {other}" for other in others),
        words,
    )


def unclear(root: Path, top: Folder, stated: Stated, error: UnclearLayout) -> DataError:
    """The error for a tree that fits no layout, with what to do about it."""
    inner = _readable_folders(root, top) if isinstance(error, TooDeep) else []
    if len(inner) < len(top.folders):  # the readable ones may be domains of one data set
        ways = _other_layouts(root, top, stated, None)
    elif len(inner) == 1:
        ways = [f"name the folder {inner[0]} instead"]
    else:
        ways = [_SEPARATE.format(some(inner, show=str))]
    return UnclearLayout("; ".join([str(error), *ways]))


def folder_above(tree: ImageTree) -> str | None:
    """The parent folder, quoted for a shell, if this is one domain or split of several.

    That is, if folders beside it hold classes of the same names and the parent can be read.
    """
    root = tree.root.resolve()
    classes = set(map(fold, tree.class_names))
    if (
        tree.layout != "class"
        or root.is_file()
        or not any(
            len(classes & {fold(inner.name) for inner in folders_in(beside)})
            >= max(2, len(classes) / 2)
            for beside in folders_in(root.parent)
            if beside.name != root.name
        )
    ):
        return None
    try:
        above = read_root(root.parent)
        whole = as_tree(root.parent, above, guess(root.parent, above))
    except DataError:
        return None
    if whole.layout == "class" or doubts(whole, Stated()):
        return None
    return shlex.quote(printable(root.parent))


def brief(tree: ImageTree) -> str:
    """Describe a tree in one phrase."""
    counts = [
        f"{len(tree.paths):,} images",
        counted(len(tree.domain_names), "domain"),
        counted(len(tree.class_names), "class", "es"),
    ]
    if tree.split is not None:
        numbers = np.bincount(tree.split, minlength=len(SPLITS)).tolist()
        counts += [f"{n:,} {name}" for name, n in zip(SPLITS, numbers, strict=True) if n]
    if tree.ignored:
        counts.append(f"{len(tree.ignored):,} left out")
    return f"{tree.layout}/image ({', '.join(counts)})"


def fold(name: str) -> str:
    """The common form of names that differ only in spelling.

    Case, Unicode's several forms of a character, white space, "_", "-" and invisible characters
    are removed.
    """
    plain = unicodedata.normalize("NFKC", name).casefold()
    plain = unicodedata.normalize("NFKC", plain)  # casefold may undo it: U+0345
    seen = "".join(c for c in plain if unicodedata.category(c) not in ("Cf", "Cc"))
    return re.sub(r"[\s_\-\u2010-\u2015]+", "", seen)


def _of_levels(tree: ImageTree, known: Sequence[str]) -> Iterator[str]:
    domains, classes = tree.domain_names, tree.class_names
    named = [name for name in domains if split_of(name) is not None]
    if named:
        yield _these("domain", named, "is the name of a split", "are names of splits")
    named = [name for name in classes if split_of(name) is not None]
    if len({split_of(name) for name in named}) > 1 or len(named) == len(classes):
        yield _these("class", named, "could be a split", "could be splits")
    short = [name for name in domains if len(name) == 1]
    if short and "domain" in tree.layout:
        yield _these("domain", short, "is a single character", "are single characters")
    if len(classes) == 1 and classes[0] not in known:
        yield f"there is only one class, {some(classes)}"
    elif len(domains) > 1 and _share_nothing(tree):
        yield "its domains have no class in common, like separate data sets"
    if tree.split is not None and len(np.unique(tree.split)) == 1:
        yield f"all images are in the split {SPLITS[int(tree.split[0])]}"


def _of_codes(tree: ImageTree, known: Sequence[str]) -> Iterator[str]:
    mine = {name for folder, name in tree.renamed.items() if folder != name}
    names = [name for name in tree.class_names if name not in known and name not in mine]
    wnids = [name for name in names if _WNID.fullmatch(name)]
    codes = [
        name
        for name in names
        if name not in wnids and (_CODE.fullmatch(name) or not any(map(str.isalnum, name)))
    ]
    hint = "name them in the file" if tree.renamed else "--class-names FILE names them"
    for found, one, several in (
        (wnids, "is an ImageNet id", "are ImageNet ids"),
        (codes, "is a number or code", "are numbers or codes"),
    ):
        if found:
            yield f"{_these('class', found, one, several)} (CLIP reads class names; {hint})"


def _of_spelling(tree: ImageTree) -> Iterator[str]:
    for what, names in (("class", tree.class_names), ("domain", tree.domain_names)):
        alike = defaultdict(list)
        for name in names:
            alike[fold(name)].append(name)
        several = [group for group in alike.values() if len(group) > 1]
        if several:
            named = [_variants(tree, what, group) for group in several]
            yield f"{what} folders differ only in spelling: " + some(named, show=str, between="; ")


def _variants(tree: ImageTree, what: str, group: Sequence[str]) -> str:
    forms = {unicodedata.normalize("NFC", name) for name in group}
    if len(forms) == 1:
        shown = " and ".join(ascii(name) for name in group)
        text = f"{some(forms)} in {len(group)} Unicode forms ({shown})"
    else:
        text = " and ".join(repr(printable(name)) for name in group[:_SHOWN])
    if what == "class":
        places = [
            set(tree.domains[tree.labels == tree.class_names.index(name)].tolist())
            for name in group
        ]
        if not set.intersection(*places):
            text += " in different domains"
    return text


def _of_one_name(tree: ImageTree) -> Iterator[str]:
    """Class folders that a file gives the same name although they are not spellings of it."""
    folders = defaultdict(list)
    for folder, name in tree.renamed.items():
        folders[name].append(folder)
    several = {n: group for n, group in folders.items() if len(set(map(fold, group))) > 1}
    if several:
        name, group = next(iter(several.items()))
        more = f", and so for {len(several) - 1:,} more names" if len(several) > 1 else ""
        yield f"the class folders {some(group)} are all named {printable(name)!r}{more}"


def _share_nothing(tree: ImageTree) -> bool:
    """Whether every class is in only one domain, ignoring spelling."""
    folded = {
        name: number for number, name in enumerate(dict.fromkeys(map(fold, tree.class_names)))
    }
    label = np.array([folded[fold(name)] for name in tree.class_names])[tree.labels]
    pairs = np.unique(label * len(tree.domain_names) + tree.domains)
    return len(np.unique(label)) == len(pairs)


def _words(found: Sequence[Doubt]) -> str:
    return " ".join(dict.fromkeys(" ".join(doubt.words) for doubt in found))


def _other_layouts(root: Path, top: Folder, stated: Stated, but: str | None) -> list[str]:
    """In words, how the options of other layouts would read the tree.

    Only layouts that give two classes or more and make no split a class or one of several domains.
    Without splits they must not leave out images that the layout `but`, the present one, includes.
    """
    ways = []
    least = 1 if but is None else len(as_tree(root, top, but).paths)
    for layout in LAYOUTS:
        if layout == but or stated.layout:
            continue
        try:
            tree = renamed(as_tree(root, top, layout), stated)
        except DataError:
            continue
        if len(tree.class_names) < 2 or _hides_splits(tree):
            continue
        if len(tree.paths) < least and tree.split is None:
            continue
        more = doubts(tree, Stated(layout, stated.class_names, stated.accept))
        words = _words([Doubt("", ("--layout", layout)), *more])
        ways.append(f"{words} reads it as {brief(tree)} with the classes {some(tree.class_names)}")
    return ways


def _hides_splits(tree: ImageTree) -> bool:
    """Whether folders named as splits would be in classes, or one of several domains."""
    levels = tree.layout.count("/") + 1
    domains = [name for name in tree.domain_names if split_of(name) is not None]
    if domains and len(tree.domain_names) > 1:
        return True
    inside = {part for path in tree.paths for part in path.split("/")[levels - 1 : -1]}
    return any(split_of(part) is not None for part in inside)


def _other_folders(tree: ImageTree, top: Folder) -> list[str]:
    """In words, the parent folder of which this is a part, or folders inside that are data sets."""
    above = folder_above(tree)
    if above:
        return [f"for the whole, name the folder {above} instead"]
    inner = _readable_folders(tree.root, top) if "domain" in tree.layout else []
    if len(inner) < 2:
        return []
    return [_SEPARATE.format(some(inner, show=str))]


def _readable_folders(root: Path, top: Folder) -> list[str]:
    """The folders in a root that could be extracted by name, quoted for a shell."""
    return [
        shlex.quote(printable(root / name))
        for name, folder in top.folders.items()
        if name.isprintable() and not root.is_file() and _would_do(root / name, folder)
    ]


def _would_do(root: Path, top: Folder) -> bool:
    try:
        return not doubts(as_tree(root, top, guess(root, top)), Stated())
    except DataError:
        return False


def _these(noun: str, names: Sequence[str], one: str, several: str) -> str:
    """Join words: "the domain 'a' {one}" or "the domains 'a', 'b' {several}"."""
    if len(names) == 1:
        return f"the {noun} {some(names)} {one}"
    return f"the {noun}{'es' if noun == 'class' else 's'} {some(names)} {several}"
