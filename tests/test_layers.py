"""Who may import whom: the floors of the house, and one door for each outside package."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

OURS = {
    "cache": set(),
    "kernels": set(),
    "pipeline": {"cache", "kernels"},
    "benchmarks": {"cache", "kernels", "pipeline"},
}
FLOORS = (
    {"errors", "places"},
    {"settings", "settings_used", "files", "plain_files", "json_files", "digests", "machine",
     "progress", "terminal", "signals", "shortage", "cores", "missing", "transfer"},
    {"encoder", "datasets", "federation"},
    {"extraction", "runs"},
    {"sweeps", "flower"},
    {"reports"},
    {"cli"},
)  # fmt: skip
"""Rooms of pipeline/. A room imports lower floors only; files of the second floor, which are one
room by meaning, each other too."""
PURE = {"pathlib", "json", "time", "tqdm", "cache.store"}  # not in federation/
DOORS = {  # outside package -> where it may be imported: folders end with /, stars are for names
    "clip": ("pipeline/encoder/",),
    "click": ("pipeline/cli/", "benchmarks/__main__.py"),
    "flwr": ("pipeline/flower/",),
    "dp_accounting": ("pipeline/federation/methods/privacy.py",),
    "markupsafe": ("pipeline/reports/charts/",),
    "h5py": ("cache/container/",),
    "numba": ("kernels/cpu/", "kernels/*/cpu*.py"),
    "triton": ("kernels/gpu/", "kernels/*/gpu*.py"),
    "optuna": ("pipeline/sweeps/bayes.py",),
    "tqdm": ("pipeline/progress.py", "pipeline/extraction/demo_clip.py"),
    "yaml": ("pipeline/sweeps/yaml_file.py",),
}
FILES = sorted(p for folder in OURS for p in (ROOT / folder).rglob("*.py"))


def imported(file: Path) -> list[tuple[str, str]]:
    """(module, name) of every import of a file, anywhere in it; name is "" for `import module`."""
    found = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            found += [(node.module, alias.name) for alias in node.names]
    return found


def floor_of(room: str) -> int:
    return next(at for at, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_keep_to_their_layer_and_door(file):
    here = file.relative_to(ROOT)
    layer = here.parts[0]
    names = imported(file)
    packages = {module.split(".")[0] for module, _ in names}
    assert packages & {"tests", *OURS} <= OURS[layer] | {layer}
    for package, doors in DOORS.items():
        if package in packages:
            assert any(_within(here, door) for door in doors), f"{here} imports {package}"
    if layer == "cache":
        assert "torch" not in packages
    private = [
        name for module, name in names if module.split(".")[0] in OURS and name.startswith("_")
    ]
    assert not private, f"{here} imports private names"


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.parts[len(ROOT.parts)] == "pipeline"],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)  # fmt: skip
def test_rooms_import_lower_floors_only(file):
    room = file.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return
    for module, name in imported(file):
        parts = f"{module}.{name}".split(".")
        if parts[0] != "pipeline" or parts[1] == room:
            continue
        below, own = floor_of(parts[1]), floor_of(room)
        assert below < own or below == own == 1, f"{room} imports {module}"
        if room == "federation":
            assert not PURE & {module, f"{module}.{name}"}


def test_federation_is_pure():
    for file in (ROOT / "pipeline" / "federation").rglob("*.py"):
        found = {module for module, _ in imported(file)}
        assert not PURE & found, f"{file} imports {PURE & found}"


def test_every_room_has_a_floor_and_every_door_is_used():
    rooms = {p.stem for p in (ROOT / "pipeline").iterdir() if not p.name.startswith("__")}
    assert rooms == set().union(*FLOORS)
    used = {
        (package, door)
        for file in FILES
        for package in {module.split(".")[0] for module, _ in imported(file)} & DOORS.keys()
        for door in DOORS[package]
        if _within(file.relative_to(ROOT), door)
    }
    assert used == {(package, door) for package, doors in DOORS.items() for door in doors}


def _within(here: Path, door: str) -> bool:
    return here.as_posix().startswith(door) if door.endswith("/") else here.match(door)
