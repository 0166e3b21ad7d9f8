"""Where things lie when no option says otherwise, from the folder of the project."""

from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
DATA = HOME / "data"
CACHES = HOME / "cache" / "files"
RUNS = HOME / "runs"
