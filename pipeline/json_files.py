"""JSON files, read so that unexpected content ends in a one-line error."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from pipeline.errors import ConfigError
from pipeline.files import LOG, OBJECT, read_plain, remove_temporary, replace_whole

LARGEST = 1e30
STRANGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)


def read_object(file: Path, way_out: str = "") -> dict[str, Any]:
    """Reads the JSON object that a file holds.

    way_out  the end of an error's message: what to do
    Raises ConfigError for anything else.
    """
    end = f"; {way_out}" if way_out else ""
    try:
        found = json.loads(read_plain(file, OBJECT))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be read as JSON ({_reason(error)}){end}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: holds a {type(found).__name__}, not a JSON object{end}")
    return found


def read_lines(file: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Reads the objects of a file of JSON lines, and notes on it for people.

    An unterminated last line, as a kill leaves it, is left out with a note. Raises ConfigError for
    any other line that is not a JSON object.
    """
    *lines, last = read_plain(file, LOG).split(b"\n")
    notes = [f"The last line of {file.name} is cut off and was left out."] if last else []
    found = []
    for at, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{file}: line {at} is not JSON ({_reason(error)})") from error
        if not isinstance(value, dict):
            raise ConfigError(f"{file}: line {at} holds a {type(value).__name__}, not an object")
        found.append(value)
    return found, notes


@contextmanager
def content_of(file: Path) -> Iterator[None]:
    """Turns any error caused by the content of `file` into a ConfigError that names it."""
    try:
        yield
    except STRANGE as error:
        raise ConfigError(
            f"{file}: is not what this program writes ({type(error).__name__}: {error}); recreate "
            "it with the command that wrote it"
        ) from error


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value from JSON is a number; true and false, ones to Python, are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def fraction(value: object) -> float | None:
    """A float; None for null, NaN, Inf and what is too large to draw.

    Raises TypeError for anything that is not a number.
    """
    if value is None:
        return None
    if not is_number(value):
        raise TypeError(f"a number was expected, {str(value)[:60]!r} found")
    return float(value) if abs(value) <= LARGEST else None


def whole(value: object) -> int:
    """A number that counts something. Raises TypeError or ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"a whole number was expected, {str(value)[:60]!r} found")
    if not 0 <= value <= 10**12:
        raise ValueError(f"a count was expected, {str(value)[:60]} found")
    return value


def word(value: object) -> str:
    """A setting as a person types it: 5e-05, FedAtImg, [a, b]; a dash for none."""
    if value is None:
        return "\u2013"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def replace_file(file: Path, content: bytes) -> Path:
    """Replaces a file atomically. Raises ConfigError if it cannot be written."""
    try:
        remove_temporary(file.parent, file.name)
        replace_whole(file, content)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({_reason(error)})") from error
    return file


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
