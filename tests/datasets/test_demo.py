"""The built-in data is drawn alike everywhere and survives kills; its CLIP is small and no sage."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.datasets.demo.draw import PICTURES, draw_dataset, draw_picture, picture_counts
from pipeline.datasets.demo.shapes import SHAPES
from pipeline.datasets.demo.styles import STYLES
from pipeline.datasets.find import find_folder
from pipeline.encoder.model import encode_images, encode_prompts, import_clip, load_model
from pipeline.encoder.pixels import load_pixels
from pipeline.encoder.weights import WEIGHTS, read_state_dict
from pipeline.errors import DataError
from pipeline.extraction import demo_clip as train
from tests.conftest import ROOT

FEW = 60
CPU = torch.device("cpu")


def digests(folder: Path) -> dict[str, str]:
    """Every file below the folder, by its path, and what is in it."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def normal(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """800 pictures of the default data set: each class's first, in the default's proportions."""
    return draw_dataset(tmp_path_factory.mktemp("demo") / "data", pictures=800)


def test_drawing_twice_gives_the_same_bytes_with_any_number_of_workers(drawn, tmp_path):
    alone = draw_dataset(tmp_path / "alone", pictures=800, workers=1)
    assert digests(alone) == digests(drawn)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EAGAIN, "Resource temporarily unavailable"), OSError(errno.ENOSPC, "/dev/shm"),
     RuntimeError("can't start new thread"), ImportError("no semaphores")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
@pytest.mark.parametrize("at", ["__init__", "map"])
def test_where_no_process_can_be_started_this_one_draws(tmp_path, monkeypatch, error, at):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(f"pipeline.datasets.demo.draw.ProcessPoolExecutor.{at}", refuse)
    monkeypatch.setattr("pipeline.datasets.demo.draw.ALONE", 10)
    alone = draw_dataset(tmp_path / "alone", pictures=FEW, workers=1)
    assert digests(draw_dataset(tmp_path / "x", pictures=FEW, workers=2)) == digests(alone)


def test_a_picture_that_cannot_be_written_is_named_and_a_lack_of_processes_is_not(
    tmp_path, monkeypatch
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pipeline.datasets.demo.draw.ALONE", 10**6)  # this process draws
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(DataError, match=r"demo: .*\.png: No space left on device; check space"):
            find_folder("demo", tmp_path)
    monkeypatch.setattr("pipeline.datasets.demo.draw._missing", full)
    with pytest.raises(OSError, match="No space") as caught:
        find_folder("demo", tmp_path)
    assert not isinstance(caught.value, DataError)


def test_another_seed_draws_other_pictures(tmp_path):
    one, other = (draw_dataset(tmp_path / str(n), seed=n, pictures=FEW) for n in (0, 1))
    assert not set(digests(one).values()) & set(digests(other).values())


def test_every_class_is_in_every_domain_and_clients_are_ragged(drawn):
    counts = picture_counts(PICTURES)
    assert sum(counts.values()) == PICTURES and min(counts.values()) > 30
    assert list(counts) == [(d, c) for d in sorted(STYLES) for c in sorted(SHAPES)]
    per_domain = [sum(n for (d, _), n in counts.items() if d == domain) for domain in STYLES]
    assert len(set(per_domain)) == len(STYLES)
    files = {path: len(list(drawn.glob(f"{path[0]}/{path[1]}/*.png"))) for path in counts}
    assert files == picture_counts(800)


def test_too_few_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 28"):
        draw_dataset(tmp_path / "data", pictures=27)


def test_a_finished_drawing_is_left_alone(tmp_path):
    folder = draw_dataset(tmp_path / "data", pictures=FEW)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    assert draw_dataset(folder, pictures=FEW) == folder
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_what_is_missing_is_drawn_and_what_is_left_over_goes(tmp_path):
    folder = draw_dataset(tmp_path / "data", pictures=FEW)
    whole = digests(folder)
    lost = sorted(folder.rglob("*.png"))[7]
    lost.replace(lost.with_name(lost.name + ".partial"))
    assert digests(draw_dataset(folder, pictures=FEW)) == whole


def test_an_unfinished_drawing_of_another_seed_is_not_taken_for_this_one(tmp_path):
    folder = draw_dataset(tmp_path / "data", seed=1, pictures=FEW)
    record = tmp_path / "data.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"finished": False}))
    lost = sorted(folder.rglob("*.png"))[3]
    lost.unlink()
    wanted = digests(draw_dataset(tmp_path / "other", pictures=FEW))
    assert digests(draw_dataset(folder, pictures=FEW)) == wanted


def test_pictures_of_somebody_else_are_not_touched(tmp_path):
    own = tmp_path / "data" / "sketch" / "house" / "0001.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    with pytest.raises(ValueError, match="name another folder"):
        draw_dataset(tmp_path / "data", pictures=FEW)
    assert own.read_bytes() == b"mine" and len(list(tmp_path.rglob("*.png"))) == 1


@pytest.mark.parametrize("pause", [0.0, 0.15])
def test_a_killed_drawing_is_completed(drawn, tmp_path, pause):
    folder = tmp_path / "data"
    code = (
        f"from pathlib import Path; from pipeline.datasets.demo.draw import draw_dataset; "
        f"draw_dataset(Path({str(folder)!r}), pictures=800, workers=2)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while not any(folder.rglob("*.png")):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(pause)
        record = json.loads((tmp_path / "data.json").read_text())
    finally:
        child.kill()
        child.wait()
    assert not record["finished"]
    assert digests(draw_dataset(folder, pictures=800)) == digests(drawn)


def test_domains_differ_in_what_they_are_drawn_with(drawn):
    """Sketches have little colour, cartoons the most; flat fills have the fewest edges of grain."""
    saturation, grain = {}, {}
    for domain in STYLES:
        files = sorted((drawn / domain).rglob("*.png"))[::4]
        pixels = np.stack([np.asarray(Image.open(file), dtype=float) for file in files])
        saturation[domain] = np.mean(pixels.max(axis=3) - pixels.min(axis=3))
        grain[domain] = np.median(np.abs(np.diff(pixels, axis=2)))
    assert saturation["sketch"] < 0.5 * min(saturation[d] for d in STYLES if d != "sketch")
    assert saturation["cartoon"] > max(saturation[d] for d in STYLES if d != "cartoon")
    assert grain["cartoon"] < min(grain[d] for d in STYLES if d != "cartoon")


def test_the_clip_was_trained_on_other_drawings():
    def digest(seed: int, domain: str, thing: str, number: int) -> bytes:
        return hashlib.sha256(draw_picture(domain, thing, seed, number)[0].tobytes()).digest()

    kinds = [(d, c, n) for d in STYLES for c in SHAPES for n in range(4)]
    tested, trained = ({digest(seed, *kind) for kind in kinds} for seed in (0, train.SEED))
    assert len(tested) == len(trained) == len(kinds) and not tested & trained


def test_the_weights_are_small_and_in_openai_layout():
    state = read_state_dict(WEIGHTS).state
    assert WEIGHTS.stat().st_size <= 8_000_000
    assert all(tensor.dtype == torch.float16 for tensor in state.values())
    model = import_clip().model.build_model(dict(state))
    assert set(state) == set(model.state_dict())
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    assert state["token_embedding.weight"].shape == (49408, 64)


def test_words_that_no_caption_has_still_differ():
    rows = read_state_dict(WEIGHTS).state["token_embedding.weight"].float()
    some = rows[torch.arange(0, len(rows), 97)]
    alike = normal(some) @ normal(some).T
    assert (alike - torch.eye(len(some))).abs().max() < 0.9


def test_zero_shot_is_neither_lost_nor_saturated_in_any_domain(drawn):
    model = load_model("demo", CPU)
    prompts = torch.from_numpy(encode_prompts(model, sorted(SHAPES), ["a picture of a {}"]))
    for domain in STYLES:
        files = sorted((drawn / domain).rglob("*.png"))
        pixels = torch.from_numpy(np.stack([load_pixels(file, model.resolution) for file in files]))
        features = encode_images(model, pixels)
        assert torch.isfinite(features).all() and 1 < features.norm(dim=1).mean() < 30
        answers = (normal(features) @ normal(prompts).T).argmax(1)
        truth = torch.tensor([sorted(SHAPES).index(file.parent.name) for file in files])
        accuracy = (answers == truth).float().mean().item()
        spread = 3 * 0.5 / len(files) ** 0.5  # three standard deviations of a share of so many
        assert 0.5 - spread < accuracy < 0.85 + spread, f"{domain}: {accuracy:.3f}"


def test_the_training_script_writes_weights_that_load(tmp_path):
    out = tmp_path / "tiny.safetensors"
    command = [sys.executable, "-m", "pipeline.extraction.demo_clip", "--out", str(out)]
    run = subprocess.run(
        [*command, "--steps", "2", "--pictures", "140"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    state = read_state_dict(out).state
    assert set(state) == set(import_clip().model.build_model(dict(state)).state_dict())
    assert out.stat().st_size <= 8_000_000
