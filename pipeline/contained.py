"""Images inside zips, tars and parquet files: the place of one, as a string, and its bytes.

Needs the standard library only (pyarrow for parquet): worker processes import this file.
"""

import functools
import re
import threading
import zipfile
from pathlib import Path
from typing import Any

# No file name contains a zero byte, so none is mistaken for a place.
_PLACE = re.compile("([^\0]+)\0(zip|tar|parquet)\0(.+)", re.DOTALL)
_ONE_AT_A_TIME = threading.Lock()  # many threads may read one table's rows


def in_zip(file: Path, member: str) -> str:
    """The place of a zip's member."""
    return f"{file}\0zip\0{member}"


def in_tar(file: Path, offset: int, size: int) -> str:
    """The place of `size` bytes at `offset` of an uncompressed tar."""
    return f"{file}\0tar\0{offset}+{size}"


def in_parquet(file: Path, column: str, group: int, row: int) -> str:
    """The place of an image of a parquet file: a row of a row group."""
    return f"{file}\0parquet\0{group}+{row}+{column}"


def is_contained(place: str) -> bool:
    """Whether a place is inside a file, and not a file of its own."""
    return _PLACE.fullmatch(place) is not None


def shown(place: str) -> str:
    """A place as messages show it: the file's name, and the position in it."""
    found = _PLACE.fullmatch(place)
    return f"{found[1]} ({found[3]})" if found else place


def read_contained(place: str, most: int) -> bytes:
    """The bytes of an image at a place of in_zip, in_tar or in_parquet, at most `most`.

    Raises ValueError with a reason for more, and what zipfile and pyarrow raise for damaged files.
    """
    found = _PLACE.fullmatch(place)
    assert found
    file, kind, where = found.groups()
    if kind == "zip":
        archive = _zip(file)
        _refuse_large(archive.getinfo(where).file_size, most)
        return archive.read(where)
    if kind == "tar":
        offset, size = map(int, where.split("+"))
        _refuse_large(size, most)
        with open(file, "rb") as opened:
            opened.seek(offset)
            data = opened.read(size)
        if len(data) < size:
            raise ValueError(f"the tar ends after {len(data):,} of its {size:,} bytes")
        return data
    group, row, column = where.split("+", 2)
    with _ONE_AT_A_TIME:
        value = _rows(file, column, int(group))[int(row)].as_py()
    held = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(held, bytes):
        raise ValueError("the table contains a path or nothing, not the image's bytes")
    _refuse_large(len(held), most)
    return held


def _refuse_large(size: int, most: int) -> None:
    if size > most:
        raise ValueError(f"has {size:,} bytes, over --max-image-mib {most >> 20:,}")


@functools.lru_cache(maxsize=4)
def _zip(file: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(file)


@functools.lru_cache(maxsize=1)
def _rows(file: str, column: str, group: int) -> Any:
    from pipeline.parquet_files import open_parquet

    return open_parquet(Path(file)).read_row_group(group, [column]).column(0)
