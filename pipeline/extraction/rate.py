"""How fast a cache was extracted, as measured: kept beside it as <cache>.rate.json.

Not in the cache, which has no times in it, so that a resumed extraction ends with the same bytes.
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
    """One extraction's measure: images in seconds, decoding included, on this device."""

    images: int
    seconds: float
    device: str

    @property
    def per_second(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def keep_rate(cache: Path, content_sha256: str, rate: Rate) -> None:
    """Writes it beside the cache whose content this is; a disk that refuses costs the rate only."""
    text = json.dumps({"content_sha256": content_sha256, **asdict(rate)}, indent=1)
    with contextlib.suppress(ConfigError):
        replace_file(_file(cache), text.encode())


def read_rate(cache: Path, content_sha256: str) -> Rate | None:
    """The rate at which the cache with this content was made; None where no file tells of it."""
    file = _file(cache)
    if not file.exists():
        return None
    try:
        found = read_object(file)
        with content_of(file):
            rate = Rate(whole(found["images"]), float(found["seconds"]), str(found["device"]))
            sound = rate.images and 0 < rate.seconds < math.inf
            return rate if sound and found["content_sha256"] == content_sha256 else None
    except ConfigError:  # a report has other things to tell than this
        return None


def _file(cache: Path) -> Path:
    return cache.with_name(cache.name + ".rate.json")
