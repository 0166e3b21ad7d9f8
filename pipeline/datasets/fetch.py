"""Fetch a data set: download, unpack and count."""

import logging
import shlex
from collections.abc import Callable
from os import PathLike
from pathlib import Path, PurePosixPath

from pipeline.datasets.counts import KNOWN, Published
from pipeline.datasets.find import read_source
from pipeline.datasets.known import compare_counts, find_dataset, known_dataset, root_option
from pipeline.datasets.tree import ImageTree, scan
from pipeline.errors import DataError
from pipeline.transfer.download import download
from pipeline.transfer.hub import HubError, hub_parquet
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

    Does nothing if it is there with its published counts; of several archives those whose folders
    are there are not fetched again. Raises DataError when it cannot be fetched, or when its counts
    differ: each difference is reported, and the files are kept.
    """
    key, root = known_dataset(name), Path(root)
    known = KNOWN[key]
    folder = root / known.title
    missing = _archives(known, root, (url,) if url else known.urls)
    found = _found(key, root)
    if found is not None and (found != folder or len(known.urls) < 2 or not missing):
        say(f"{known.title} is already in {found}; nothing is downloaded")
    else:
        for address, archive, place in missing:
            check_free(place)
            _fetch_archive(address, archive, say, sum(map(max, known.rows.values())) * _IMAGE, key)
            unpack(archive, place)
            say(f"unpacked to {place}; {archive} is no longer needed")
        found = _found(key, root)
        if found is None:
            raise DataError(
                f"{missing[-1][1]} does not contain {known.title}: no folders "
                f"{', '.join(known.domain_names)} in {folder}; the files are kept"
            )
    zips = f"the zips in {root}" if len(known.urls) > 1 else root / f"{known.title}.zip"
    extract = f"./run.sh extract --dataset {key}{root_option(root)}"
    _counted(key, scan(found), found, extract, say, f"{found} and {zips}")
    return found


def download_from_hub(
    name: str, root: str | PathLike[str], say: Callable[[str], None] = LOG.info
) -> Path:
    """Download a known data set's parquet files from the Hugging Face hub; return their folder.

    Files that are there are not fetched again. Raises DataError as download_dataset does.
    """
    key, root = known_dataset(name), Path(root)
    known = KNOWN[key]
    if not known.hub:
        there = ", ".join(key for key, one in KNOWN.items() if one.hub)
        raise DataError(f"--hub: no repository of {known.title} is known; there are {there}")
    folder = root / "hub" / known.title  # extract knows it by this name
    try:
        hub_parquet(known.hub, folder)
    except HubError as error:
        raise DataError(f"--hub: {error}; without --hub its archive is downloaded") from error
    source = read_source(folder, say)
    if source is None:
        raise DataError(
            f"{known.hub} has no parquet files; without --hub its archive is downloaded"
        )
    extract = f"./run.sh extract --dataset {shlex.quote(str(folder))}"
    _counted(key, source[0], folder, extract, say, str(folder))
    return folder


def _archives(
    known: Published, root: Path, urls: tuple[str, ...]
) -> list[tuple[str | None, Path, Path]]:
    """Address, archive and folder of what is not unpacked: the whole, or one for each domain."""
    folder = root / known.title
    if len(urls) < 2:
        return [(urls[0] if urls else None, root / f"{known.title}.zip", folder)]
    stems = [PurePosixPath(url).stem for url in urls]
    return [
        (url, root / f"{known.title}-{stem}.zip", folder / stem)
        for url, stem in zip(urls, stems, strict=True)
        if not (folder / stem).exists()  # it appears whole or not at all
    ]


def _found(key: str, root: Path) -> Path | None:
    try:
        return find_dataset(key, root)
    except DataError:
        return None


def _counted(
    key: str, tree: ImageTree, found: Path, extract: str, say: Callable[[str], None], old: str
) -> None:
    """Says that the counts are the published ones; DataError where they differ."""
    title, lines = KNOWN[key].title, compare_counts(tree, key)
    for line in lines:
        say(line)
    if lines:
        raise DataError(
            f"{found} differs from the published {title} in {len(lines)} counts, first "
            f"{lines[0]}; the files are kept: to fetch it again, delete {old} and run again; to "
            f"use it as it is, run {extract}"
        )
    say(
        f"{title}: {len(tree.paths):,} images, {len(tree.domain_names)} domains, "
        f"{len(tree.class_names)} classes, as published"
    )
    say(f"next: {extract}")


def _fetch_archive(
    url: str | None, archive: Path, say: Callable[[str], None], most: int, key: str
) -> None:
    if url is not None:
        try:
            download(url, archive, say, most=most)
        except DataError as error:
            hub = ", or take the Hugging Face hub's copy with --hub" if KNOWN[key].hub else ""
            raise DataError(f"{error}; pass another address with --url{hub}") from error
    elif not archive.exists():
        raise DataError(
            f"no address is known for {archive.name}; pass one with --url, or put it at {archive}"
        )
