"""Data sets in one or a few files: a zip left zipped, webdataset tars, Hugging Face parquet."""

import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.contained import in_parquet, in_tar, in_zip
from pipeline.datasets.counts import plain
from pipeline.datasets.image_files import IMAGE_EXTENSIONS, Folder
from pipeline.datasets.layouts import guess, no_images, split_of
from pipeline.datasets.tree import MOST_ROWS, ImageTree, Row, as_tree, listed_tree
from pipeline.errors import DataError
from pipeline.parquet_files import open_parquet
from pipeline.terminal import printable
from pipeline.transfer.unpack import UNSOUND, sound_members

_MOST_TEXT = 1 << 20  # of a .cls or .json beside an image
_LABELS = ("label", "class", "category", "labels", "fine_label", "cls", "target")


def read_zip(file: Path, layout: str | None) -> tuple[ImageTree, Folder]:
    """The rows of a zip's images in a stated layout, or in the one guessed; nothing is unpacked.

    A top folder that holds everything is removed while it has the name of the zip, or holds only
    folders of folders.

    returns  the rows, and what read_folder would find in the folder of the zip's content
    Raises DataError for what transfer.unpack would refuse and for a zip without images,
    UnclearLayout for one that fits no layout.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = sound_members(file, archive)
    except (*UNSOUND, OSError) as error:
        raise DataError(f"{printable(file)}: is not a valid zip archive ({error})") from error
    top = Folder()
    for member in sorted(members, key=lambda one: one.filename):
        if not member.is_dir():
            _put(top, member.filename)
    prefix = ""
    while len(top.folders) == 1 and not top.images:
        ((name, inner),) = top.folders.items()
        same = plain(name) == plain(file.stem)
        if not (inner.folders and (same or any(one.folders for one in inner.folders.values()))):
            break
        if not same and any(one.images for one in inner.folders.values()):
            break
        prefix, top = f"{prefix}{name}/", Folder(inner.images, inner.folders, top.left_out)
    if not top.images and not top.folders:
        raise DataError(no_images(file, top.left_out))
    tree = as_tree(file, top, layout or guess(file, top))
    return replace(tree, places=tuple(in_zip(file, prefix + path) for path in tree.paths)), top


def read_tars(root: Path, files: Sequence[Path], say: Callable[[str], None]) -> ImageTree:
    """Read webdataset shards: images, each with its label in a .cls or .json beside it.

    Without these, an image's folder in the tar is its class. A .json may have domain and split; the
    file's name may give a split. Raises DataError for compressed tars, captions without labels, and
    members that are not regular files.
    """
    rows: list[Row] = []
    ignored: list[str] = []
    for file in files:
        found, left = _rows_of_tar(file)
        rows += found
        ignored += left
        if len(rows) > MOST_ROWS:
            raise DataError(f"{printable(root)}: has over {MOST_ROWS:,} images")
    say(f"{printable(root)}: {len(files)} tar files, {len(rows):,} images with labels")
    return listed_tree(root, rows, "webdataset", ignored)


def read_parquets(root: Path, files: Sequence[Path], say: Callable[[str], None]) -> ImageTree:
    """Read Hugging Face tables: columns of images and labels, perhaps of domain and split.

    Class names come from the schema's ClassLabel. A file's name gives its split.
    Raises DataError for missing columns and for images outside the table.
    """
    rows: list[Row] = []
    names: list[str] = []
    for file in files:
        found, named = _rows_of_parquet(file, root)
        if names and named != names:
            raise DataError(f"{printable(file)}: its class names differ from {files[0].name}'s")
        names = named
        rows += found
    say(f"{printable(root)}: {len(files)} parquet files, {len(rows):,} images")
    return listed_tree(root, rows, "parquet", class_names=names)


def _put(top: Folder, path: str) -> None:
    *folders, name = path.split("/")
    hidden = any(part.startswith((".", "__MACOSX")) for part in (*folders, name))
    if hidden or not name.lower().endswith(IMAGE_EXTENSIONS):
        top.left_out.append(path)
        return
    here = top
    for folder in folders:
        here = here.folders.setdefault(folder, Folder())
    here.images.append(name)


def _rows_of_tar(file: Path) -> tuple[list[Row], list[str]]:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    shown, size = printable(file), file.stat().st_size
    rows: list[Row] = []
    ignored: list[str] = []
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    if not member.isdir():
                        ignored.append(f"{file.name}/{member.name}")
                    continue
                key, _, suffix = member.name.removeprefix("./").rpartition("/")[2].partition(".")
                folder = str(PurePosixPath(member.name.removeprefix("./")).parent)
                samples.setdefault(f"{folder}/{key}", {})[f".{suffix.lower()}"] = member
                if member.offset_data + member.size > size or len(samples) > MOST_ROWS:
                    raise DataError(f"{shown}: {printable(member.name)} ends beyond the file")
            for key, parts in samples.items():
                rows += _sample(file, archive, key, parts, ignored)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        packed = file.suffix.lower() in (".gz", ".tgz", ".bz2", ".xz")
        what = "is compressed; decompress it" if packed else f"is not a valid tar ({error})"
        raise DataError(f"{shown}: {what}") from error
    if samples and not rows:
        texts = any(".txt" in parts for parts in samples.values())
        why = " but captions (.txt)" if texts else ""
        raise DataError(
            f'{shown}: its images have no label{why}; put a .cls or a .json with "label" '
            "beside each, or use a folder for each class"
        )
    return rows, ignored


def _sample(
    file: Path, archive: tarfile.TarFile, key: str, parts: dict[str, tarfile.TarInfo],
    ignored: list[str],
) -> list[Row]:  # fmt: skip
    suffix = next((one for one in parts if one.endswith(IMAGE_EXTENSIONS)), None)
    if suffix is None:
        ignored.extend(f"{file.name}/{member.name}" for member in parts.values())
        return []
    facts = _facts(archive, parts)
    folder = PurePosixPath(key).parent.name
    label = next(
        (facts[name] for name in _LABELS if isinstance(facts.get(name), str | int)), folder
    )
    if label in ("", "."):
        return []
    image = parts[suffix]
    split = facts.get("split") or re.split(r"[-_.]", file.name)[0]
    return [
        Row(
            str(facts.get("domain", "")),
            split_of(str(split)),
            str(label),
            f"{file.name}/{image.name.removeprefix('./')}",
            in_tar(file, image.offset_data, image.size),
        )
    ]


def _facts(archive: tarfile.TarFile, parts: dict[str, tarfile.TarInfo]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for suffix in (".json", ".cls"):
        member = parts.get(suffix)
        if member is None or member.size > _MOST_TEXT:
            continue
        opened = archive.extractfile(member)
        text = opened.read().decode("utf-8", "replace") if opened else ""
        if suffix == ".cls":
            found["label"] = text.strip()
            continue
        try:
            facts = json.loads(text)
        except (ValueError, RecursionError):
            continue
        found |= facts if isinstance(facts, dict) else {}
    return found


def _rows_of_parquet(file: Path, root: Path) -> tuple[list[Row], list[str]]:
    opened = open_parquet(file)
    schema = opened.schema_arrow
    image = _image_column(schema, file)
    label = next((name for name in _LABELS if name in schema.names), None)
    if label is None:
        raise DataError(
            f"{printable(file)}: no column of labels among {', '.join(schema.names)[:200]}; "
            f"{', '.join(_LABELS)} are known"
        )
    names = _class_label(schema, label)
    base = file.parent if root.is_file() else root
    wanted = [label, *(name for name in ("domain", "split") if name in schema.names)]
    by_file = split_of(re.split(r"[-_.]", file.name)[0])
    rows = []
    for group in range(opened.num_row_groups):
        columns = opened.read_row_group(group, wanted).to_pydict()
        for row, value in enumerate(columns[label]):
            split = split_of(str(columns["split"][row])) if "split" in columns else by_file
            rows.append(
                Row(
                    str(columns["domain"][row]) if "domain" in columns else "",
                    split,
                    _label(value, names, file, row),
                    f"{file.relative_to(base).as_posix()}/{group:04}-{row:06}",
                    in_parquet(file, image, group, row),
                )
            )
    return rows, names


def _image_column(schema: Any, file: Path) -> str:
    """The column of images: bytes, or Hugging Face's {bytes, path}."""
    kinds = {name: str(schema.field(name).type) for name in schema.names}
    fitting = [n for n, kind in kinds.items() if kind == "binary" or "bytes: binary" in kind]
    if not fitting:
        shown = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())[:200]
        raise DataError(f"{printable(file)}: no column of images among {shown}")
    return "image" if "image" in fitting else fitting[0]


def _class_label(schema: Any, column: str) -> list[str]:
    """The names in Hugging Face's own description of a column; [] if there is none."""
    try:
        facts = json.loads((schema.metadata or {})[b"huggingface"])
        names = facts["info"]["features"][column]["names"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return []
    sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if sound and len(set(names)) == len(names) else []


def _label(value: Any, names: Sequence[str], file: Path, row: int) -> str:
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, int) or value < 0 or (names and value >= len(names)):
        raise DataError(f"{printable(file)}: row {row:,} of a group has the label {value!r:.40}")
    return names[value] if names else str(value)
