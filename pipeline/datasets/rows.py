"""Images that a list, a table or an archive names one by one -> ImageTree."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.datasets.tree import ImageTree, named_after
from pipeline.errors import DataError
from pipeline.terminal import printable

MOST_ROWS = 20_000_000


class Row(NamedTuple):
    """One image; as a tuple it sorts as the rows of a tree do.

    domain      "" where there is none;  split  position in SPLITS, or None
    path        what the cache calls it; place  where it is read
    """

    domain: str
    split: int | None
    class_name: str
    path: str
    place: str


def as_tree(
    root: Path, rows: Sequence[Row], layout: str, ignored: Sequence[str] = (),
    class_names: Sequence[str] = (),
) -> ImageTree:  # fmt: skip
    """The rows in the order of a folder of them: by domain, split, class and path.

    layout       what it is, for people
    class_names  in their order, where the source fixes one; else those of the rows, sorted

    Raises DataError for no rows, a path that is there twice, and rows of which only some have a
    domain or a split.
    """
    shown = printable(root)
    if not rows:
        raise DataError(f"{shown}: no image in it")
    for what, given in (("domain", [r.domain for r in rows]), ("split", [r.split for r in rows])):
        lacking = sum(one in ("", None) for one in given)
        if 0 < lacking < len(rows):
            raise DataError(f"{shown}: {lacking:,} of {len(rows):,} rows have no {what}")
    ordered = sorted(rows, key=lambda row: (row.domain, row.split or 0, row.class_name, row.path))
    paths = tuple(row.path for row in ordered)
    if len(set(paths)) < len(paths):
        seen: set[str] = set()
        twice = next(path for path in paths if path in seen or seen.add(path))
        raise DataError(f"{shown}: {printable(twice)} is listed twice")
    names = tuple(class_names) or tuple(sorted({row.class_name for row in rows}))
    if unknown := {row.class_name for row in rows} - set(names):
        raise DataError(
            f"{shown}: a row has the class {printable(min(unknown))}, which has no name"
        )
    label_of = {name: number for number, name in enumerate(names)}
    here = named_after(root)
    domains = tuple(sorted({row.domain or here for row in rows}))
    domain_of = {name: number for number, name in enumerate(domains)}
    splits = [row.split for row in ordered]
    return ImageTree(
        root=root,
        domain_names=domains,
        class_names=names,
        paths=paths,
        labels=np.array([label_of[row.class_name] for row in ordered], np.int64),
        domains=np.array([domain_of[row.domain or here] for row in ordered], np.int64),
        ignored=tuple(ignored),
        layout=layout,
        # One split alone, as parquet files of Hugging Face have, divides nothing.
        split=np.array(splits, np.int8) if len(set(splits)) > 1 else None,
        places=tuple(row.place for row in ordered),
    )
