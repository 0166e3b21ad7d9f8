"""Fill a cache row by row so that a kill at any moment loses nothing that was flushed.

Everything is written to <path>.partial, features before the status that vouches for them. The last
steps are the checksums, the user block, and one rename.
"""

import contextlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import BaseFileLock

from cache.container.checksums import (
    content_sha256,
    done_crc32,
    file_sha256,
    read_region,
    rows_crc32,
)
from cache.container.contents import OK, TODO, UNREADABLE
from cache.container.disk import disk_error, partial_of, sync_folder, unlock
from cache.container.userblock import UserBlock, pack
from cache.table import BLOCK_ROWS, CacheError, FeatureTable, unusable_rows


class Writer:
    """An unfinished cache that only this process may write; made by cache.store.open_writer.

    A context manager: leaving it flushes, closes the file and releases the lock.
    """

    def __init__(
        self,
        path: Path,
        lock: BaseFileLock,
        block: UserBlock,
        table: FeatureTable,
        status: np.ndarray,
        paths: list[str] | None,
    ) -> None:
        """Write to path's .partial, which has this user block and this (N,) row_status."""
        self._path, self._partial = path, partial_of(path)
        self._lock, self._block, self._table = lock, block, table
        self._status, self._paths = status, paths
        self._unflushed: set[int] = set()  # blocks of rows
        self._file: BinaryIO = self._partial.open("r+b")

    def __enter__(self) -> "Writer":
        """The writer itself."""
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """Flush what was put, even after an error, then close."""
        # A second error during cleanup would only hide the first.
        with contextlib.suppress(CacheError) if kind else contextlib.nullcontext():
            try:
                self.flush()
            finally:
                self.close()

    @property
    def todo(self) -> np.ndarray:
        """(n,) int64, the rows still to do, ascending."""
        return np.flatnonzero(self._status == TODO)

    def put(self, rows: np.ndarray, features: np.ndarray, status: np.ndarray) -> None:
        """Write the features of some rows; they count as done from the next flush.

        rows      (n,) row numbers, each still to do
        features  (n, D) float of any width, stored in the cache's dtype
        status    (n,) 1 ok, 2 unreadable; unreadable rows are stored as zeros

        Raises ValueError for invalid arguments; CacheError for a full disk, and for rows with NaN,
        Inf, only zeros or numbers too large (cache.table.unusable_rows).
        """
        rows, status = np.asarray(rows, np.int64), np.asarray(status, np.uint8)
        width, kind = self._table.features.shape[1], self._table.features.dtype
        if features.shape != (len(rows), width) or status.shape != rows.shape:
            raise ValueError(f"put: {len(rows)} rows of {width} need features and status to match")
        if len(np.unique(rows)) < len(rows) or (self._status[rows] != TODO).any():
            raise ValueError("put: a row is given twice or was filled before")
        if not np.isin(status, (OK, UNREADABLE)).all():
            raise ValueError("put: status must be 1 (ok) or 2 (unreadable)")
        with np.errstate(over="ignore", invalid="ignore"):
            kept = np.asarray(features).astype(kind)
        kept[status == UNREADABLE] = 0
        bad, what = unusable_rows(kept, status == OK)
        if len(bad):
            self._refuse(int(rows[bad[0]]), features[bad[0]], what)
        row_bytes = width * kind.itemsize
        with self._disk_errors():
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                if len(run):
                    begin = self._block.regions["features"].offset + int(rows[run[0]]) * row_bytes
                    self._write(begin, kept[run].tobytes())
        self._status[rows] = status
        self._unflushed |= set((rows // BLOCK_ROWS).tolist())

    def flush(self) -> None:
        """Sync what was put to the disk: features first, then what vouches for it."""
        if self._unflushed:
            with self._disk_errors():
                self._sync()
                crcs = [
                    (number, done_crc32(self._file, self._block, self._status, number))
                    for number in sorted(self._unflushed)
                ]
                self._write(self._block.regions["row_status"].offset, self._status.tobytes())
                for number, crc in crcs:
                    begin = self._block.regions["block_crc32"].offset + 4 * number
                    self._write(begin, np.array(crc, "<u4").tobytes())
                self._sync()
            self._unflushed = set()

    def publish(self) -> None:
        """Checksum the full cache and rename it to its name. Raises CacheError if rows are left."""
        if len(self.todo):
            raise CacheError(
                f"{self._partial}: {len(self.todo)} of {len(self._status)} rows are not extracted "
                "yet; `./run.sh extract` resumes with them"
            )
        # All images of a shard may be bad: merging refuses a whole without a readable one.
        if not (self._status == OK).any() and "shard" not in self._table.identity:
            raise CacheError(f"{self._partial}: not one image could be read; nothing to publish")
        self.flush()
        with self._disk_errors():
            content, crcs = self._content()
            regions = self._block.regions
            self._write(regions["block_crc32"].offset, np.array(crcs, "<u4").tobytes())
            self._sync()
            self._block = replace(
                self._block,
                complete=True,
                rows_crc32=rows_crc32(self._file, regions),
                content_sha256=content,
                file_sha256=file_sha256(self._file),
            )
            self._write(0, pack(self._block))
            self._sync()
            self._file.close()
            os.replace(self._partial, self._path)
            sync_folder(self._path.parent)

    def close(self) -> None:
        """Close the file and release the lock; what was not flushed is still to do."""
        try:
            self._file.close()
        except OSError as error:
            raise disk_error(self._partial, error, self._block.file_bytes) from error
        finally:
            unlock(self._lock)

    def _content(self) -> tuple[str, list[int]]:
        """content_sha256 of the readable rows, and the CRC-32 of every block of rows."""
        crcs: list[int] = []
        table, keep = self._table, self._status == OK

        def readable() -> Iterator[np.ndarray]:
            for number, start in enumerate(range(0, len(keep), BLOCK_ROWS)):
                raw = read_region(self._file, self._block.features_of(number))
                crcs.append(zlib.crc32(raw))
                rows = np.frombuffer(raw, table.features.dtype.newbyteorder("<"))
                yield rows.reshape(-1, table.features.shape[1])[keep[start : start + BLOCK_ROWS]]

        kind, labels, domains = table.features.dtype, table.labels[keep], table.domains[keep]
        return content_sha256(readable(), kind, labels, domains, table.text_features), crcs

    def _refuse(self, row: int, given: np.ndarray, what: str) -> None:
        name = f" ({self._paths[row]})" if self._paths else ""
        kind, way = self._table.features.dtype, "check the weights and that image"
        if kind == np.float16 and not len(unusable_rows(given[None])[0]):
            what, way = f"numbers too large for {kind}, or all too small", "store float32"
        raise CacheError(f"{self._partial}: row {row}{name} has {what} in its features; {way}")

    def _write(self, begin: int, raw: bytes) -> None:
        self._file.seek(begin)
        self._file.write(raw)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise disk_error(self._partial, error, self._block.file_bytes) from error
