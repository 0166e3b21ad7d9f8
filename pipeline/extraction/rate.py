"""The measured speed of an extraction, kept beside the cache as <cache>.rate.json.

Not in the cache, which contains no times, so that a resumed extraction gives the same bytes.
"""

import contextlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.json_files import content_of, read_object, replace_file, whole


@dataclass(frozen=True)
class Rate:
    """The speed of one extraction: images in seconds, including decoding, on this device."""

    images: int
    seconds: float
    device: str

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds


def keep_rate(cache: Path, content_sha256: str, rate: Rate) -> None:
    """Write it beside the cache with this content; on disk errors only the rate is lost."""
    text = json.dumps({"content_sha256": content_sha256, **asdict(rate)}, indent=1)
    with contextlib.suppress(ConfigError):
        replace_file(_file(cache), text.encode())


def read_rate(cache: Path, content_sha256: str) -> Rate | None:
    """The rate at which the cache with this content was made; None if no valid file records it."""
    file = _file(cache)
    if not file.exists():
        return None
    try:
        found = read_object(file)
        with content_of(file):
            rate = Rate(whole(found["images"]), float(found["seconds"]), str(found["device"]))
            sound = rate.images and 0 < rate.seconds < math.inf
            return rate if sound and found["content_sha256"] == content_sha256 else None
    except ConfigError:  # not worth failing a report for
        return None


def _file(cache: Path) -> Path:
    return cache.with_name(cache.name + ".rate.json")
