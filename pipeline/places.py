"""Default folders, below that of the project."""

from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
DATA = HOME / "data"
CACHES = HOME / "cache" / "files"
RUNS = HOME / "runs"
