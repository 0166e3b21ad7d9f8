"""The certificates and keys of docs/flower.md, made by the commands that it shows."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


def openssl(*words: object) -> subprocess.CompletedProcess[str]:
    """What openssl says. Skips the test where it is missing, or not OpenSSL 3."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    version = subprocess.run([program, "version"], capture_output=True, text=True, check=True)
    if not re.match(r"OpenSSL ([3-9]|\d\d)", version.stdout):
        pytest.skip(f"docs/flower.md needs OpenSSL 3, this is {version.stdout.strip()}")
    command = [program, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def make(folder: Path, sites: int = 3) -> Path:
    """ca.crt, server.pem, server.key, and site-<n> and site-<n>.pub, in a new folder.

    Raises CalledProcessError for a folder that is there.
    """
    openssl("version")
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    page = (ROOT / "docs" / "flower.md").read_text("utf-8")
    (shown,) = re.findall(r"^```sh\n(\(mkdir -m 700 certificates .*?)^```", page, re.M | re.S)
    for old, new in (
        ("700 certificates && cd certificates", f"700 {folder.name} && cd {folder.name}"),
        ("for n in 1 2 3;", f"for n in {' '.join(map(str, range(1, sites + 1)))};"),
    ):
        assert old in shown
        shown = shown.replace(old, new)
    subprocess.run(["sh", "-c", shown], cwd=folder.parent, capture_output=True, check=True)
    return folder
