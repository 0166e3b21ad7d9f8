"""The data set a user names: the built-in one, a known one, or a folder."""

import re
from collections.abc import Callable
from pathlib import Path

from pipeline.demo.draw import draw_dataset
from pipeline.domains import (
    KNOWN,
    DataError,
    ImageTree,
    compare_counts,
    find_dataset,
    known_dataset,
    scan,
)

SHOWN = 10  # stray files named; the rest is a count


def dataset_name(dataset: str) -> str:
    """What a cache calls it: the key of a known data set, else the folder's own name.

    dataset  "demo", a known name in any usual spelling, or a folder
    """
    name = Path(dataset).expanduser().resolve().name if _is_path(dataset) else dataset
    try:
        return known_dataset(name)
    except DataError:
        return name.lower() if name.lower() == "demo" else name


def find_images(dataset: str, root: Path, say: Callable[[str], None]) -> ImageTree:
    """The rows of that data set; the built-in one is drawn when it is missing.

    dataset  "demo", a known name looked for in `root`, or a folder: whatever has a / in it, and
             a word that is no known name but a folder here
    say      is told where a known data set differs from the published one, and of stray files

    Raises DataError when it is not there or has no images.
    """
    if not dataset:  # pathlib takes "" for this folder
        raise DataError("--dataset is empty; name a data set or a folder, or leave it out for demo")
    name, folder = dataset_name(dataset), Path(dataset).expanduser()
    if dataset.lower() == "demo":
        try:
            folder = draw_dataset(root / "demo")
        except ValueError as error:  # there are pictures that it has not drawn
            raise DataError(str(error)) from error
        except OSError as error:
            raise DataError(
                f"the built-in data cannot be drawn in {root / 'demo'}: {error.strerror or error}; "
                "free space or permissions, or name another folder with --root"
            ) from error
    elif not _is_path(dataset) and (name in KNOWN or not folder.is_dir()):
        folder = find_dataset(dataset, root)  # it says what there is for a name that is unknown
    tree = scan(folder)
    for line in compare_counts(tree, name) if name in KNOWN else ():
        say(f"{folder} differs from the published {KNOWN[name].title}: {line}")
    if tree.ignored:
        more = f" and {len(tree.ignored) - SHOWN:,} more" if len(tree.ignored) > SHOWN else ""
        say(f"{folder}: left out, not images of a class: {', '.join(tree.ignored[:SHOWN])}{more}")
    return tree


def _is_path(dataset: str) -> bool:
    return bool(re.search(r"[/\\]", dataset)) or dataset.startswith((".", "~"))
