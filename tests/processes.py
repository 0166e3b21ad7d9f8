"""Python in a process of its own, as a test needs it for what is imported or limited there."""

import subprocess
import sys

from tests.conftest import ROOT


def python(code: str, *arguments: object, **options) -> str:
    """What code prints that ends well, in our folder; options of subprocess.run change that."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 600, **options},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
