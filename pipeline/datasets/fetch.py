"""Fetch a data set: download, unpack and count."""

import logging
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from pipeline.datasets.counts import KNOWN
from pipeline.datasets.known import compare_counts, find_dataset, known_dataset, root_option
from pipeline.datasets.tree import scan
from pipeline.errors import DataError
from pipeline.transfer.download import download
from pipeline.transfer.unpack import check_free, unpack

LOG = logging.getLogger(__name__)

_IMAGE = 1 << 20  # bytes of archive per image, about ten times what known data sets have


def download_dataset(
    name: str,
    root: str | PathLike[str],
    url: str | None = None,
    say: Callable[[str], None] = LOG.info,
) -> Path:
    """Download, unpack and count the known data set `name` in `root`; return its folder.

    Does nothing if it is there with its published counts. Raises DataError when it cannot be
    fetched, or when its counts differ: each difference is reported, and the files are kept.
    """
    key, root = known_dataset(name), Path(root)
    known = KNOWN[key]
    folder, archive = root / known.title, root / f"{known.title}.zip"
    try:
        found = find_dataset(key, root)
        say(f"{known.title} is already in {found}; nothing is downloaded")
    except DataError:
        check_free(folder)
        images = sum(max(accepted) for accepted in known.rows.values())
        _fetch_archive(url or known.url, archive, say, images * _IMAGE)
        unpack(archive, folder)
        say(f"unpacked to {folder}; {archive} is no longer needed")
        try:
            found = find_dataset(key, root)
        except DataError as error:
            raise DataError(
                f"{archive} does not contain {known.title}: no folders "
                f"{', '.join(known.domain_names)} in {folder}; the files are kept"
            ) from error
    tree = scan(found)
    lines = compare_counts(tree, key)
    for line in lines:
        say(line)
    if lines:
        raise DataError(
            f"{found} differs from the published {known.title} in {len(lines)} counts, first "
            f"{lines[0]}; the files are kept: to fetch it again, delete {found} and "
            f"{archive} and run again; to use it as it is, run ./run.sh extract --dataset {key}"
            f"{root_option(root)}"
        )
    say(
        f"{known.title}: {len(tree.paths):,} images, {len(tree.domain_names)} domains, "
        f"{len(tree.class_names)} classes, as published"
    )
    say(f"next: ./run.sh extract --dataset {key}{root_option(root)}")
    return found


def _fetch_archive(url: str | None, archive: Path, say: Callable[[str], None], most: int) -> None:
    if url is not None:
        try:
            download(url, archive, say, most=most)
        except DataError as error:
            raise DataError(f"{error}; pass another address with --url") from error
    elif not archive.exists():
        raise DataError(
            f"no address is known for {archive.name}; pass one with --url, or put it at {archive}"
        )
