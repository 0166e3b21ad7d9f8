"""predict against clip image by image and the slow twins; what it refuses, and what people give."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from cache.store import read_table
from cache.table import StaleCache
from kernels.heads import named
from pipeline.clip_model import import_clip, load_model
from pipeline.config import ConfigError, RunConfig
from pipeline.federate import federate
from pipeline.predict import choose_classes, find_pictures, predict
from pipeline.run_folder import read_adapters, write_adapters
from pipeline.trained import load_its_model, read_trained
from tests import clips, naive_heads
from tests.extraction import draw_tree, run
from tests.test_cli import call, refused
from tests.test_federate import small

CPU = torch.device("cpu")
PROMPTS = ("a picture of a {}", "{}, drawn")
RUNS = {
    "released": {},
    "text": {"mode": "FedAtTxt", "head": "low-rank", "rank": 3},
    "both": {"mode": "FedAtBoth", "head": "clip-adapter"},
    "cosine": {"mode": "FedAtTxt", "head": "cosine"},
    "ditto": {"method": "ditto", "held_out": (("photo",),)},
    "local": {"method": "local", "held_out": ((),)},
    "zero-shot": {"method": "zero-shot"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images, the weights of a small CLIP, another one's, and a run of each of RUNS."""
    folder = tmp_path_factory.mktemp("predict")
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


@pytest.mark.parametrize(
    ("name", "classes"),
    [("released", None), ("released", "otter,dog,a red bus"), ("text", "otter,cat"),
     ("both", None), ("both", "x,y,z"), ("cosine", None), ("cosine", "dog,cat")],
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


def test_which_adapter_of_several(made):
    with pytest.raises(ConfigError, match="--held-out art or photo"):
        read_trained(made / "released")
    with pytest.raises(ConfigError, match="--held-out sketch: .* has art, photo"):
        read_trained(made / "released", "sketch")
    with pytest.raises(ConfigError, match="--client art or photo"):
        read_trained(made / "local")
    with pytest.raises(ConfigError, match="--client nobody: .* has art, photo"):
        read_trained(made / "local", "none", "nobody")
    tensors, facts = read_adapters(made / "local" / "adapter.safetensors")
    at = [one["clients"] for one in facts["adapters"]].index(["photo"])
    mine = read_trained(made / "local", client="photo")
    assert torch.equal(named(mine.kind, mine.row)["w1"], tensors["best.w1"][at])
    for_all = read_trained(made / "ditto")  # the federated one; a client's own by its name
    assert not torch.equal(for_all.row, read_trained(made / "ditto", client="art").row)
    assert torch.equal(for_all.row, read_trained(made / "ditto" / "adapter.safetensors").row)


def test_what_holds_no_adapter_is_named(made, tmp_path):
    for path, match in (
        (made / "zero-shot", "holds no adapter"),
        (tmp_path / "nowhere", "there is no such run"),
        (tmp_path, "is no run folder"),
        (made / "small.pt", "cannot be read as an adapter file"),
    ):
        with pytest.raises(ConfigError, match=match):
            read_trained(path)
    (tmp_path / "trials.jsonl").touch()
    with pytest.raises(ConfigError, match="a sweep keeps no adapters"):
        read_trained(tmp_path)


def test_another_clip_prompts_of_it_or_preprocessing_is_refused(made, monkeypatch):
    trained = read_trained(made / "released", "art")
    with pytest.raises(StaleCache, match="weights_sha256.*with --model"):
        load_its_model(trained, str(made / "other.pt"), CPU, print)
    with pytest.raises(StaleCache, match="made with model"):  # before 300 MB are downloaded
        load_its_model(trained, "vit-b/32", CPU, print)
    with pytest.raises(StaleCache, match="weights_sha256"):  # the built-in one is the default
        load_its_model(trained, None, CPU, print)
    heard = []
    load_its_model(trained, str(made / "small.pt"), CPU, heard.append)
    assert not heard
    monkeypatch.setitem(trained.preprocessing, "resize", "Pillow 1.0")
    load_its_model(trained, str(made / "small.pt"), CPU, heard.append)
    assert len(heard) == 1 and "Pillow 1.0" in heard[0]
    monkeypatch.setitem(trained.preprocessing, "interpolation", "nearest")
    with pytest.raises(StaleCache, match="preprocessing.interpolation"):
        load_its_model(trained, str(made / "small.pt"), CPU, print)
    assert trained.templates == PROMPTS


def test_a_run_on_imported_features_says_why_it_cannot(tmp_path):
    config = RunConfig(held_out=(("a",),), rounds=1, batch=8)
    federate(small(), config, runs=tmp_path, out=tmp_path / "run", device="cpu")
    with pytest.raises(ConfigError, match="does not say which CLIP.*extract"):
        read_trained(tmp_path / "run")


def forged(made, tmp_path, change):
    tensors, facts = read_adapters(made / "released" / "adapter.safetensors")
    facts = json.loads(json.dumps(facts))
    change(tensors, facts)
    write_adapters(tmp_path / "forged.safetensors", tensors, facts)
    return tmp_path / "forged.safetensors"


def _poison(tensors, facts):
    tensors["best.w1"][0, 0, 0] = float("nan")


FORGERIES = {
    "no facts of the cache": lambda t, f: f.pop("belongs_to"),
    "settings a list": lambda t, f: f["belongs_to"].update(settings=[1]),
    "setting unknown": lambda t, f: f["belongs_to"]["settings"].update(fangs=2),
    "rank of text": lambda t, f: f["belongs_to"]["settings"].update(rank="8"),
    "width": lambda t, f: f["belongs_to"]["cache"].update(width=10**9),
    "width of text": lambda t, f: f["belongs_to"]["cache"].update(width="wide"),
    "classes a number": lambda t, f: f["belongs_to"]["cache"]["encoder"].update(class_names=7),
    "encoder a list": lambda t, f: f["belongs_to"]["cache"].update(encoder=[1]),
    "classes that steer": lambda t, f: f["belongs_to"]["cache"]["encoder"].update(
        class_names=["cat", "\x1b]0;owned\x07"]
    ),
    "a client that steers": lambda t, f: f["adapters"][0].update(clients=["\x1b[2J"]),
    "adapters fewer than told": lambda t, f: f["adapters"].append(f["adapters"][0]),
    "no adapters": lambda t, f: f.update(adapters=[]),
    "adapters a text": lambda t, f: f.update(adapters="art"),
    "a part missing": lambda t, f: t.pop("best.w2"),
    "not finite": _poison,
}


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES)
def test_forged_adapter_files_end_as_one_line(made, tmp_path, change):
    file = forged(made, tmp_path, change)
    with pytest.raises(ConfigError, match=r"forged\.safetensors|rank"):
        read_trained(file, "art")


def test_damaged_adapter_files_end_as_one_line(made, tmp_path):
    whole = (made / "released" / "adapter.safetensors").read_bytes()
    file, draw = tmp_path / "cut.safetensors", np.random.default_rng(0)
    for cut in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(ConfigError, match="cut.safetensors"):
            read_trained(file, "art")
    for _ in range(60):
        raw = bytearray(whole)
        raw[draw.integers(0, 3000)] ^= 1 << draw.integers(0, 8)
        file.write_bytes(raw)
        try:
            read_trained(file, "art")  # a flipped bit in a setting's number may stay a setting
        except ConfigError as error:
            assert "\n" not in str(error).strip()


def test_other_classes(made):
    trained = read_trained(made / "cosine", "art")
    with pytest.raises(ConfigError, match="otter.*was trained on cat, dog"):
        choose_classes(trained, "cat,otter")
    free = read_trained(made / "released", "art")
    assert choose_classes(free, " otter , dog,") == ("otter", "dog")
    for words, match in (("", "two classes"), ("a", "two classes"), ("a,b,a", "twice"),
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
                      ("pipe.png", "not a file"), ("gone.png", "no such file")):  # fmt: skip
        assert why in by_name[name]["error"] and not by_name[name]["adapter"]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: 4 of 5 could not be answered: ") and "bad.png" in last
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
    clip = load_its_model(trained, str(tmp_path / "m.pt"), CPU, print)
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
