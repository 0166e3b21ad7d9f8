"""How much work the stages of the GPU check do."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

CUDA = torch.device("cuda")
Lines = Iterator[dict[str, Any]]
"""What a stage prints, a JSON object each."""


class Size(NamedTuple):
    """The sizes of the stages' work."""

    ceiling: tuple[int, int]  # side of a product, numbers in a copy
    shards: int  # test processes
    tests: str  # pytest -k
    width: int  # of features; 512 is CLIP ViT-B/32's
    rows: int | None  # of the table; None: PACS's
    rounds: int
    replays: int
    trials: int  # of 12 lanes
    pairs: tuple[int, ...]
    steps: tuple[int, int, int, int]  # lanes, steps, batch, classes
    images: int
    batch: int


SIZES = {
    "full": Size((4096, 1 << 28), 6, "", 512, None, 5, 20, 100, (8192, 32768), (12, 20, 32, 7),
                 8192, 256),
    "quick": Size((4096, 1 << 28), 6, "14.3 or graph or again", 512, None, 2, 10, 20, (8192,),
                  (12, 20, 32, 7), 2048, 256),
    "pretend": Size((64, 1 << 12), 1, "graph and outsized", 16, 60, 1, 2, 2, (40,), (2, 2, 5, 3),
                    4, 2),
}  # fmt: skip
