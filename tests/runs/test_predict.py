"""predict against clip image by image and the slow twins; what it refuses, and what people give."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cache.store import read_table
from kernels.heads.plain import named
from pipeline.encoder.model import import_clip, load_model
from pipeline.errors import ConfigError
from pipeline.runs.adapters import load_its_model, read_trained
from pipeline.runs.federate import federate
from pipeline.runs.predict import choose_classes, find_pictures, predict
from pipeline.settings import RunConfig
from tests.cli.commands import call, refused
from tests.encoder import clips
from tests.extraction.extraction import draw_tree, run
from tests.naive import heads as naive_heads
from tests.runs.predictions import CPU, PROMPTS, RUNS, answers


def plain_clip(made, files, names):
    """Features of every image by itself, and of every class, with clip's own functions."""
    clip = import_clip()
    module = clips.build().float()
    transform = clip.clip._transform(clips.RESOLUTION)
    with torch.no_grad():
        images = [
            module.encode_image(transform(Image.open(file).convert("RGB"))[None])[0]
            for file in files
        ]
        texts = [
            module.encode_text(clip.tokenize([p.replace("{}", name) for name in names]))
            for p in PROMPTS
        ]
    units = [naive_heads.unit(text.double().numpy()) for text in texts]
    return torch.stack(images).double().numpy(), np.mean(units, axis=0)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_a_picture_that_needs_a_converter_says_so_when_it_is_named(made):
    file = made / "photo.heic"
    file.write_bytes(b"\0\0\0\x18ftypheic")
    (answer,) = answers(made, "released", "art", images="photo.heic")[1]
    assert answer.error == "HEIC needs a converter: save it as JPEG or PNG"
    Image.new("RGB", (9, 9)).save(file, "PNG")  # only named so
    (answer,) = answers(made, "released", "art", images="photo.heic")[1]
    assert answer.error is None


@pytest.mark.parametrize(
    ("name", "classes"),
    [("released", None), ("released", "otter,dog,a red bus"), ("text", "otter,cat"),
     ("both", None), ("both", "x,y,z"), ("cosine", None), ("cosine", "dog,cat"),
     ("scale", "otter,cat")],
)  # fmt: skip
def test_answers_and_confidences_equal_the_twin_on_plain_clip(made, name, classes):
    files, found = answers(made, name, "art", classes=classes)
    trained = read_trained(made / name, "art")
    names = tuple((classes or "cat,dog").split(","))
    x, text = plain_clip(made, files, names)
    parts = {n: p.double().numpy() for n, p in named(trained.kind, trained.row).items()}
    if name == "cosine":
        parts["text_w"] = parts["text_w"][[("cat", "dog").index(n) for n in names]]
    scale = load_model(str(made / "small.pt"), CPU).logit_scale
    setting = RUNS[name]
    mode, head = setting.get("mode", "FedAtImg"), setting.get("head", "attention")
    expected = softmax(naive_heads.logits(mode, head, parts, x, text, scale))
    zero_shot = softmax(scale * naive_heads.unit(x) @ naive_heads.unit(text).T)
    assert len(found) == len(files) == 23
    for one, ref, plain in zip(found, expected, zero_shot, strict=True):
        for guesses, numbers in ((one.adapter, ref), (one.zero_shot, plain)):
            told = {guess.class_name: guess.confidence for guess in guesses}
            np.testing.assert_allclose([told[n] for n in names], numbers, atol=5e-4)
            assert [g.confidence for g in guesses] == sorted(told.values(), reverse=True)
    assert not np.allclose(expected, zero_shot, atol=5e-3)  # the adapter did something


def test_the_class_is_what_the_run_answered_on_its_cache(made):
    """Accuracy over the held-out domain equals what the run itself reports as unseen."""
    for held_out in ("art", "photo"):
        files, found = answers(made, "released", held_out, top=1, images=f"images/{held_out}")
        results = json.loads((made / "released" / "summary.json").read_text())["results"]
        (result,) = [one for one in results if one["held_out"] == held_out]
        for guesses, unseen in (
            ([a.adapter for a in found], result["unseen"]),
            ([a.zero_shot for a in found], result["zero_shot"]["unseen"]),
        ):
            right = [g[0].class_name == f.parent.name for g, f in zip(guesses, files, strict=True)]
            assert np.mean(right) == pytest.approx(unseen)


def test_other_classes(made):
    trained = read_trained(made / "cosine", "art")
    with pytest.raises(ConfigError, match="otter.*was trained on cat, dog"):
        choose_classes(trained, "cat,otter")
    free = read_trained(made / "released", "art")
    assert choose_classes(free, " otter , dog,") == ("otter", "dog")
    for words, match in (("", "or more classes"), ("a", "or more classes"), ("a,b,a", "twice"),
                         ("a,\x1b[2J", "printable")):  # fmt: skip
        with pytest.raises(ConfigError, match=match):
            choose_classes(free, words)


def test_folders_globs_and_what_leads_nowhere(tmp_path, monkeypatch):
    for name in ("a/2.png", "a/1.JPG", "a/deep/3.webp", "a/.hidden.png", "a/.git/4.png", "a/n.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "void").mkdir()
    (tmp_path / "[odd].png").touch()
    long = "x" * 5000
    words = [
        "a",
        "a/*.png",
        "a/n.txt",
        "**/*.webp",
        "[odd].png",
        "void",
        "no*",
        "",
        "none.png",
        long,
    ]
    monkeypatch.chdir(tmp_path)
    files, lost = find_pictures(words)
    assert [str(f) for f in files] == [
        "a/1.JPG",
        "a/2.png",
        "a/deep/3.webp",
        "a/n.txt",
        "[odd].png",
    ]
    assert [one.error.split(",")[0] for one in lost] == [
        "no image in this folder", "no such file", "an empty path", "no such file",
        "no such file",
    ]  # fmt: skip


def test_the_command_answers_the_good_ones_and_names_the_bad(made, tmp_path):
    good = tmp_path / "good.png"
    shutil.copy(next((made / "images/art/cat").iterdir()), good)
    (tmp_path / "bad.png").write_text("<html>")
    (tmp_path / "empty\x1b.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    words = ["predict", tmp_path, tmp_path / "gone.png", "--run", made / "released",
             "--held-out", "art", "--model", made / "small.pt", "--device", "cpu"]  # fmt: skip
    done = call(*words, "--json", code=6)
    document = json.loads(done.stdout)
    by_name = {one["image"].rsplit("/", 1)[-1]: one for one in document["answers"]}
    assert by_name["good.png"]["error"] is None and len(by_name["good.png"]["adapter"]) == 1
    for name, why in (("bad.png", "not an image"), ("empty\x1b.png", "0 bytes"),
                      ("pipe.png", "not a regular"), ("gone.png", "no such file")):  # fmt: skip
        assert why in by_name[name]["error"] and not by_name[name]["adapter"]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: 4 of 5 images could not be classified: ") and "bad.png" in last
    shown = call(*words, "--top", 9, code=6)
    assert "\x1b" not in shown.output and r"empty\x1b.png" in shown.stdout
    assert shown.stdout.count("cat") == shown.stdout.count("dog") == 2  # all classes, both columns
    call("predict", good, *words[3:])
    refused("predict", tmp_path / "gone.png", *words[3:], code=6, match="1 of 1.*gone.png")
    refused("predict", good, "--run", made / "released", code=1, match="--held-out art or photo")
    refused("predict", good, *words[3:7], "--model", made / "other.pt", code=3, match="weights")
    refused("predict", good, *words[3:], "--classes", "a," + "long " * 99, code=7, match="prompt")
    call("predict", good, "--held-out", "art", code=2)
    call("predict", good, *words[3:], "--top", 0, code=2)


@pytest.mark.parametrize("kind", ["RN", "ViT"])
def test_the_cached_row_is_the_encoded_image(kind, tmp_path):
    """A ResNet's adapter is 24 wide as well: features of predict and of the cache are alike."""
    draw_tree(tmp_path)
    clips.save(clips.build(kind), tmp_path / "m.pt", "state dict")
    run(tmp_path / "images", tmp_path / "m.pt", tmp_path / "c.h5", store="fp32")
    table = read_table(tmp_path / "c.h5")
    config = RunConfig(held_out=(("photo",),), rounds=1, batch=4)
    federate(table, config, runs=tmp_path, out=tmp_path / "run", device="cpu")
    trained = read_trained(tmp_path / "run")
    clip = load_its_model(trained, str(tmp_path / "m.pt"), CPU)
    files, _ = find_pictures([str(tmp_path / "images")])
    found = [a.zero_shot[0].confidence for a in predict(files, trained, clip)]
    z = naive_heads.unit(table.features) @ naive_heads.unit(table.text_features).T
    np.testing.assert_allclose(found, softmax(z * table.logit_scale).max(axis=1), atol=1e-4)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "1.png").touch()
    (tmp_path / "open" / "shut").mkdir()
    scandir = os.scandir

    def refuse(path):  # chmod would not stop root
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    files, lost = find_pictures([str(tmp_path / "open")])
    assert [file.name for file in files] == ["1.png"]
    assert [(one.image.name, one.error) for one in lost] == [("shut", "Permission denied")]
