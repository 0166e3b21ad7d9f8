"""Report how the images have changed since a cache was made from them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cache.store import info, read_paths
from cache.table import CacheError, StaleCache
from pipeline.datasets.class_names import some
from pipeline.datasets.tree import ImageTree
from pipeline.terminal import printable

# Fields of an identity that depend on the images; others are settings.
_OF_IMAGES = ("class_names", "domain_names", "manifest_sha256", "shard.paths", "shard.manifest",
              "shard.rows")  # fmt: skip


@contextlib.contextmanager
def in_words_of_images(file: Path, tree: ImageTree) -> Iterator[None]:
    """Replace a StaleCache about images by one that says which images changed.

    file  the cache, or its .partial, that is compared with the tree (for a shard, with its part)
    """
    try:
        yield
    except StaleCache as error:
        changes = _changes(file, tree) if _about_images(str(error)) else None
        if changes is None:
            raise
        raise StaleCache(
            f"{file}: the images have changed since: {changes}; pass --force to "
            "recreate it, or another --out to keep both"
        ) from error


def _about_images(message: str) -> bool:
    return any(f"made with {field}" in message for field in _OF_IMAGES) or "other paths" in message


def _changes(file: Path, tree: ImageTree) -> str | None:
    """Images added, removed and changed; None if the cache does not record its images."""
    try:
        before = read_paths(file, all_rows=True)
        found = info(file)
    except CacheError:
        return None
    if not all(before):
        return None
    changes = [
        f"{len(paths):,} {how} ({some(paths, show=printable)})"
        for how, paths in (
            ("added", sorted(set(tree.paths) - set(before))),
            ("removed", sorted(set(before) - set(tree.paths))),
        )
        if paths
    ]
    if not changes and found["class_names"] != list(tree.class_names):
        return None  # named by a file: the message about class_names reports it
    return ", ".join(changes) or f"the content of some of the {len(before):,} was changed"
