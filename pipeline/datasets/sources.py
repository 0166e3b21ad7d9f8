"""Which kind of source a named file or folder is, where it is not a folder of image files."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from pipeline.datasets.archives import places_in_zip, read_parquets, read_tars, read_zip
from pipeline.datasets.image_files import Folder, read_folder
from pipeline.datasets.layouts import guess, no_images
from pipeline.datasets.lists import SUFFIXES, read_list
from pipeline.datasets.tree import ImageTree, as_tree
from pipeline.errors import DataError
from pipeline.terminal import printable

FILES = (*SUFFIXES, ".zip", ".parquet", ".tar")
"""Suffixes of files that are a data set."""


def read_source(
    root: Path, say: Callable[[str], None], layout: str | None = None
) -> tuple[ImageTree, Folder] | None:
    """The rows of a file of FILES, or of a folder of parquet or tar files; None for other folders.

    returns  the rows; and what read_folder would find where it is a zip, else nothing
    Raises DataError as the readers do, UnclearLayout for a zip that fits no layout.
    """
    if root.is_file():
        suffix = root.suffix.lower()
        if suffix == ".zip":
            return _zipped(root, layout)
        if suffix in SUFFIXES:
            return read_list(root, say, layout), Folder()
        if suffix == ".parquet":
            return read_parquets(root, [root], say), Folder()
        if suffix == ".tar":
            return read_tars(root, [root], say), Folder()
        raise DataError(
            f"{printable(root)}: this is a file; of files {', '.join(FILES)} are read, or name a "
            "folder"
        )
    for pattern, read in (("*.parquet", read_parquets), ("*.tar", read_tars)):
        files = sorted((*root.glob(pattern), *root.glob(f"data/{pattern}")))
        if files and not _has_images(root):
            return read(root, files, say), Folder()
    return None


def _zipped(file: Path, layout: str | None) -> tuple[ImageTree, Folder]:
    top, prefix = read_zip(file)
    if not top.images and not top.folders:
        raise DataError(no_images(file, top.left_out))
    tree = as_tree(file, top, layout or guess(file, top))
    return dataclasses.replace(tree, places=places_in_zip(file, prefix, tree.paths)), top


def _has_images(root: Path) -> bool:
    top = read_folder(str(root), cannot=lambda path, why: None)
    return bool(top.images or top.folders)
