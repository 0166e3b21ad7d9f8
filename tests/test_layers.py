"""Who may import whom: layers of our own, and one door for each outside package."""

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
DOORS = {  # outside package -> the files that may import it
    "clip": {"pipeline/clip_model.py"},
    "click": {
        "benchmarks/__main__.py",
        "pipeline/cli.py",
        "pipeline/cli_cache.py",
        "pipeline/cli_check.py",
        "pipeline/cli_dry_run.py",
        "pipeline/cli_flower.py",
        "pipeline/cli_merge.py",
        "pipeline/cli_predict.py",
        "pipeline/cli_report.py",
        "pipeline/cli_reproduce.py",
        "pipeline/cli_shared.py",
        "pipeline/cli_sweep.py",
        "pipeline/options.py",
    },
    "flwr": {"pipeline/flower_app.py"},
    "dp_accounting": {"pipeline/privacy.py"},
    "markupsafe": {"pipeline/svg.py"},
    "h5py": {"cache/layout.py"},
    "numba": {
        "kernels/adapter_loss_numba.py",
        "kernels/adapter_step_numba.py",
        "kernels/adapter_top1_numba.py",
        "kernels/contrastive_numba.py",
        "kernels/heads_numba.py",
        "kernels/lane_numba.py",
        "kernels/losses_numba.py",
        "kernels/numba_cache.py",
        "kernels/numba_math.py",
        "kernels/numba_matmul.py",
        "kernels/optimizers_numba.py",
        "kernels/rows_numba.py",
    },
    "triton": {
        "kernels/adapter_step_kernels_triton.py",
        "kernels/adapter_step_triton.py",
        "kernels/adapter_top1_triton.py",
        "kernels/adapter_triton.py",
        "kernels/contrastive_kernels_triton.py",
        "kernels/contrastive_triton.py",
    },
    "tqdm": {"pipeline/demo/train.py", "pipeline/progress.py"},
    "optuna": {"pipeline/search_bayes.py"},
    "yaml": {"pipeline/sweep_yaml.py"},
}
FILES = sorted(p for folder in OURS for p in (ROOT / folder).rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_keep_to_their_layer_and_door(file):
    here = file.relative_to(ROOT).as_posix()
    layer = here.split("/")[0]
    packages = {name.split(".")[0] for name in imported(file)}
    assert packages & {"tests", *OURS} <= OURS[layer] | {layer}
    for package, files in DOORS.items():
        assert package not in packages or here in files, f"{here} imports {package}"
    if layer == "cache":
        assert "torch" not in packages


def test_every_door_is_used():
    for package, files in DOORS.items():
        for file in files:
            assert package in {name.split(".")[0] for name in imported(ROOT / file)}, file
