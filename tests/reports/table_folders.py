"""Made runs and sweeps for tables: any accuracies, settings, data sets and names."""

import json
from pathlib import Path

from pipeline.digests import digests_of, sealed
from pipeline.settings import run_id

SIDES = ("unseen", "participants", "overall")


def result(held_out: str | None, accuracy: float, zero_shot: float = 0.5) -> dict:
    """An entry of `results`: unseen is the accuracy, participants and overall above it."""

    def figures(value: float) -> dict:
        unseen = None if held_out is None else value
        return {"unseen": unseen, "participants": value + 0.01, "overall": value + 0.005,
                "val_accuracy": value, "per_domain": {held_out or "x": value}}  # fmt: skip

    return {"held_out": held_out, "best_round": 0, "gate": None, **figures(accuracy),
            "zero_shot": figures(zero_shot)}  # fmt: skip


def facts(dataset: object = "made", model: object = "ViT-B/32", content: str = "0" * 64) -> dict:
    """What a run says of its cache."""
    return {"rows": 9, "width": 4, "classes": 3, "domains": ["x"], "dataset": dataset,
            "model": model, "content_sha256": content}  # fmt: skip


def made(folder: Path, results: list[dict], seed: int = 0, cache: dict | None = None,
         finished: bool = True, **settings) -> Path:  # fmt: skip
    """A run's folder with these results."""
    folder.mkdir(parents=True, exist_ok=True)
    held_out = [[each["held_out"]] if each["held_out"] else [] for each in results]
    described = {"settings": {"held_out": held_out, "method": "fedavg", "seed": seed, **settings},
                 "cache": cache or facts(), "backend": "torch", "device": "cpu"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "rounds.jsonl").touch()
    if finished:
        summary = {"cache": described["cache"], "results": results, "seconds": {"train": 1}}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "done").write_text(digests_of(folder))
    return folder


def swept(folder: Path, trials: list[dict], cache: dict | None = None, **base) -> Path:
    """A sweep's folder; a trial has settings, seed, status, val_accuracy and results."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = {"base": {"held_out": [["x"]], "method": "fedavg", **base}, "cache": cache or facts()}
    (folder / "spec.json").write_text(json.dumps(sealed(spec)))
    lines = []
    for number, trial in enumerate(trials):
        id = run_id({**trial["settings"], "seed": trial["seed"]})
        whole = {"id": id, "number": number, "status": "done", "rounds": 1, "seconds": 1.0,
                 "results": [], "val_accuracy": None, "error": None, **trial}  # fmt: skip
        lines.append(json.dumps(sealed(whole)) + "\n")
    (folder / "trials.jsonl").write_text("".join(lines))
    return folder


def cells(found, **wanted) -> list[dict]:
    return [one for one in found if all(one[name] == value for name, value in wanted.items())]


def cell(found, **wanted) -> dict:
    (one,) = cells(found, **wanted)
    return one


ACCURACIES = {
    ("fedavg", 0): {"photo": 0.61, "sketch": 0.50}, ("fedavg", 1): {"photo": 0.63, "sketch": 0.56},
    ("fedavg", 2): {"photo": 0.62, "sketch": 0.55}, ("krum", 0): {"photo": 0.70, "sketch": 0.50},
    ("krum", 1): {"photo": 0.72, "sketch": 0.52},
}  # fmt: skip
ZERO = {"photo": 0.6, "sketch": 0.4}
