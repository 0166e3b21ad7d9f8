"""Describe how an image folder was read, in a few lines or as JSON."""

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
from pipeline.terminal import counted, printable

# Caltech-101's BACKGROUND_Google, Caltech-256's 257.clutter.
_CLUTTER = re.compile(r"(\d+[._ ])?(background(_google)?|clutter)", re.IGNORECASE)
_SHOWN = 8  # domains, classes and kinds listed one by one; the rest is a count


def lines(tree: ImageTree, templates: Sequence[str], accepted: Sequence[Doubt] = ()) -> list[str]:
    """At most a dozen lines, for any number of domains and classes.

    accepted  doubts that the user's statements settle
    """
    facts = as_json(tree)
    report = [f"{printable(tree.root)}: read as {brief(tree)}"]
    domains = [
        f"{printable(name)!r} {one['images']:,} of {counted(one['classes'], 'class', 'es')}"
        + _of_splits(one.get("split"))
        for name, one in facts["domains"].items()
    ]
    report.append(f"images by domain: {_some(domains, 'domain', 'domains', facts['domains'])}")
    classes = [f"{printable(name)!r} {one['images']:,}" for name, one in facts["classes"].items()]
    report.append(f"images by class: {_some(classes, 'class', 'classes', facts['classes'])}")
    if tree.renamed:
        pairs = [f"{f} = {n}" for f, n in tree.renamed.items() if f != n]
        report.append(f"{len(pairs):,} class folders were given names: {some(pairs)}")
    report += _something_else(tree)
    if tree.split is not None:
        trained = np.unique(tree.labels[tree.split == 0])
        lost = [name for c, name in enumerate(tree.class_names) if c not in trained]
        if lost:
            report.append(f"classes without an image in train: {some(lost)}")
    if templates:
        first = templates[0].replace("{}", printable(tree.class_names[0]))
        more = "" if len(templates) == 1 else f", the first of {len(templates):,} for each class"
        report.append(f'prompt: "{first}"{more}')
    report += [f"accepted: {doubt.what}" for doubt in accepted]
    if tree.ignored:
        report.append(f"left out: {_left_out(tree.ignored)}")
    above = folder_above(tree)
    if above:
        report.append(f"folders beside it have the same classes; to use all of them, name {above}")
    return report


def _something_else(tree: ImageTree) -> list[str]:
    """Lines about classes and domains that are probably something else."""
    report = []
    clutter = [name for name in tree.class_names if _CLUTTER.fullmatch(name)]
    if clutter:
        report.append(
            f"the class {printable(clutter[0])!r} seems to hold images without a class; "
            "move it out of the folder unless it should be predicted"
        )
    if "domain" in tree.layout and len(tree.domain_names) == 1 and tree.places is None:
        only = tree.domain_names[0]
        report.append(
            f"all classes are in the one folder {printable(only)!r}, which is read as a domain; "
            f"if it is the data set itself, name {shlex.quote(printable(tree.root / only))}"
        )
    return report


def as_json(tree: ImageTree) -> dict[str, Any]:
    """The same as one JSON-able object, with everything in it."""
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
    # Unsupported images come first, for users who miss some.
    ordered = sorted(kinds.items(), key=lambda kind: not converter(kind[1][0]))
    report = []
    for kind, some_of in ordered[:_SHOWN]:
        needs = converter(some_of[0])
        report.append(
            f"{len(some_of):,} {kind} ({some(some_of, 2)})" + (f": {needs}" if needs else "")
        )
    rest = sum(len(some_of) for _, some_of in ordered[_SHOWN:])
    return ", ".join(report) + (f" and {rest:,} more" if rest else "")
