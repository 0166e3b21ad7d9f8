"""Extraction next to each of its halves alone: decoding images, and encoding decoded images.

On the CPU both halves compete for the same cores, so it can reach their sum, not the slower one.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Times
from benchmarks.rows import Row
from pipeline.datasets.demo.draw import draw_dataset
from pipeline.datasets.tree import ImageTree, scan
from pipeline.encoder.decoding import decoded_images
from pipeline.encoder.model import encode_images, load_model
from pipeline.encoder.pixels import IMAGE_LIMITS
from pipeline.extraction.extract import BATCH, extract
from pipeline.extraction.rows import row_blocks
from pipeline.machine import cores


def run(device: torch.device, quick: bool) -> list[Row]:
    """All rows of `bench extract`, with the built-in drawings and their demo CLIP."""
    repeats = 1 if quick else 5
    model = load_model("demo", device)
    with tempfile.TemporaryDirectory() as folder:
        tree = scan(draw_dataset(Path(folder) / "demo", pictures=400 if quick else 3000))
        cases = ("decode", "encode", "decode, then encode", "extract")
        times = {name: Times() for name in cases}
        for turn in range(repeats + 1):
            once = _once(tree, model, Path(folder) / f"{turn}.h5", device)
            for name, value in once.items():
                if turn:
                    times[name].seconds.append(value / len(tree.paths))
    found = {name: own.quantiles() for name, own in times.items()}
    slower = max(found["decode"]["p50"], found["encode"]["p50"])
    shape = f"{len(tree.paths)} drawings, demo CLIP"
    return [
        Row("extract", name, shape, "image", **own, of_ceiling=slower / own["p50"])
        for name, own in found.items()
    ]  # fmt: skip


def _once(tree: ImageTree, model, out: Path, device: torch.device) -> dict[str, float]:
    """Seconds for decoding alone, encoding alone, and the rows of a whole extraction."""
    batch, rows = BATCH[device.type], len(tree.paths)
    files = [str(tree.root / path) for path in tree.paths]
    started = time.perf_counter()
    with decoded_images(files, model.resolution, workers=cores(), limits=IMAGE_LIMITS) as images:
        pixels = torch.from_numpy(np.stack([image.pixels for image in images]))
    decoded = time.perf_counter()
    for block in row_blocks(range(-(-rows // batch)), batch, rows):
        encode_images(model, pixels[block.start : block.stop])
    encoded = time.perf_counter()
    report = extract(str(tree.root), out=out, device=device.type)
    return {
        "decode": decoded - started,
        "encode": encoded - decoded,
        "decode, then encode": encoded - started,
        "extract": report.seconds["rows"],
    }
