"""Who may import whom: the floors of the house, and one door for each outside package."""

import ast
import functools
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest

from kernels.heads import HEADS
from pipeline.federation.methods import METHODS
from tests.conftest import ROOT

OURS = {
    "cache": set(),
    "kernels": set(),
    "pipeline": {"cache", "kernels"},
    "benchmarks": {"cache", "kernels", "pipeline"},
}
FLOORS = (
    {"errors", "places"},
    {"methods"},  # of federation/: settings and --help read what they are
    {"settings", "settings_used", "files", "json_files", "digests", "machine", "imports",
     "progress", "terminal", "signals", "shortage", "missing", "contained", "frames", "groups",
     "parquet_files", "transfer"},
    {"encoder", "datasets", "federation"},
    {"extraction", "features", "runs"},
    {"sweeps", "flower"},
    {"reports", "cluster"},
    {"cli"},
)  # fmt: skip
"""Rooms of pipeline/. A room imports lower floors only; files beside settings, which are one
room by meaning, each other too."""
METHODS_ROOM = ("federation", "methods")
PURE = {"pathlib", "json", "time", "tqdm", "cache.store"}  # not in federation/
DOORS = {  # outside package -> where it may be imported: folders end with /, stars are for names
    "clip": ("pipeline/encoder/",),
    "click": ("pipeline/cli/", "benchmarks/__main__.py"),
    "flwr": ("pipeline/flower/",),
    "pydantic": ("pipeline/flower/answer.py",),
    "dp_accounting": ("pipeline/federation/methods/privacy.py",),
    "jinja2": ("pipeline/reports/render.py",),
    "markupsafe": ("pipeline/reports/charts/",),
    "h5py": ("cache/container/",),
    "huggingface_hub": ("pipeline/transfer/hub.py",),
    "mlflow": ("pipeline/runs/loggers.py",),
    "wandb": ("pipeline/runs/loggers.py",),
    "jax": ("benchmarks/jax_peer.py",),
    "matplotlib": ("pipeline/reports/figures.py", "benchmarks/plots.py"),
    "numba": ("kernels/cpu/", "kernels/*/cpu*.py", "benchmarks/floor.py"),
    "triton": ("kernels/gpu/", "kernels/*/gpu*.py"),
    "ray": ("pipeline/cluster/",),
    "optuna": ("pipeline/sweeps/bayes.py", "benchmarks/trials.py"),
    "pandas": ("pipeline/frames.py",),
    "pyarrow": ("pipeline/parquet_files.py",),
    "tqdm": ("pipeline/progress.py", "pipeline/extraction/demo_clip.py"),
    "yaml": ("pipeline/sweeps/wandb.py",),
}
FILES = sorted(p for folder in OURS for p in (ROOT / folder).rglob("*.py"))
DOORSTEPS = [ROOT / "pipeline" / f"{name}.py" for name in ("__init__", "__main__")]  # no room


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


@functools.cache
def imported(file: Path, *, types: bool = True) -> list[tuple[str, str]]:
    """(module, name) of every import of a file, anywhere in it; name is "" for `import module`.

    types  with those of `if TYPE_CHECKING:`, which run nothing
    """
    found = []
    body = [node for node in parsed(file).body if types or not _for_types(node)]
    for node in (inner for outer in body for inner in ast.walk(outer)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            found += [(node.module, alias.name) for alias in node.names]
    return found


def _for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def room_of(parts: Sequence[str]) -> str:
    """The room of a file's or module's parts below pipeline."""
    return "methods" if tuple(parts[:2]) == METHODS_ROOM else parts[0].removesuffix(".py")


def floor_of(room: str) -> int:
    return next(at for at, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_keep_to_their_layer_and_door(file):
    here = file.relative_to(ROOT)
    layer = here.parts[0]
    names = imported(file)
    packages = {module.split(".")[0] for module, _ in names}
    assert packages & {"tests", *OURS} <= OURS[layer] | {layer}
    running = {module.split(".")[0] for module, _ in imported(file, types=False)}
    for package, doors in DOORS.items():
        if package in running:
            assert any(_within(here, door) for door in doors), f"{here} imports {package}"
    if layer == "cache":
        assert "torch" not in packages
    private = [
        name for module, name in names if module.split(".")[0] in OURS and name.startswith("_")
    ]
    assert not private, f"{here} imports private names"


def private_uses(tree: ast.Module) -> list[str]:
    """Where code reads a _name through something that it imported: files._inside, Plan._asked."""
    aliases = {
        alias.asname or alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        and (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        in OURS
        for alias in node.names
    }
    return [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in ("_replace", "_fields", "_asdict", "_make")  # a named tuple's own
        and isinstance(root := _root(node.value), ast.Name)
        and root.id in aliases
    ]


def _root(node: ast.expr) -> ast.expr:
    return _root(node.value) if isinstance(node, ast.Attribute) else node


def test_no_private_name_is_read_through_an_import():
    found = {str(file): uses for file in FILES if (uses := private_uses(parsed(file)))}
    assert not found
    code = (
        "from pipeline import files as f\nfrom pipeline.x import A\nf._b, A._fields, f.c._d, x._e"
    )
    assert private_uses(ast.parse(code)) == ["line 3: f._b", "line 3: f.c._d"]


def test_charts_import_the_standard_library_and_markupsafe():
    files = [*(ROOT / "pipeline" / "reports" / "charts").glob("*.py")]
    assert len(files) > 5
    for file in files:
        others = {
            module for module, _ in imported(file)
            if module.split(".")[0] not in {*sys.stdlib_module_names, "markupsafe"}
            and not module.startswith("pipeline.reports.charts")
        }  # fmt: skip
        assert not others, f"{file} imports {others}"


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.parts[len(ROOT.parts)] == "pipeline" and f not in DOORSTEPS],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)  # fmt: skip
def test_rooms_import_lower_floors_only(file):
    room = room_of(file.relative_to(ROOT / "pipeline").parts)
    for module, name in imported(file, types=False):
        parts = f"{module}.{name}".split(".")
        if parts[0] != "pipeline" or room_of(parts[1:]) == room:
            continue
        below, own = floor_of(room_of(parts[1:])), floor_of(room)
        assert below < own or below == own == floor_of("settings"), f"{room} imports {module}"
        if room == "federation":
            assert not PURE & {module, f"{module}.{name}"}


def test_files_have_400_lines_at_most():
    house = [f for f in FILES if f.relative_to(ROOT).parts[0] != "benchmarks"]
    long = {str(f): n for f in house if (n := f.read_text("utf-8").count("\n")) > 400}
    assert not long, "cut them by meaning"


def test_federation_is_pure():
    files = [*(ROOT / "pipeline" / "federation").rglob("*.py")]
    assert len(files) > 20
    for file in files:
        found = {module for module, _ in imported(file)}
        assert not PURE & found, f"{file} imports {PURE & found}"


def test_every_room_has_a_floor_and_every_door_is_used():
    rooms = {p.stem for p in (ROOT / "pipeline").iterdir() if not p.name.startswith("__")}
    assert rooms | {"methods"} == set().union(*FLOORS)
    used = {
        (package, door)
        for file in FILES
        for package in {module.split(".")[0] for module, _ in imported(file)} & DOORS.keys()
        for door in DOORS[package]
        if _within(file.relative_to(ROOT), door)
    }
    assert used == {(package, door) for package, doors in DOORS.items() for door in doors}


OWNERS = {"method": ("pipeline/federation/methods/", METHODS), "head": ("kernels/heads/", HEADS)}
"""Whose names only one folder compares. All else asks what a method or a head does."""
MORE_THAN_METHODS = {"local", "closed-form", "scale"}
"""Names that other things have too: a benchmark, a start, an argument."""
SEARCHES = {"grid", "random", "bayes"}  # what the method of a sweep may be


def comparisons(text: str, word: str, names: Mapping[str, object]) -> list[str]:
    """Where code asks which method (word "method") or which head (word "head") it has.

    Comparisons and `match` of .method, ["method"] or .get("method") with strings or with constants
    (IN_CAPITALS), and methods of strings on them; any comparison with a method's name, whatever
    stands on the other side; and tuples, lists, sets and dicts of names alone, two or more.
    """
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            asks = any(_asks(side, word) for side in sides)
            wrong = word == "method" and _named(sides, names.keys() - MORE_THAN_METHODS)
            wrong |= asks and (_named(sides, names) or any(_constant(s, word) for s in sides))
        elif isinstance(node, ast.Match):
            wrong = _asks(node.subject, word) or (word == "method" and _named([node], names))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            wrong = node.func.attr in dir(str) and _asks(node.func.value, word)
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            wrong = len(node.elts) > 1 and all(_is_name(each, names) for each in node.elts)
        elif isinstance(node, ast.Dict):
            wrong = len(node.keys) > 1 and all(_is_name(key, names) for key in node.keys)
        else:
            continue
        if wrong:
            found.append(f"line {node.lineno}: {ast.unparse(node).splitlines()[0]}")
    return found


def _asks(node: ast.expr, word: str) -> bool:
    match node:
        case ast.Attribute(attr=name):
            return name == word
        case ast.Name(id=name):
            return name == word == "method"  # head is also a loop's variable, of a table's columns
        case ast.Subscript(slice=ast.Constant(value=name)):
            return name == word
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=name), *_]):
            return name == word
        case ast.Call(func=ast.Name(id="str"), args=[inner]):
            return _asks(inner, word)
    return False


def _is_name(node: ast.AST | None, names: Collection[str]) -> bool:
    return isinstance(node, ast.Constant) and node.value in names


def _named(nodes: Sequence[ast.AST], names: Collection[str]) -> bool:
    return any(_is_name(node, names) for each in nodes for node in ast.walk(each))


def _constant(node: ast.expr, word: str) -> bool:
    """Whether it is a string other than a search's, or a constant that may hold names."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value not in SEARCHES
    registry = {"METHODS", "HEADS"}
    return isinstance(node, ast.Name) and node.id.isupper() and node.id not in registry


@pytest.mark.parametrize("word", OWNERS)
def test_only_its_own_folder_compares_a_method_s_or_a_head_s_name(word):
    folder, names = OWNERS[word]
    found = {
        file.relative_to(ROOT).as_posix(): told
        for file in FILES
        if not file.relative_to(ROOT).as_posix().startswith((folder, "benchmarks/"))
        and (told := comparisons(file.read_text("utf-8"), word, names))
    }
    assert not found


@pytest.mark.parametrize(
    "code",
    [
        "c.method == 'median'",
        "'krum' != c.method",
        "c.method in ('median', x)",
        "c.method not in ROBUST",
        "settings['method'] == ZERO_SHOT",
        "str(s['method']) == 'ditto'",
        "s.get('method') == 'ditto'",
        "rule == 'scaffold'",
        "c.method == 'a method to come'",
        "c.method.startswith('fed')",
        "match c.method:\n    case 'median': pass",
        "match rule:\n    case 'median' | 'krum': pass",
        "ROBUST = ('median', 'krum')",
        "ROBUST = {'median', 'rfa'}",
        "why = {'local': 1, 'central': 2}[c.method]",
    ],
)
def test_a_comparison_of_a_method_s_name_is_found(code):
    assert comparisons(code, "method", METHODS)


@pytest.mark.parametrize(
    "code",
    [
        "kind.head == 'cosine'",
        "s['head'] in ('linear', 'x')",
        "match kind.head:\n    case 'linear': pass",
        "LAST = {'attention': 1, 'low-rank': 2}",
        "RANDOM = ('attention', 'linear')",
        "kind.head.startswith('low')",
    ],
)
def test_a_comparison_of_a_head_s_name_is_found(code):
    assert comparisons(code, "head", HEADS)


@pytest.mark.parametrize(
    "code",
    [
        "spec.method == 'grid'",
        "METHODS[c.method].averages",
        "given['method'] = 'median'",
        "name in METHODS",
        "c.method in METHODS",
        "one.method == other.method",
        "c.schedule == 'cosine'",
        "PRESET = {'method': 'fedavgm', 'head': 'cosine'}",
    ],
)
def test_other_uses_of_the_words_are_left_alone(code):
    assert not comparisons(code, "method", METHODS) + comparisons(code, "head", HEADS)


def _within(here: Path, door: str) -> bool:
    return here.as_posix().startswith(door) if door.endswith("/") else here.match(door)


@functools.cache
def defined(file: Path) -> set[str]:
    """Names that a module has at its top level, in any branch."""
    found: set[str] = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
    return found


def test_every_name_imported_from_us_exists():
    """Scripts that no test runs included: a moved function leaves none of them behind."""
    missing = []
    for file in [*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").rglob("*.py")]:
        for module, name in imported(file):
            if module.split(".")[0] not in {*OURS, "tests", "docs"}:
                continue
            place = ROOT.joinpath(*module.split("."))
            source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            submodule = place / name if name else place
            if name and (submodule.is_dir() or submodule.with_suffix(".py").is_file()):
                continue
            if not source.is_file() or (
                name
                and name not in defined(source) | {"__getattr__"}
                and "__getattr__" not in defined(source)
            ):
                missing.append(f"{file.relative_to(ROOT)}: {module} {name}")
    assert not missing
