"""Read files of torch.save and torch.jit.save as tensors by name, running none of their code."""

import functools
import math
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pipeline.encoder.tensor_pickle import (
    MOST_BYTES,
    DamagedFile,
    Module,
    Storage,
    Stored,
    UnsafePickle,
    read_pickle,
)

# Largest size of an archive's unpacked members, as a multiple of the file's size. Weights do not
# compress, and torch stores them uncompressed; code is compressed to about a fifth.
MOST_UNPACKED = 4
SMALL = 16 << 20
MOST_TENSORS = 10_000  # a ViT-bigG has a thousand
MOST_ATTRIBUTES = 200_000  # of all modules of an archive; an RN50x64 has about ten thousand
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # in training checkpoints
DEEPEST = 32
LONGEST_NAME = 1000
MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER, of files before torch 1.6
Read = Callable[[Storage], torch.Tensor]  # all numbers of a storage, read once


def read_zip(path: Path) -> Any:
    """The content of an archive by torch.save or torch.jit.save, with its tensors.

    A TorchScript module gives the dict of torch.jit.load(path).state_dict(): of each
    module the parameters and buffers that its class in code/ lists. If the archive has no code
    for a class, all tensors of its objects. Only data.pkl, byteorder, data/* and the lists in code/
    are read; nothing is run, and only `path` is opened.

    Raises UnsafePickle and DamagedFile, and what zipfile raises for a damaged archive.
    """
    with zipfile.ZipFile(path) as archive:
        members = _members(archive, path.stat().st_size)
        found = [name for name in members if re.fullmatch(r"[^/]*/data\.pkl", name)]
        if len(found) != 1:
            raise DamagedFile(
                f"a zip with {len(found)} members */data.pkl, expected one in an archive of torch"
            )
        folder = found[0].removesuffix("data.pkl")
        if members[found[0]].file_size > MOST_BYTES:
            raise UnsafePickle(
                f"has a data.pkl of {members[found[0]].file_size:,} bytes; not loaded"
            )
        value, _ = read_pickle(BytesIO(archive.read(found[0])))
        order = archive.read(folder + "byteorder") if folder + "byteorder" in members else b"little"
        if order not in (b"little", b"big"):
            raise DamagedFile(f"its byteorder is {order[:20]!r}")

        @functools.cache
        def read(storage: Storage) -> torch.Tensor:
            name = f"{folder}data/{storage.key}"
            if name not in members:
                raise DamagedFile(f"an archive without {name}")
            if members[name].file_size != _bytes(storage):
                raise DamagedFile(
                    f"{name} has {members[name].file_size:,} bytes, {_bytes(storage):,} are "
                    "declared"
                )
            return _numbers(storage, bytearray(archive.read(name)), order.decode())

        if isinstance(value, Module):
            value = dict(_tensors_of(value, _listed(archive, members, folder + "code/")))
        return _filled(value, read, path.stat().st_size)


def read_stream(path: Path) -> Any:
    """The content of a file by torch.save before torch 1.6: pickles, then the storages' bytes.

    Raises UnsafePickle and DamagedFile.
    """
    with path.open("rb") as file:
        pickles = BytesIO(file.read(MOST_BYTES))
        if read_pickle(pickles)[0] != MAGIC:
            raise DamagedFile("a pickle that torch.save did not write")
        read_pickle(pickles)  # torch's protocol, 1001 in all versions
        system, _ = read_pickle(pickles)
        little = not isinstance(system, dict) or system.get("little_endian", True) is True
        order = "little" if little else "big"
        value, storages = read_pickle(pickles)
        keys, _ = read_pickle(pickles)
        places = _places(file, pickles.tell(), path.stat().st_size, keys, storages)

        @functools.cache
        def read(storage: Storage) -> torch.Tensor:
            start, size = places.get(storage.key, (0, -1))
            if size != _bytes(storage):
                raise DamagedFile(
                    f"storage {storage.key} has {max(size, 0):,} bytes, {_bytes(storage):,} are "
                    "declared"
                )
            file.seek(start)
            return _numbers(storage, bytearray(file.read(size)), order)

        return _filled(value, read, path.stat().st_size)


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    members = {one.filename: one for one in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise DamagedFile("a zip with two members of the same name")
    for one in members.values():
        if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DamagedFile(f"a zip whose members are compressed by method {one.compress_type}")
        if one.compress_type == zipfile.ZIP_STORED and one.file_size != one.compress_size:
            raise DamagedFile("a zip with a stored member of two sizes")
    packed = sum(one.compress_size for one in members.values())
    unpacked = sum(one.file_size for one in members.values())
    if packed > size or unpacked > MOST_UNPACKED * size + SMALL:
        raise DamagedFile(f"a zip whose members declare {unpacked:,} bytes; it has {size:,}")
    return members


def _listed(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], folder: str
) -> dict[str, set[str]]:
    """{class: its parameters and buffers}, from the two lists at the start of each class in code/.

    Other attributes can be tensors too. The text is searched for the lists, not interpreted.
    """
    found: dict[str, set[str]] = {}
    for member in members:
        if not (member.startswith(folder) and member.endswith(".py")):
            continue
        module = member.removeprefix(folder).removesuffix(".py").replace("/", ".")
        names: set[str] = set()
        for line in archive.read(member).decode("utf-8", "replace").splitlines():
            begins = re.match(r"class (\w+)\(", line)
            listed = re.match(r"  __(?:parameters|buffers)__ = (\[.*\])$", line)
            if begins:
                names = found.setdefault(f"{module}.{begins[1]}", set())
            elif listed:
                names.update(re.findall(r'"([^"]*)"', listed[1]))
    return found


def _tensors_of(root: Module, listed: dict[str, set[str]]) -> Iterator[tuple[str, Stored]]:
    waiting, seen = [("", root, 0)], 0
    while waiting:
        prefix, module, depth = waiting.pop()
        seen += len(module.attributes) + 1
        # A module may be in several places, or in itself: few bytes can declare endless names.
        if seen > MOST_ATTRIBUTES or depth > DEEPEST or len(prefix) > LONGEST_NAME:
            raise UnsafePickle("nests its modules endlessly; not loaded")
        names = listed.get(module.kind)
        for name, value in module.attributes.items():
            if isinstance(value, Module):
                waiting.append((f"{prefix}{name}.", value, depth + 1))
            elif isinstance(value, Stored) and (names is None or name in names):
                yield f"{prefix}{name}", value


def _places(
    file: BinaryIO, at: int, end: int, keys: Any, storages: dict[str, Storage]
) -> dict[str, tuple[int, int]]:
    """{key: (position, bytes)} of a stream's storages, each 8 bytes of count and the numbers."""
    if not isinstance(keys, list):
        raise DamagedFile("its storages are not listed")
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        if not isinstance(key, str) or key not in storages:
            raise DamagedFile("it lists a storage that no tensor uses")
        file.seek(at)
        size = int.from_bytes(file.read(8), "little") * _width(storages[key].dtype)
        if at + 8 + size > end:
            raise DamagedFile(f"storage {key} ends beyond the file; incomplete")
        places[key] = at + 8, size
        at += 8 + size
    return places


def _filled(value: Any, read: Read, most: int) -> Any:
    """A tensor, or a dict, perhaps under WRAPPERS, with its Stored values as tensors."""
    for _ in range(DEEPEST):
        inner = [value[n] for n in WRAPPERS if isinstance(value, dict) and n in value]
        value = next((one for one in inner if isinstance(one, dict)), value)
    if isinstance(value, Stored):
        return _filled({"tensor": value}, read, most)["tensor"]
    if not isinstance(value, dict):
        return value
    stored = [one for one in value.values() if isinstance(one, Stored)]
    size = sum(math.prod(one.size) * _width(one.storage.dtype) for one in stored)
    if len(value) > MOST_TENSORS or size > MOST_UNPACKED * most + SMALL:
        raise UnsafePickle(f"declares {len(value):,} tensors of {size:,} bytes; not loaded")
    return {
        name: _tensor(str(name), one, read) if isinstance(one, Stored) else one
        for name, one in value.items()
    }


def _tensor(name: str, stored: Stored, read: Read) -> torch.Tensor:
    storage, size, stride = stored.storage, stored.size, stored.stride
    if math.prod(size) > storage.count:
        raise UnsafePickle(f"has more numbers in {name[:80]} than in its storage; not loaded")
    last = stored.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= storage.count:
        raise UnsafePickle(f"has {name[:80]} outside its storage; not loaded")
    whole = read(storage)
    if not math.prod(size):
        return torch.empty(size, dtype=whole.dtype)
    return whole.as_strided(size, stride, stored.offset)


def _numbers(storage: Storage, data: bytearray, order: str) -> torch.Tensor:
    dtype = getattr(torch, storage.dtype)
    if len(data) != _bytes(storage):
        raise DamagedFile(f"storage {storage.key} is cut off")
    if not data:
        return torch.empty(0, dtype=dtype)
    if storage.dtype == "bool":
        return torch.frombuffer(data, dtype=torch.uint8) != 0
    if order != sys.byteorder:
        one_a_row = torch.frombuffer(data, dtype=torch.uint8).view(-1, dtype.itemsize)
        data = bytearray(one_a_row.flip(1).numpy())
    return torch.frombuffer(data, dtype=dtype)


def _width(dtype: str) -> int:
    return getattr(torch, dtype).itemsize


def _bytes(storage: Storage) -> int:
    return storage.count * _width(storage.dtype)
