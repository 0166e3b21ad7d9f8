"""The pins with hashes that run.sh installs on Linux are those of the requirement files."""

import os
import re
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_run_sh import call, project  # noqa: F401, a fixture

LOCKS = [f"{build}{what}.txt" for build in ("cpu", "cuda") for what in ("", "-test")]
PIN = re.compile(r"([A-Za-z0-9_.-]+)==([^\s;]+)(.*)")


def pins(text: str) -> list[tuple[str, str, str]]:
    """(name, version, the rest of its lines) of every requirement that is pinned."""
    lines = text.replace("\\\n", " ").splitlines()
    return [(found[1].lower(), found[2], found[3]) for line in lines if (found := PIN.match(line))]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_every_requirement_at_its_version_and_hashes_for_all(lock):
    found = pins((ROOT / "locks" / lock).read_text())
    assert all("--hash=sha256:" in rest for _, _, rest in found)
    locked = {(name, version.split("+")[0]) for name, version, _ in found}
    files = ["requirements.txt"] + ["requirements-dev.txt"] * ("-test" in lock)
    wanted = {
        (name, version) for file in files for name, version, _ in pins((ROOT / file).read_text())
    }
    assert len(wanted) >= 14
    assert wanted <= locked, "stale: run ./locks/update.sh"


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_is_of_the_build_of_torch_that_its_name_says(lock):
    found = {name: version for name, version, _ in pins((ROOT / "locks" / lock).read_text())}
    cuda = [name for name in found if name.startswith("nvidia-")]
    assert found["torch"].endswith("+cpu") == lock.startswith("cpu") == (not cuda)


@pytest.mark.parametrize("build", ["cpu", "cuda"])
def test_running_and_testing_use_the_same_versions(build):
    running, testing = (
        {pin[:2] for pin in pins((ROOT / "locks" / f"{build}{what}.txt").read_text())}
        for what in ("", "-test")
    )
    assert len(running) > 20 and running <= testing


def wheel(folder: Path, name: str, version: str) -> str:
    """Writes a wheel of one empty module; returns its line in a lock."""
    file = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}=={version} \\\n    --hash=sha256:{sha256(file.read_bytes()).hexdigest()}\n"


@pytest.mark.parametrize("cpu", [True, False], ids=["cpu", "cuda"])
def test_the_build_of_torch_that_pip_finds_decides_and_a_wrong_hash_ends_it(
    project,  # noqa: F811
    tmp_path_factory,
    cpu,
):
    links = tmp_path_factory.mktemp("links")
    line = {build: wheel(links, "torch", f"9.0+{build}") for build in ("cpu", "cuda")}
    for build in ("cpu", "cuda"):
        (project / "locks" / f"{build}.txt").write_text(line[build])
    if not cpu:
        (links / "torch-9.0+cpu-py3-none-any.whl").unlink()
    used = "cpu" if cpu else "cuda"

    where = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(links)}

    def run():
        return call("say", script=project / "run.sh", FEDCLIP_PYTHON="", **where)

    done = run()
    assert done.stdout == "['say']\n", done.stderr
    assert done.stderr.splitlines()[0].startswith(f"installing locks/{used}.txt into .venv")
    assert not run().stderr

    wheel(links, "other", "1.0")
    wrong = f"other==1.0 --hash=sha256:{'0' * 64}\n"
    (project / "locks" / f"{used}.txt").write_text(line[used] + wrong)
    done = run()
    assert done.returncode == 1 and not done.stdout
    assert f"pip could not install locks/{used}.txt" in done.stderr
    assert "0" * 64 in (project / ".venv/pip.log").read_text()
