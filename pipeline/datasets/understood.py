"""What extract understood of a folder of images, in a few lines for people, or as JSON."""

import re
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cache.table import SPLITS
from pipeline.datasets.class_names import some
from pipeline.datasets.doubts import Doubt, brief, folder_above
from pipeline.datasets.image_files import converter, kind_of
from pipeline.datasets.tree import ImageTree
from pipeline.terminal import printable

# Caltech-101's BACKGROUND_Google, Caltech-256's 257.clutter.
_CLUTTER = re.compile(r"(\d+[._ ])?(background(_google)?|clutter)", re.IGNORECASE)
_SHOWN = 8  # domains, classes and kinds named one by one; the rest is a count


def lines(tree: ImageTree, templates: Sequence[str], accepted: Sequence[Doubt] = ()) -> list[str]:
    """At most a dozen lines, whatever the number of domains and classes.

    accepted  what was dangerous to guess and has been stated
    """
    facts = as_json(tree)
    told = [f"{printable(tree.root)}: read as {brief(tree)}"]
    domains = [
        f"{printable(name)!r} {one['images']:,} of {one['classes']:,} "
        f"{'class' if one['classes'] == 1 else 'classes'}" + _of_splits(one.get("split"))
        for name, one in facts["domains"].items()
    ]
    told.append(f"images by domain: {_some(domains, 'domain', 'domains', facts['domains'])}")
    classes = [f"{printable(name)!r} {one['images']:,}" for name, one in facts["classes"].items()]
    told.append(f"images by class: {_some(classes, 'class', 'classes', facts['classes'])}")
    if tree.renamed:
        pairs = [f"{f} = {n}" for f, n in tree.renamed.items() if f != n]
        told.append(f"{len(pairs):,} class folders were given names: {some(pairs)}")
    told += _something_else(tree)
    if tree.split is not None:
        trained = np.unique(tree.labels[tree.split == 0])
        lost = [name for c, name in enumerate(tree.class_names) if c not in trained]
        if lost:
            told.append(f"classes without an image in train: {some(lost)}")
    if templates:
        first = templates[0].replace("{}", printable(tree.class_names[0]))
        more = "" if len(templates) == 1 else f", the first of {len(templates):,} for each class"
        told.append(f'prompt: "{first}"{more}')
    told += [f"accepted: {doubt.what}" for doubt in accepted]
    if tree.ignored:
        told.append(f"left out: {_left_out(tree.ignored)}")
    above = folder_above(tree)
    if above:
        told.append(f"folders beside it hold the same classes; for all of them name {above}")
    return told


def _something_else(tree: ImageTree) -> list[str]:
    """What is plainly not what its level makes of it."""
    told = []
    clutter = [name for name in tree.class_names if _CLUTTER.fullmatch(name)]
    if clutter:
        told.append(
            f"the class {printable(clutter[0])!r} holds images of no class, to judge by its name; "
            "move it out of the folder unless it is to be answered"
        )
    if "domain" in tree.layout and len(tree.domain_names) == 1 and tree.places is None:
        only = tree.domain_names[0]
        told.append(
            f"all classes lie in the one folder {printable(only)!r}, which is taken as a domain; "
            f"if it is the data set itself, name {shlex.quote(printable(tree.root / only))}"
        )
    return told


def as_json(tree: ImageTree) -> dict[str, Any]:
    """The same as one JSON-able object, everything in it."""
    counts = np.zeros((len(tree.domain_names), len(tree.class_names)), np.int64)
    np.add.at(counts, (tree.domains, tree.labels), 1)
    found: dict[str, Any] = {
        "folder": str(tree.root),
        "layout": tree.layout,
        "images": len(tree.paths),
        "domains": {
            name: {"images": int(row.sum()), "classes": int((row > 0).sum())}
            for name, row in zip(tree.domain_names, counts, strict=True)
        },
        "classes": {
            name: {"images": int(column.sum()), "domains": int((column > 0).sum())}
            for name, column in zip(tree.class_names, counts.T, strict=True)
        },
        "left_out": dict(Counter(map(kind_of, tree.ignored))),
    }
    if tree.split is not None:
        for domain, name in enumerate(tree.domain_names):
            numbers = np.bincount(tree.split[tree.domains == domain], minlength=len(SPLITS))
            found["domains"][name]["split"] = dict(zip(SPLITS, numbers.tolist(), strict=True))
    return found


def _of_splits(numbers: dict[str, int] | None) -> str:
    if numbers is None:
        return ""
    return f" ({', '.join(f'{number:,} {name}' for name, number in numbers.items() if number)})"


def _some(shown: Sequence[str], one: str, what: str, counts: dict[str, Any]) -> str:
    text = ", ".join(shown[:_SHOWN])
    rest = [one["images"] for one in list(counts.values())[_SHOWN:]]
    if not rest:
        return text
    each = (
        f"{min(rest):,} each" if min(rest) == max(rest) else f"{min(rest):,} to {max(rest):,} each"
    )
    return f"{text} and {len(rest):,} more {what if len(rest) > 1 else one} ({each})"


def _left_out(paths: Sequence[str]) -> str:
    kinds: dict[str, list[str]] = {}
    for path in paths:
        kinds.setdefault(kind_of(path), []).append(path)
    # What was meant as images first: whoever misses some finds them there.
    ordered = sorted(kinds.items(), key=lambda kind: not converter(kind[1][0]))
    told = []
    for kind, some_of in ordered[:_SHOWN]:
        needs = converter(some_of[0])
        told.append(
            f"{len(some_of):,} {kind} ({some(some_of, 2)})" + (f": {needs}" if needs else "")
        )
    rest = sum(len(some_of) for _, some_of in ordered[_SHOWN:])
    return ", ".join(told) + (f" and {rest:,} more" if rest else "")
