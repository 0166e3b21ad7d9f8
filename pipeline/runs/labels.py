"""The name and tags of a run or a sweep, in label.json beside its other files.

They do not affect results: config.json, the run_id and the digests in `done` leave them out, so a
finished run can be named later.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.json_files import content_of, read_object, replace_file

FILE = "label.json"
LONGEST = 100  # characters of a name or a tag


@dataclass(frozen=True)
class Label:
    """A name, None without one, and tags in the order in which they were given."""

    name: str | None = None
    tags: tuple[str, ...] = ()


def label_of(name: str | None, tags: Sequence[str] = ()) -> Label:
    """Makes a label; a repeated tag counts once.

    Raises ConfigError for an empty, overlong or unprintable name or tag.
    """
    for option, word in (("--name", name), *(("--tag", tag) for tag in tags)):
        if word is not None and not (word.strip() and word.isprintable() and len(word) <= LONGEST):
            raise ConfigError(
                f"{option} {word[:LONGEST]!r}: pass 1 to {LONGEST} printable characters"
            )
    return Label(name, tuple(dict.fromkeys(tags)))


def write_label(folder: Path, label: Label) -> None:
    """Replaces the name if one is given, and the tags if some are; keeps the rest.

    Raises ConfigError if the label cannot be written.
    """
    if label == Label():
        return
    try:
        there = read_label(folder)
    except ConfigError:  # a damaged one is replaced
        there = Label()
    found = {"name": label.name or there.name, "tags": list(label.tags or there.tags)}
    replace_file(folder / FILE, (json.dumps(found, indent=2) + "\n").encode())


def read_label(folder: Path) -> Label:
    """The label of a folder, empty where it has none; ConfigError for a damaged one."""
    file = folder / FILE
    if not file.exists():
        return Label()
    found = read_object(file)
    with content_of(file):
        name, tags = found["name"], found["tags"]
        if not (name is None or isinstance(name, str)) or not isinstance(tags, list):
            raise TypeError("name is not text, or tags are not a list")
        return Label(name, tuple(map(str, tags)))
