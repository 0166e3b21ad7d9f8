"""How much longer than most others' an honest client's mean step gets, over kinds of runs.

    python -m tests.reliability.honest_ratios [CACHE.h5]

The rule that leaves outsized clients out (pipeline/federation/methods/guard.py) allows MOST times;
this says how far honest runs stay below. 20 rounds each, the first domain held out; the built-in
data's cache unless one is named.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

from torch import Tensor

from cache.store import read_table
from pipeline.federation.methods import guard
from pipeline.places import HOME
from pipeline.runs.federate import federate
from pipeline.settings import RunConfig

SGD = {"optimizer": "sgd", "loss": "class"}
KINDS = [
    {"optimizer": optimizer, "lr": lr, "loss": loss, "head": head}
    for (optimizer, lr), loss, head in itertools.product(
        (("adam", 5e-5), ("adam", 1e-2), ("adamw", 1e-3), ("sgd", 1e-2), ("sgd", 1.0)),
        ("contrastive", "class"),
        ("low-rank", "attention"),
    )
] + [
    {**SGD, "lr": 1.0, "head": "low-rank", "shots": 1},
    {**SGD, "lr": 1.0, "head": "low-rank", "shots": 2},
    {"lr": 1e-3, "stragglers": 0.5, "local_epochs": 5},
    {**SGD, "lr": 10.0},
    {"lr": 10.0},
    {**SGD, "lr": 1.0, "head": "low-rank", "partition": "dirichlet", "clients": 5, "alpha": 0.05},
    {**SGD, "lr": 0.3, "partition": "quantity", "clients": 5, "alpha": 0.1},
    {"lr": 0.3, "partition": "quantity", "clients": 5, "alpha": 0.1},
]


def ratio(paces: Tensor) -> float:
    """The longest over the upper median of the others, clients that did not move left out."""
    moved = sorted(float(pace) for pace in paces if pace > 0)
    others = moved[:-1]
    return moved[-1] / others[len(others) // 2] if others else 0.0


def main() -> None:
    file = Path(sys.argv[1]) if sys.argv[1:] else HOME / "cache/files/demo-demo.h5"
    table, judged = read_table(file), guard.outsized
    largest = 0.0
    for settings in KINDS:
        seen = [0.0]

        def watched(paces: Tensor, seen: list[float] = seen) -> Tensor:
            seen.append(ratio(paces))
            return judged(paces)

        guard.outsized = watched
        config = RunConfig(held_out=((table.domain_names[0],),), rounds=20, **settings)
        with tempfile.TemporaryDirectory() as folder:
            federate(table, config, runs=Path(folder), out=Path(folder, "run"), device="cpu")
        print(f"{max(seen):8.3f}  {json.dumps(settings)}", flush=True)
        largest = max(largest, *seen)
    print(f"{largest:8.3f}  the largest of {len(KINDS)} kinds; {guard.MOST} is allowed")


if __name__ == "__main__":
    main()
