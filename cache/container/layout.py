"""Where each dataset of a cache lies in its HDF5: laid out once, read as untrusted, by h5py.

h5py only creates and finds the structure. Numbers go in and out by plain reads and writes at
these places, so HDF5's own bytes never change and no crash can leave them half written.
"""

import errno
import math
import re
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5d, h5p, h5s, h5t

from cache.container.disk import HDF5_LOCK, disk_error
from cache.container.userblock import BYTES, Region
from cache.identity import DIGEST_BYTES
from cache.table import BLOCK_ROWS, CacheError

SMALL = ("|u1", "<u2", "<u4")  # dtypes of labels and domains
METADATA_BYTES = 1 << 22  # 4 MiB of names and provenance; 1,000 classes need about 40 KB
_TYPES = {
    "|u1": h5t.STD_U8LE,
    "|i1": h5t.STD_I8LE,
    "<u2": h5t.STD_U16LE,
    "<u4": h5t.STD_U32LE,
    "<f2": h5t.IEEE_F16LE,
    "<f4": h5t.IEEE_F32LE,
}
_MEMBERS = {  # name: its permitted types and number of axes; in the order of the layout
    "metadata": (("|u1",), 1),
    "labels": (SMALL, 1),
    "domains": (SMALL, 1),
    "split": (("|i1",), 1),
    "text_features": (("<f4",), 2),
    "image_digests": (("|u1",), 2),
    "row_status": (("|u1",), 1),
    "block_crc32": (("<u4",), 1),
    "paths": (("|u1",), 1),
    "features": (("<f2", "<f4"), 2),
}
_OPTIONAL = {"split", "paths", "image_digests"}


@dataclass(frozen=True)
class Place:
    """A dataset: the position of its first byte in the file, its dtype and its shape."""

    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def region(self) -> Region:
        """The bytes of the dataset."""
        return Region(self.offset, math.prod(self.shape) * self.dtype.itemsize)


def lay_out(path: Path, shapes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Place]:
    """Create an HDF5 file with these datasets, contents undefined, after an empty user block.

    shapes   {name: (dtype as "<f2", shape)}
    returns  {name: Place}; the file has its full length, but its disk space is not taken yet

    Every dataset starts at a multiple of 64 bytes, so that mapped numbers are aligned.
    """
    try:
        with h5py.File(
            path,
            "w",
            locking=False,  # disk.lock guards it, and many network disks cannot lock
            userblock_size=BYTES,
            alignment_threshold=1,
            alignment_interval=64,
        ) as file:
            for name in sorted(shapes, key=list(_MEMBERS).index):
                _add(file, name, *shapes[name])
    except RuntimeError as error:  # a failed close; HDF5 gives the reason only in words
        code = re.search(r"errno = (\d+)", str(error))
        raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error
    return read_places(path, path.stat().st_size)


def read_places(path: Path, file_bytes: int) -> dict[str, Place]:
    """The datasets of an untrusted file as {name: Place}.

    Raises CacheError unless there are exactly the datasets of docs/cache-format.md, each in plain
    bytes inside this file, with consistent shapes. Reads no dataset.
    """
    try:
        # No lock: nothing is written through HDF5, and many network disks cannot lock.
        with h5py.File(path, "r", locking=False) as file:
            places = _places(file, path, file_bytes)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        if HDF5_LOCK in str(error):
            raise disk_error(path, OSError(str(error)), file_bytes) from error
        reason = str(error)[:200].strip("'\"")
        raise CacheError(f"{path}: HDF5 cannot read its structure: {reason!r}") from error
    _check_shapes(places, path)
    return places


def _add(file: h5py.File, name: str, kind: str, shape: tuple[int, ...]) -> None:
    creation = h5p.create(h5p.DATASET_CREATE)
    creation.set_layout(h5d.CONTIGUOUS)
    creation.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)  # times would differ between runs
    h5d.create(file.id, name.encode(), _TYPES[kind], h5s.create_simple(shape), creation)


def _places(file: h5py.File, path: Path, file_bytes: int) -> dict[str, Place]:
    if file.userblock_size != BYTES or len(file.attrs):
        raise CacheError(f"{path}: its HDF5 has another user block, or attributes; not a cache")
    if len(file) > len(_MEMBERS):
        raise CacheError(f"{path}: has {len(file)} datasets, more than a cache; not a cache")
    names = set(file)
    odd = (_MEMBERS.keys() - _OPTIONAL - names) | (names - _MEMBERS.keys())
    if odd:
        shown = ", ".join(map(repr, sorted(odd)))[:200]
        raise CacheError(f"{path}: lacks, or should not have, {shown}; not a cache")
    places = {}
    for name in sorted(names):
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise CacheError(f"{path}: {name} is a link to elsewhere; refusing to read it")
        if file.get(name, getclass=True) is not h5py.Dataset:
            raise CacheError(f"{path}: {name} is not a dataset; refusing to read it")
        places[name] = _place(file[name].id, name, path, file_bytes)
    return places


def _place(dataset: h5d.DatasetID, name: str, path: Path, file_bytes: int) -> Place:
    def refuse(what: str) -> CacheError:
        return CacheError(f"{path}: {name} {what}; refusing to read it")

    plan = dataset.get_create_plist()
    if plan.get_external_count():
        raise refuse("keeps its numbers in another file (external storage)")
    if plan.get_layout() == h5d.VIRTUAL:
        raise refuse("is a virtual dataset, made of other files")
    if plan.get_layout() != h5d.CONTIGUOUS or plan.get_nfilters():
        raise refuse("is chunked, compressed or compact, not one run of plain bytes")
    if h5py.h5a.get_num_attrs(dataset):
        raise refuse("has attributes")
    kinds, axes = _MEMBERS[name]
    stored = dataset.get_type()
    kind = next((kind for kind in kinds if stored.equal(_TYPES[kind])), None)
    shape = dataset.shape
    if kind is None or shape is None or len(shape) != axes:
        raise refuse(f"must have {axes} axes of {' or '.join(kinds)}")
    place = Place(dataset.get_offset() or 0, np.dtype(kind), shape)
    offset, nbytes = place.region
    if nbytes == 0 or offset < BYTES:
        raise refuse("is declared but has no bytes in this file")
    if offset + nbytes > file_bytes:
        raise refuse(f"declares {nbytes:,} bytes at {offset:,} of a file of {file_bytes:,}")
    if name == "metadata" and nbytes > METADATA_BYTES:
        raise refuse(f"has {nbytes:,} bytes, more than {METADATA_BYTES:,}")
    return place


def _check_shapes(places: dict[str, Place], path: Path) -> None:
    (rows, width), classes = places["features"].shape, places["text_features"].shape[0]
    wanted = {
        "text_features": (classes, width),
        "image_digests": (rows, DIGEST_BYTES),
        "block_crc32": (-(-rows // BLOCK_ROWS),),
        **dict.fromkeys(("labels", "domains", "split", "row_status"), (rows,)),
    }
    for name, shape in wanted.items():
        if name in places and places[name].shape != shape:
            raise CacheError(
                f"{path}: {name} has shape {places[name].shape}, expected {shape} for features "
                f"({rows}, {width}); refusing to read it"
            )
