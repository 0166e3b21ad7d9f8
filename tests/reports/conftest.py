"""What several tests of reports share."""

from pathlib import Path

import pytest

from tests.reports.report_folders import real_run
from tests.reports.table_folders import ACCURACIES, ZERO, made, result


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run trained on a small table."""
    return real_run(tmp_path_factory.mktemp("report"))


@pytest.fixture
def runs(tmp_path):
    """krum in a run for each held-out domain, fedavg in one run for both; four seeds short."""
    for (method, seed), by_domain in ACCURACIES.items():
        folds = [result(d, value, ZERO[d]) for d, value in by_domain.items()]
        parts = [folds] if method == "fedavg" else [[fold] for fold in folds]
        for at, part in enumerate(parts):
            made(tmp_path / "runs" / f"{method}{seed}{at}", part, seed, method=method)
    return tmp_path / "runs"
