"""Data sets: a folder of images as rows; where known ones lie, and whether they are whole."""

import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.datasets.counts import DOWNLOADS, KNOWN, Published, plain
from pipeline.datasets.image_files import folders_in
from pipeline.datasets.tree import ImageTree, image_digests, scan
from pipeline.errors import DataError
from pipeline.places import DATA
from pipeline.terminal import printable

__all__ = [
    "KNOWN",
    "DataError",
    "ImageTree",
    "compare_counts",
    "find_dataset",
    "image_digests",
    "known_dataset",
    "scan",
]

_INNER = ("kfold", "images")  # folders that copies of PACS have above their domains
_ENOUGH = 2  # domain folders that make a data set: no two known sets share more than one


def known_dataset(name: str) -> str:
    """The key in KNOWN of a data set under any usual spelling: "Office-Home" -> "office_home".

    Raises DataError with the nearest name.
    """
    for key, known in KNOWN.items():
        if plain(name) in (plain(key), *known.spellings):
            return key
    there = ("demo", *KNOWN)  # the built-in one has no published counts
    near = difflib.get_close_matches(plain(name), [plain(key) for key in there], n=1)
    hint = "".join(f" Did you mean {key}?" for key in there if plain(key) in near)
    raise DataError(
        f"data set {name!r} is not known; there are {', '.join(there)}, or name a folder.{hint}"
    )


def find_dataset(name: str, root: Path) -> Path:
    """The folder with the domains of the known data set `name`: `root` itself or inside it.

    In `root` it may have any usual spelling, and up to two more folders may lie above the domains.
    Two domain folders are enough (compare_counts tells what is missing); of several places at one
    depth, the one with most domains is taken. Raises DataError that names each place looked at.
    """
    key = known_dataset(name)
    known, root = KNOWN[key], Path(root)
    table = _domain_table(known)

    def domains_in(place: Path) -> int:
        return len({table.get(plain(f.name)) for f in folders_in(place)} - {None})

    level = [root] + [f for f in folders_in(root) if plain(f.name) in known.spellings]
    usual = [] if len(level) > 1 else [root / known.title]
    looked: list[Path] = []
    for _ in range(3):
        best = max(level, key=domains_in, default=root)
        if domains_in(best) >= _ENOUGH:
            return best
        looked += level
        level = [f for p in level for f in folders_in(p) if p != root or f.name.lower() in _INNER]
    places = [f"{printable(p)}{'' if p.is_dir() else ' (not there)'}" for p in looked[:8] + usual]
    places += [f"{len(looked) - 8} folders more"] if len(looked) > 8 else []
    get = f"put it at {root / known.title}"
    if key in DOWNLOADS:
        get = f"run ./run.sh download {key}{root_option(root)}"
    raise DataError(
        f"data set {key} was not found: looked for its domain folders "
        f"{', '.join(known.domain_names)} in {', '.join(places)}; "
        f"{get}, or say with --root where it is"
    )


def root_option(root: Path) -> str:
    """What names this root on a command line: "" where it is looked at unasked, or " --root X"."""
    return "" if root.resolve() == DATA else f" --root {shlex.quote(str(root))}"


def compare_counts(tree: ImageTree, dataset: str) -> list[str]:
    """One line for each way in which `tree` differs from the published data set; [] for none.

    Domain and class folders are matched under any usual spelling ("Real World", "Real_World").
    Raises DataError for a data set that is not known.
    """
    known = KNOWN[known_dataset(dataset)]
    found = np.zeros((len(tree.domain_names), len(tree.class_names)), np.int64)
    np.add.at(found, (tree.domains, tree.labels), 1)
    whole = len(tree.paths) in known.totals
    domain_rows, lines = _match(
        tree.domain_names, found.sum(1), _domain_table(known), f"domain of {known.title}"
    )
    class_columns, more = _match(
        tree.class_names,
        found.sum(0),
        {plain(name): name for name in known.class_names},
        f"class of {known.title}",
    )
    lines += more
    for domain in known.domain_names:
        accepted = known.rows[domain]
        if domain not in domain_rows:
            lines.append(f"{domain}: this domain is missing ({accepted[0]:,} images published)")
            continue
        in_domain = found[domain_rows[domain]].sum(0)
        if not known.counts and not whole:
            lines += _difference(domain, in_domain.sum(), accepted)
        for name in known.class_names:
            images = in_domain[class_columns.get(name, [])].sum()
            published = known.counts.get((domain, name))
            if published is not None:
                lines += _difference(f"{domain}/{name}", images, (published,))
            elif not images:
                lines.append(f"{domain}/{name}: this class is missing")
    return lines


def _domain_table(known: Published) -> dict[str, str]:
    return {plain(name): name for name in known.domain_names} | dict(known.aliases)


def _match(
    names: Sequence[str], images: np.ndarray, table: Mapping[str, str], what: str
) -> tuple[dict[str, list[int]], list[str]]:
    """Published name -> indices of the folders with that name; and lines for what is odd."""
    indices: dict[str, list[int]] = {}
    lines = []
    for index, name in enumerate(names):
        published = table.get(plain(name))
        if published is None:
            lines.append(f"{name}: this is not a {what} ({images[index]:,} images)")
        else:
            indices.setdefault(published, []).append(index)
    for published, several in indices.items():
        if len(several) > 1:
            folders = ", ".join(names[i] for i in several)
            lines.append(f"{published}: it has {len(several)} folders, {folders}")
    return indices, lines


def _difference(where: str, images: int, accepted: Sequence[int]) -> list[str]:
    if images in accepted:
        return []
    gap = images - accepted[0]
    how = f"{gap:,} more than" if gap > 0 else f"{-gap:,} short of"
    return [f"{where}: {images:,} images, {how} the {accepted[0]:,} published"]
