"""Unpacking a zip from strangers: nothing outside its folder, all of it or nothing."""

import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from pipeline.errors import DataError
from pipeline.progress import progress_bar

MAX_MEMBERS = 2_000_000
MAX_RATIO = 100  # unpacked bytes a byte of the archive; images hardly shrink, deflate can do 1,030
_AGAIN = "delete it and download it again"
UNSOUND = (  # what zipfile and its decompressors raise of damaged bytes
    zipfile.BadZipFile, EOFError, RuntimeError, ValueError, LookupError, OverflowError,
    struct.error, zlib.error, lzma.LZMAError,
)  # fmt: skip
_SLACK = 1 << 20  # a tiny archive of texts may shrink well


def check_free(folder: Path) -> None:
    """Raise DataError when there is something at `folder` that unpacking would mix with."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"{folder} is there already and not empty; move it away and run again")


def check_archive(archive: Path) -> None:
    """Reads every member of a zip against its CRC and its declared size; nothing is written.

    Raises DataError as unpack does.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in _checked(archive, opened, archive.parent):
                _copy(opened, member, None)
    except (*UNSOUND, OSError) as error:  # OSError: of bz2
        raise _unsound(archive, error) from error


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the zip `archive` as the new folder `folder`, which appears whole or not at all.

    Members go to `<folder>.unpacking` first; what a killed call left there is cleared away.
    A single top folder that is called like `folder` becomes `folder` itself.

    Raises DataError, with nothing published, for a file that is not a valid zip; a member that
    would leave its folder, is a link or a device, is encrypted or there twice; declared sizes
    over 100 times the archive's; a member that is not as long as it declares; a full disk; a
    `folder` that is already there with something in it.
    """
    archive, folder = Path(archive), Path(folder)
    check_free(folder)
    part = folder.with_name(f"{folder.name}.unpacking")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{part}.lock", timeout=0):
            if part.exists():
                shutil.rmtree(part)
            try:
                with zipfile.ZipFile(archive) as opened:
                    members = _checked(archive, opened, folder.parent)
                    part.mkdir()
                    _write(archive, opened, members, part)
                if folder.exists():
                    folder.rmdir()
                tops = list(part.iterdir())
                single = [top.name for top in tops] == [folder.name] and tops[0].is_dir()
                (tops[0] if single else part).replace(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except Timeout:
        raise DataError(f"{folder}: another process is unpacking it now; wait for it") from None
    except UNSOUND as error:
        raise _unsound(archive, error) from error
    except OSError as error:
        raise DataError(f"{archive} cannot be unpacked to {folder}: {error}") from error


def sound_members(archive: Path, opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The members of a zip, if all have names and sizes that unpack takes; nothing is unpacked.

    Raises DataError naming the first that has not.
    """
    members = opened.infolist()
    if len(members) > MAX_MEMBERS:
        raise DataError(f"{archive} has {len(members):,} members, over {MAX_MEMBERS:,}; refused")
    seen: set[str] = set()
    for member in members:
        trouble = _trouble(member)
        path = member.filename.rstrip("/")
        if trouble is None and path in seen:
            trouble = "is there twice"
        if trouble:
            raise DataError(
                f"{archive}: its member {ascii(member.orig_filename)} {trouble}; nothing unpacked, "
                f"take the archive from its authors"
            )
        seen.add(path)
    size, unpacked = archive.stat().st_size, sum(member.file_size for member in members)
    if unpacked > MAX_RATIO * size + _SLACK:
        raise DataError(
            f"{archive} declares {unpacked:,} bytes unpacked, over {MAX_RATIO} times its own "
            f"{size:,}; nothing unpacked, take the archive from its authors"
        )
    return members


def _checked(archive: Path, opened: zipfile.ZipFile, parent: Path) -> list[zipfile.ZipInfo]:
    members = sound_members(archive, opened)
    unpacked = sum(member.file_size for member in members)
    free = shutil.disk_usage(parent).free
    if unpacked > free:
        raise DataError(f"{archive} needs {unpacked:,} bytes in {parent}, and {free:,} are free")
    return members


def _trouble(member: zipfile.ZipInfo) -> str | None:
    """Why a member is refused, or None; the name is read as any system might read it."""
    name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
    parts = name.removesuffix("/").split("/")
    if "\\" in name or "\0" in name:
        return "has a backslash or a zero byte in its name"
    if name.startswith("/") or ":" in name:
        return "has an absolute path or a drive in its name"
    if any(part.strip(" .") == "" for part in parts):
        return "has an empty or dotted part in its path"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, not a file"
    if member.flag_bits & 1:
        return "is encrypted"
    return None


def _write(
    archive: Path, opened: zipfile.ZipFile, members: list[zipfile.ZipInfo], part: Path
) -> None:
    for member in progress_bar(
        iterable=members, desc=f"unpack {archive.name}", unit=" files", leave=True, disable=None
    ):
        path = part / member.filename
        if member.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        # "x": two names that are one on this file system must not write over each other.
        with path.open("xb") as target:
            _copy(opened, member, target)


def _copy(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: BinaryIO | None) -> None:
    """A member's bytes to `target`, or nowhere; zipfile compares their CRC at their end."""
    written = 0
    with opened.open(member) as source:
        while block := source.read(1 << 20):
            written += len(block)
            if target is not None:
                target.write(block)
    if written != member.file_size:
        raise zipfile.BadZipFile(
            f"{member.filename} has {written:,} bytes and declares {member.file_size:,}"
        )


def _unsound(archive: Path, error: Exception) -> DataError:
    why = "".join(c for c in str(error) if c.isprintable()) or type(error).__name__
    return DataError(f"{archive} is not a valid zip archive ({why}); {_AGAIN}")
