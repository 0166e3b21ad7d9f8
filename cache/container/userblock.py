"""The first 512 bytes of a cache: what it is, how long it must be, and checksums of the rest.

HDF5 leaves them to the application and starts after them; docs/cache-format.md has the table.
"""

import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cache.table import BLOCK_ROWS, CacheError

BYTES = 512
SCHEMA = 1
MAGIC = b"\x89FEDCLIPCACHE\r\n\x1a"  # like PNG's: a text-mode copy or a 7-bit channel breaks it
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
PARTIAL, COMPLETE = 1, 2
REGIONS = ("row_status", "block_crc32", "paths", "features")  # excluded from static_crc32
_FIELDS = struct.Struct("<16sIIQ8QIII4x32s32s")
_CRC = struct.Struct("<I")
_STRANGERS = (  # the first bytes of other files, in lower case, and their description
    (b"<", "HTML or XML, not a cache; was a web page saved instead of the file? Download it again"),
    (b"version https://git-lfs", "a git-LFS pointer, not the file; `git lfs pull` fetches that"),
    (b"pk\x03\x04", "a zip or .npz, not a cache; `./run.sh cache import` makes a cache of an .npz"),
    (
        HDF5_MAGIC.lower(),
        "HDF5, but not a cache of this project; `./run.sh cache import` reads features in it",
    ),
    (b"\0" * 16, "not a cache, or not even begun: it starts with zeros; copy or recreate it"),
)


class Region(NamedTuple):
    """Where the bytes of a dataset lie; (0, 0) for a missing one."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class UserBlock:
    """The user block's fields; the last three are 0 or zeros until the cache is complete."""

    complete: bool
    file_bytes: int
    regions: dict[str, Region]
    static_crc32: int
    paths_crc32: int
    rows_crc32: int = 0
    content_sha256: str = "00" * 32
    file_sha256: str = "00" * 32

    @property
    def rows(self) -> int:
        """N, readable or not."""
        return self.regions["row_status"].nbytes

    def features_of(self, number: int) -> Region:
        """The features of block `number` of BLOCK_ROWS rows; the last block may have fewer."""
        offset, nbytes = self.regions["features"]
        step = nbytes // self.rows * BLOCK_ROWS
        return Region(offset + number * step, min(step, nbytes - number * step))


def pack(block: UserBlock) -> bytes:
    """The 512 bytes."""
    places = [number for name in REGIONS for number in block.regions[name]]
    fields = _FIELDS.pack(
        *(MAGIC, SCHEMA, COMPLETE if block.complete else PARTIAL, block.file_bytes, *places),
        *(block.static_crc32, block.paths_crc32, block.rows_crc32),
        *(bytes.fromhex(block.content_sha256), bytes.fromhex(block.file_sha256)),
    )
    body = fields.ljust(BYTES - _CRC.size, b"\0")
    return body + _CRC.pack(zlib.crc32(body))


@contextmanager
def open_cache(path: Path) -> Iterator[tuple[BinaryIO, UserBlock]]:
    """The file, opened for reading, and its user block; CacheError when it is not a cache."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise CacheError(f"{path} is a folder; name the .h5 file itself")
        if not stat.S_ISREG(status.st_mode):
            raise CacheError(f"{path} is not a regular file")
        with path.open("rb") as file:
            yield file, unpack(file.read(BYTES), status.st_size, path)
    except FileNotFoundError as error:
        partial = path.with_name(path.name + ".partial")
        hint = f"; {partial} is unfinished, the same command resumes it"
        raise CacheError(
            f"{path}: there is no such file; create it with `./run.sh extract` or `cache import`"
            + (hint if partial.exists() else "")
        ) from error
    except OSError as error:
        raise CacheError(f"{path}: cannot be read: {error.strerror or error}") from error


def unpack(raw: bytes, size: int, path: Path) -> UserBlock:
    """The fields of a user block whose file is `size` bytes long, or CacheError with the reason."""
    if not raw:
        raise CacheError(f"{path} is empty (0 bytes); copy or recreate it")
    if not raw.startswith(MAGIC[: len(raw)]):
        raise CacheError(f"{path} is {_what_it_is(raw)}")
    if len(raw) < BYTES:
        raise CacheError(f"{path} was truncated to {size:,} bytes; copy or recreate it")
    if _CRC.unpack_from(raw, BYTES - _CRC.size)[0] != zlib.crc32(raw[: -_CRC.size]):
        raise CacheError(f"{path} is damaged in its first {BYTES} bytes; copy or recreate it")
    _, schema, state, file_bytes, *rest = _FIELDS.unpack_from(raw)
    if schema != SCHEMA:
        age = "newer" if schema > SCHEMA else "older"
        raise CacheError(
            f"{path} has schema version {schema}, {age} than the {SCHEMA} this code reads; "
            + ("update the code" if schema > SCHEMA else "extract it again")
        )
    if size != file_bytes:
        change = "was truncated" if size < file_bytes else "has grown"
        raise CacheError(
            f"{path} {change}: {size:,} bytes, {file_bytes:,} were written; copy or recreate it"
        )
    regions = dict(zip(REGIONS, map(Region, rest[0:8:2], rest[1:8:2]), strict=True))
    if state not in (PARTIAL, COMPLETE) or not _fit(regions, size):
        raise CacheError(f"{path}: its first {BYTES} bytes are inconsistent; refusing to read it")
    static, paths, rows, content, whole = rest[8:]
    done = state == COMPLETE
    return UserBlock(done, size, regions, static, paths, rows, content.hex(), whole.hex())


def _fit(regions: dict[str, Region], size: int) -> bool:
    """Whether the regions are in the file, do not overlap, and agree on the rows."""
    end = BYTES
    for offset, nbytes in sorted(region for region in regions.values() if region != (0, 0)):
        if offset < end or offset + nbytes > size:
            return False
        end = offset + nbytes
    rows, blocks, _, features = (regions[name].nbytes for name in REGIONS)
    return rows > 0 and blocks == 4 * -(-rows // BLOCK_ROWS) and features > 0 == features % rows


def _what_it_is(raw: bytes) -> str:
    start = raw.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n").lower()
    for beginning, what in _STRANGERS:
        if start.startswith(beginning):
            return what
    return f"not a cache: it begins with {raw[:12]!r}"
