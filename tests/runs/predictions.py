"""Images, a small CLIP and a run of each kind, and what `predict` answers with them."""

from pathlib import Path

import torch

from cache.store import read_table
from pipeline.encoder.model import load_model
from pipeline.runs.adapters import read_trained
from pipeline.runs.federate import federate
from pipeline.runs.predict import choose_classes, find_pictures, predict
from pipeline.settings import RunConfig
from tests.encoder import clips
from tests.extraction.extraction import draw_tree, run

CPU = torch.device("cpu")
PROMPTS = ("a picture of a {}", "{}, drawn")
RUNS = {
    "released": {},
    "text": {"mode": "FedAtTxt", "head": "low-rank", "rank": 3},
    "both": {"mode": "FedAtBoth", "head": "clip-adapter"},
    "cosine": {"mode": "FedAtTxt", "head": "cosine"},
    "ditto": {"method": "ditto", "held_out": (("photo",),)},
    "local": {"method": "local", "held_out": ((),)},
    "scale": {"method": "rfa", "mode": "FedAtBoth", "head": "scale", "lr": 0.1},
    "zero-shot": {"method": "zero-shot"},
}


def make_runs(folder: Path) -> Path:
    """Images, the weights of a small CLIP, another one's, and a run of each of RUNS."""
    draw_tree(folder)
    clips.save(clips.build(), folder / "small.pt", "state dict")
    clips.save(clips.build(seed=1), folder / "other.pt", "state dict")
    run(folder / "images", folder / "small.pt", folder / "c.h5", store="fp32", templates=PROMPTS)
    table = read_table(folder / "c.h5")
    for name, settings in RUNS.items():
        both = {"held_out": (("art",), ("photo",)), "rounds": 3, "batch": 4, "lr": 0.02}
        federate(table, RunConfig(**both | settings), runs=folder, out=folder / name, device="cpu")
    return folder


def answers(made, name, held_out=None, client=None, classes=None, top=5, images="images"):
    trained = read_trained(made / name, held_out, client)
    clip = load_model(str(made / "small.pt"), CPU)
    files, lost = find_pictures([str(made / images)])
    assert not lost
    return files, list(predict(files, trained, clip, choose_classes(trained, classes), top=top))
