"""Known data sets: finding their folders, and comparing them with the published counts."""

import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.datasets.counts import DOWNLOADS, KNOWN, Published, plain
from pipeline.datasets.image_files import folders_in
from pipeline.datasets.tree import ImageTree
from pipeline.errors import DataError
from pipeline.places import DATA
from pipeline.terminal import printable

_INNER = ("kfold", "images")  # folders above the domains in copies of PACS
_ENOUGH = 2  # domain folders that identify a data set: no two known ones share more than one


def known_dataset(name: str) -> str:
    """The key in KNOWN of a data set in any usual spelling: "Office-Home" -> "office_home".

    Raises DataError with the nearest name.
    """
    for key, known in KNOWN.items():
        if plain(name) in (plain(key), *known.spellings):
            return key
    there = ("demo", *KNOWN)
    near = difflib.get_close_matches(plain(name), [plain(key) for key in there], n=1)
    hint = "".join(f" Did you mean {key}?" for key in there if plain(key) in near)
    raise DataError(
        f"unknown data set {name!r}; choose from {', '.join(there)}, or name a folder.{hint}"
    )


def find_dataset(name: str, root: Path) -> Path:
    """The folder with the domains of the known data set `name`: `root` itself or one inside it.

    In `root` it may have any usual spelling, and the domains may be up to two folders deeper.
    Two domain folders suffice (compare_counts reports missing ones); of several places at the same
    depth, the one with most domains is used. Raises DataError naming each place searched.
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
    places = [f"{printable(p)}{'' if p.is_dir() else ' (missing)'}" for p in looked[:8] + usual]
    places += [f"{len(looked) - 8} more folders"] if len(looked) > 8 else []
    get = f"put it at {root / known.title}"
    if key in DOWNLOADS:
        get = f"run ./run.sh download {key}{root_option(root)}"
    raise DataError(
        f"data set {key} was not found: looked for its domain folders "
        f"{', '.join(known.domain_names)} in {', '.join(places)}; "
        f"{get}, or pass its folder with --root"
    )


def root_option(root: Path) -> str:
    """The option that names this root on a command line: " --root X", or "" for the default."""
    return "" if root.resolve() == DATA else f" --root {shlex.quote(str(root))}"


def compare_counts(tree: ImageTree, dataset: str) -> list[str]:
    """One line for each difference between `tree` and the published data set; [] for none.

    Domain and class folders are matched in any usual spelling ("Real World", "Real_World").
    Raises DataError for an unknown data set.
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
    """Published name -> indices of the folders with that name; and lines about the others."""
    indices: dict[str, list[int]] = {}
    lines = []
    for index, name in enumerate(names):
        published = table.get(plain(name))
        if published is None:
            lines.append(f"{name}: not a {what} ({images[index]:,} images)")
        else:
            indices.setdefault(published, []).append(index)
    for published, several in indices.items():
        if len(several) > 1:
            folders = ", ".join(names[i] for i in several)
            lines.append(f"{published}: has {len(several)} folders, {folders}")
    return indices, lines


def _difference(where: str, images: int, accepted: Sequence[int]) -> list[str]:
    if images in accepted:
        return []
    gap = images - accepted[0]
    how = f"{gap:,} more than" if gap > 0 else f"{-gap:,} short of"
    return [f"{where}: {images:,} images, {how} the {accepted[0]:,} published"]
