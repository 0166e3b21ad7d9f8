"""Extraction beside its two halves alone: decoding the images, and encoding decoded ones.

On the CPU both halves want the same cores, so it can reach their sum and not the slower one.
"""

import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from benchmarks.measure import Times
from benchmarks.rows import Row
from pipeline.blocks import Images, start_worker
from pipeline.clip_model import encode_images, load_model
from pipeline.cores import cores
from pipeline.demo.draw import draw_dataset
from pipeline.domains import ImageTree, scan
from pipeline.encode_rows import row_ranges
from pipeline.extract import BATCH, extract


def run(device: torch.device, quick: bool) -> list[Row]:
    """All rows of `bench extract`, with the built-in drawings and the CLIP that belongs to them."""
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
    """Seconds of decoding alone, encoding alone, and the rows of a whole extraction."""
    batch, rows = BATCH[device.type], len(tree.paths)
    numbers = list(range(-(-rows // batch)))
    started = time.perf_counter()
    blocks = list(
        DataLoader(Images(tree.root, tree.paths, model.resolution), batch_size=None,
                   sampler=row_ranges(numbers, batch, rows, batch), num_workers=cores(),
                   worker_init_fn=start_worker)
    )  # fmt: skip
    decoded = time.perf_counter()
    for block in blocks:
        encode_images(model, torch.as_tensor(block.pixels)).cpu()
    encoded = time.perf_counter()
    report = extract(str(tree.root), out=out, device=device.type, say=lambda line: None)
    return {
        "decode": decoded - started,
        "encode": encoded - decoded,
        "decode, then encode": encoded - started,
        "extract": report.seconds["rows"],
    }
