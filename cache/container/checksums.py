"""Checksums of a cache: CRC-32 locates a wrong byte, SHA-256 identifies the whole."""

import hashlib
import mmap
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from cache.container.userblock import BYTES, Region, UserBlock
from cache.table import BLOCK_ROWS, CacheError, FeatureTable, refuse_unusable

_CHUNK = 1 << 20


def content_sha256(
    blocks: Iterable[np.ndarray],
    dtype: np.dtype,
    labels: np.ndarray,
    domains: np.ndarray,
    text_features: np.ndarray,
) -> str:
    """SHA-256, 64 hex digits, of what stage two computes with, however it is stored.

    It covers in this order, all row-major and little-endian: the line
    "fedclip content 1 <dtype> <N> <D> <C>\\n", the features in their own dtype, labels and
    domains as int64, text features as float32. Unreadable rows are not part of it.

    blocks         the (N, D) features in pieces of any number of rows
    dtype          of the features, float16 or float32
    labels         (N,) int64;   domains  (N,) int64;   text_features  (C, D) float32
    """
    classes, width = text_features.shape
    head = f"fedclip content 1 {np.dtype(dtype).name} {len(labels)} {width} {classes}\n"
    digest = hashlib.sha256(head.encode())
    little = np.dtype(dtype).newbyteorder("<")
    for block in blocks:
        digest.update(np.ascontiguousarray(block, little).data)
    for array, kind in ((labels, "<i8"), (domains, "<i8"), (text_features, "<f4")):
        digest.update(np.ascontiguousarray(array, kind).data)
    return digest.hexdigest()


def content_of(table: FeatureTable) -> str:
    """content_sha256 of a table with all of its features."""
    blocks, dtype = row_blocks(table.features), table.features.dtype
    return content_sha256(blocks, dtype, table.labels, table.domains, table.text_features)


def row_blocks(features: np.ndarray) -> Iterator[np.ndarray]:
    """(N, D) in pieces of BLOCK_ROWS rows."""
    for start in range(0, len(features), BLOCK_ROWS):
        yield features[start : start + BLOCK_ROWS]


def load_features(table: FeatureTable, dtype: npt.DTypeLike = np.float32) -> np.ndarray:
    """The table's features (N, D) as dtype in memory, each block's checksum and numbers checked.

    Raises CacheError naming the rows when a block is damaged or has unusable rows.
    """
    out = np.empty(table.features.shape, dtype)

    def load(start: int) -> None:
        block = _sound_block(table, start)
        refuse_unusable(table.source, block, start)
        out[start : start + BLOCK_ROWS] = block
        _forget(table.features)

    _for_each_block(load, len(out))
    return out


def _forget(features: np.ndarray) -> None:
    """Release the file's pages that were read so far, which count as the process's memory."""
    below: object = features
    while isinstance(below, np.ndarray):
        below = below.base
    if isinstance(below, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        below.madvise(mmap.MADV_DONTNEED)


def check_features(table: FeatureTable, keep: np.ndarray | None = None) -> None:
    """Raises as load_features, without keeping the features.

    keep  (N,) bool, the rows that must be usable; None for all
    """

    def check(start: int) -> None:
        some = None if keep is None else keep[start : start + BLOCK_ROWS]
        refuse_unusable(table.source, _sound_block(table, start), start, some)

    _for_each_block(check, len(table.features))


def refuse_damage(file: BinaryIO, block: UserBlock, source: object, *, paths: bool = False) -> None:
    """Raises CacheError when bytes outside the features are not those that were written.

    Row status and block checksums are checked only once the cache is complete (until then they
    change), the paths only on request: they are many bytes that training does not need.
    """
    for part, found, written in _sections(file, block, paths):
        if found != written:
            raise CacheError(f"{source} is damaged in its {part}; copy or recreate it")


def damaged_part(file: BinaryIO, block: UserBlock) -> str:
    """The first part of a complete cache whose CRC-32 is wrong, in words."""
    for part, found, written in _sections(file, block, paths=True):
        if found != written:
            return part
    crcs = np.frombuffer(read_region(file, block.regions["block_crc32"]), "<u4")
    for number, crc in enumerate(crcs):
        if zlib.crc32(read_region(file, block.features_of(number))) != crc:
            first = number * BLOCK_ROWS
            return f"features, rows {first} to {min(first + BLOCK_ROWS, block.rows) - 1}"
    return "bytes, although every CRC-32 matches"


def static_crc32(file: BinaryIO, regions: Iterable[Region], end: int) -> int:
    """CRC-32 of everything from the user block's end to `end` that lies outside the regions."""
    crc, begin = 0, BYTES
    for offset, nbytes in sorted(region for region in regions if region != (0, 0)):
        crc = crc32_of(file, begin, offset, crc)
        begin = offset + nbytes
    return crc32_of(file, begin, end, crc)


def rows_crc32(file: BinaryIO, regions: dict[str, Region]) -> int:
    """CRC-32 of row_status followed by block_crc32."""
    crc = 0
    for offset, nbytes in (regions["row_status"], regions["block_crc32"]):
        crc = crc32_of(file, offset, offset + nbytes, crc)
    return crc


def done_crc32(file: BinaryIO, block: UserBlock, status: np.ndarray, number: int) -> int:
    """What block_crc32 holds for a block of rows until the cache is complete.

    CRC-32 of the block's rows that are done, then of the block's status: rows still to do may hold
    what a killed writer had not vouched for.
    """
    rows = status[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS]
    raw = read_region(file, block.features_of(number))
    done = np.frombuffer(raw, np.uint8).reshape(len(rows), -1)[rows != 0]
    return zlib.crc32(rows.tobytes(), zlib.crc32(done.tobytes()))


def unvouched_blocks(
    file: BinaryIO, block: UserBlock, status: np.ndarray, written: np.ndarray
) -> list[int]:
    """Blocks of an unfinished cache whose done rows do not match their checksum.

    status   (N,) uint8 row_status;  written  (blocks,) block_crc32
    """
    found = []
    for number, crc in enumerate(written):
        rows = status[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS]
        if rows.any() and done_crc32(file, block, status, number) != crc:
            # A writer killed while publishing may already have stored the complete checksum.
            if not rows.all() or zlib.crc32(read_region(file, block.features_of(number))) != crc:
                found.append(number)
    return found


def crc32_of(file: BinaryIO, begin: int, end: int, crc: int = 0) -> int:
    """CRC-32 of the bytes from `begin` to `end`, continued from crc."""
    file.seek(begin)
    while begin < end and (chunk := file.read(min(_CHUNK, end - begin))):
        crc = zlib.crc32(chunk, crc)
        begin += len(chunk)
    return crc


def file_sha256(file: BinaryIO) -> str:
    """SHA-256 of every byte after the user block."""
    file.seek(BYTES)
    # BinaryIO does not declare readinto, which every file opened "rb" or "r+b" has.
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def read_region(file: BinaryIO, region: Region) -> bytes:
    """The region's bytes."""
    file.seek(region.offset)
    return file.read(region.nbytes)


def _sections(file: BinaryIO, block: UserBlock, paths: bool) -> Iterator[tuple[str, int, int]]:
    static = static_crc32(file, block.regions.values(), block.file_bytes)
    yield "structure, labels, domains, names or text features", static, block.static_crc32
    if block.complete:
        rows = rows_crc32(file, block.regions)
        yield "row status or block checksums", rows, block.rows_crc32
    if paths:
        offset, nbytes = block.regions["paths"]
        yield "paths", crc32_of(file, offset, offset + nbytes), block.paths_crc32


def _sound_block(table: FeatureTable, start: int) -> np.ndarray:
    block = table.features[start : start + BLOCK_ROWS]
    if table.block_crc32 is not None:
        if zlib.crc32(block.data) != table.block_crc32[start // BLOCK_ROWS]:
            raise CacheError(
                f"{table.source} is damaged in its features, rows {start} to "
                f"{start + len(block) - 1}; copy or recreate it"
            )
    return block


def _for_each_block(work: Callable[[int], None], rows: int) -> None:
    """Call work(first row) for each block in threads; CRC, conversion and comparison allow that."""
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(work, range(0, rows, BLOCK_ROWS)):
            pass
