"""Kernels compiled just now and kernels from the cache compute the same bytes."""

import os

from tests.processes import python

RUN = """
import sys
from pathlib import Path
from tests.runs.small_runs import config, run, small
for width, classes, batch in ((12, 4, 8), (130, 9, 32)):
    out = Path(sys.argv[1], str(width))
    table = small(width=width, classes=classes)
    run(table, out, config(batch=batch), backend="numba")
    both = config(batch=batch, mode="FedAtBoth", head="attention", loss="multi-positive")
    run(table, out / "both", both, backend="numba")
    for head, mode in (("cosine", "FedAtTxt"), ("linear", "FedAtImg")):  # these take row lengths
        other = config(batch=batch, mode=mode, head=head, loss="class")
        run(table, out / head, other, backend="numba")
"""


def test_the_run_that_compiles_ends_with_the_bytes_of_later_ones(tmp_path):
    """A run killed before its kernels were kept goes on with others than it began with."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "compiled")}
    for name in ("cold", "warm"):
        python(RUN, tmp_path / name, env=environment)
    for width in (f"{w}{name}" for w in (12, 130) for name in ("", "/both", "/cosine", "/linear")):
        for file in ("rounds.jsonl", "adapter.safetensors"):
            cold, warm = (tmp_path / name / width / file for name in ("cold", "warm"))
            assert cold.read_bytes() == warm.read_bytes(), f"{file} of {width}"
