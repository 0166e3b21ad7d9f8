"""Trees of small images of different content, and reading the words that a refusal advises."""

import io
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from PIL import Image


def picture(seed: object, kind: str = "PNG") -> bytes:
    """A small image that is another for each seed."""
    shade = hash_of(str(seed))
    image = Image.new("RGB", (24, 20), (shade & 255, shade >> 8 & 255, shade >> 16 & 255))
    image.putpixel((0, 0), (shade >> 24 & 255, 0, 0))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def hash_of(text: str) -> int:
    """A number below 2**32, the same in every process."""
    import zlib

    return zlib.crc32(text.encode("utf-8", "surrogateescape"))


def fill(root: Path, paths: Iterable[str]) -> Path:
    """Images at these paths, each of its own content; "{1..3}" in a path makes three."""
    for path in paths:
        for one in _expanded(path):
            file = root / one
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(one))
    return root


def advised_words(message: str) -> list[list[str]]:
    """Each set of options that a refusal names, as words of a command line."""
    option = r"--(?:layout|accept|class-names) (?!FILE)[\w/-]+"
    found = re.findall(rf"{option}(?: {option})*", message)
    return [shlex.split(words) for words in found]


def advised_folders(message: str) -> list[str]:
    """Each folder that a refusal says to name."""
    found = re.findall(r"name the folder (\S+) instead", message)
    for listed in re.findall(r"name (?:one|it): ((?:\S+, )*\S+?)(?:;| and |$)", message):
        found += listed.split(", ")
    return found


def _expanded(path: str) -> list[str]:
    found = re.search(r"\{(\d+)\.\.(\d+)\}", path)
    if not found:
        return [path]
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [one for n in numbers for one in _expanded(path.replace(found[0], str(n), 1))]


CLASSES = ("dog", "cat")


def trees(*names: str, classes=CLASSES, images="{1..2}.jpg") -> list[str]:
    return [f"{name}/{one}/{images}" for name in names for one in classes]
