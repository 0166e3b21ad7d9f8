"""What changed in the images since a cache was made of them, in words of images."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from cache.store import info, read_paths
from cache.table import CacheError, StaleCache
from pipeline.datasets.tree import ImageTree
from pipeline.terminal import printable

_SHOWN = 3  # paths named of each kind
# Fields of an identity that follow from the images; others are settings.
_OF_IMAGES = ("class_names", "domain_names", "manifest_sha256", "shard.paths", "shard.manifest",
              "shard.rows")  # fmt: skip


@contextlib.contextmanager
def in_words_of_images(file: Path, tree: ImageTree) -> Iterator[None]:
    """Where a StaleCache about images comes out of it: the same error, saying what changed.

    file  the cache, or its .partial, that is compared with the tree (of a shard: with its part)
    """
    try:
        yield
    except StaleCache as error:
        changes = _changes(file, tree) if _about_images(str(error)) else None
        if changes is None:
            raise
        raise StaleCache(
            f"{file}: its images are not those that are there now: {changes}; pass --force to "
            "recreate it, or another --out to keep both"
        ) from error


def _about_images(message: str) -> bool:
    return any(f"made with {field}" in message for field in _OF_IMAGES) or "other paths" in message


def _changes(file: Path, tree: ImageTree) -> str | None:
    """Images added, removed and changed; None where the cache does not know its images."""
    try:
        before = read_paths(file, all_rows=True)
        found = info(file)
    except CacheError:
        return None
    if not all(before):
        return None
    told = [
        f"{len(some):,} {how} ({_some(some)})"
        for how, some in (
            ("added", sorted(set(tree.paths) - set(before))),
            ("removed", sorted(set(before) - set(tree.paths))),
        )
        if some
    ]
    if not told and found["class_names"] != list(tree.class_names):
        return None  # named by a file: the message about class_names says it
    return ", ".join(told) or f"the content of some of the {len(before):,} was changed"


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(printable, paths[:_SHOWN])) + more
