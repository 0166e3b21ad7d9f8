"""Caches of others: sealed as a forger would, and refused by every reader."""

import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import pytest

from cache import store
from cache.container import checksums, userblock
from cache.table import CacheError

READERS = (store.read_table, store.read_paths, store.info, store.verify)


def refused(path: Path, message: str, readers: tuple = READERS) -> None:
    for read in readers:
        with pytest.raises(CacheError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        assert caught.value.exit_code == 4


def seal(path: Path) -> None:
    """Recompute every checksum, as a forger would; regions follow the HDF5 if possible."""
    raw = path.read_bytes()
    raw = raw[:24] + len(raw).to_bytes(8, "little") + raw[32:508]
    raw += zlib.crc32(raw).to_bytes(4, "little")
    block = userblock.unpack(raw, path.stat().st_size, path)
    regions = dict(block.regions)
    with h5py.File(path, "r") as file:
        for name in regions:
            if (
                isinstance(file.get(name), h5py.Dataset)
                and (at := file[name].id.get_offset() or 0) > 511
            ):
                regions[name] = userblock.Region(at, file[name].nbytes)
    with path.open("r+b") as file:
        size = path.stat().st_size
        begin, nbytes = regions["paths"]
        block = replace(
            block,
            regions=regions,
            static_crc32=checksums.static_crc32(file, regions.values(), size),
            paths_crc32=checksums.crc32_of(file, begin, begin + nbytes),
            rows_crc32=checksums.rows_crc32(file, regions),
            file_sha256=checksums.file_sha256(file),
        )
        file.seek(0)
        file.write(userblock.pack(block))
