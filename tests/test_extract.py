"""Extraction against plain clip, image by image; what it does once; and images that are bad."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cache.store import info, read_paths, read_table, verify
from cache.table import CacheError, FeatureTable, StaleCache
from kernels.backends import BackendUnavailable
from pipeline import encode_rows, extract
from pipeline.clip_model import import_clip
from pipeline.clip_weights import WeightsError
from pipeline.config import ConfigError
from pipeline.demo import WEIGHTS
from pipeline.domains import DataError
from pipeline.extract import ExtractReport, cache_path
from tests import clips

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    return clips.save(
        clips.build(), tmp_path_factory.mktemp("clip") / "small.safetensors", "safetensors"
    )


@pytest.fixture(scope="session")
def resnet(tmp_path_factory) -> Path:
    return clips.save(clips.build("RN"), tmp_path_factory.mktemp("clip") / "rn.pt", "state dict")


@pytest.fixture
def tree(tmp_path) -> Path:
    """Two domains of two classes, 23 images, in several formats and sizes."""
    rng = np.random.default_rng(0)
    for number in range(23):
        domain, name = ("art", "photo")[number % 2], ("cat", "dog")[number // 2 % 2]
        folder = tmp_path / "images" / domain / name
        folder.mkdir(parents=True, exist_ok=True)
        size = rng.integers(20, 60, 2)
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        image.save(folder / f"{number:02}.{('png', 'jpg', 'bmp')[number % 3]}")
    return tmp_path / "images"


class Said(list):
    """Takes what is said to the user."""

    def __call__(self, line: str) -> None:
        assert "\n" not in line
        self.append(line)


def run(dataset: Path, model: Path, out: Path, **settings) -> tuple[ExtractReport, Said]:
    said = Said()
    settings = {"workers": 0, "device": "cpu"} | settings
    report = extract.extract(str(dataset), model=str(model), out=out, say=said, **settings)
    return report, said


def one_by_one(root: Path, paths: list[str], model: Path) -> np.ndarray:
    """(N, D) float32: every image by itself through clip and its own transform."""
    clip = import_clip()
    module = clip.model.build_model(load_file(model)).float()
    transform = clip.clip._transform(module.visual.input_resolution)
    rows, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # one image is too little for two
    for path in paths:
        with Image.open(root / path) as image, torch.no_grad():
            rows.append(module.encode_image(transform(image.convert("RGB"))[None])[0])
    torch.set_num_threads(threads)
    return torch.stack(rows).numpy()


def same(left: FeatureTable, right: FeatureTable) -> bool:
    return left.content_sha256 == right.content_sha256 and left.fingerprint == right.fingerprint


# --- what is computed ---------------------------------------------------------------------------


def test_pacs_features_equal_plain_clip_one_by_one_and_each_is_encoded_once(
    shared, weights, tmp_path, monkeypatch
):
    model = WEIGHTS if WEIGHTS.exists() else weights
    folder, out, encoded = shared / "data" / "pacs-subset", tmp_path / "pacs.h5", []
    plain = encode_rows.encode_images

    def count(clip, pixels):
        encoded.extend(hash(image.numpy().tobytes()) for image in pixels)
        return plain(clip, pixels)

    monkeypatch.setattr(encode_rows, "encode_images", count)
    report, _ = run(folder, model, out, workers=2, store="fp32")
    assert (report.rows, report.encoded, report.unreadable) == (840, 840, 0)
    table, paths = read_table(out), read_paths(out)
    assert len(encoded) == 840 == len(set(paths))
    ref = one_by_one(folder, paths[::4], model)
    np.testing.assert_allclose(table.features[::4], ref, rtol=0, atol=1e-3)
    assert Counter(zip(table.domains.tolist(), table.labels.tolist(), strict=True)) == {
        (domain, label): 30 for domain in range(4) for label in range(7)
    }
    for path, label, domain in zip(paths, table.labels, table.domains, strict=True):
        assert path.startswith(f"{table.domain_names[domain]}/{table.class_names[label]}/")
    verify(out)


def test_text_features_and_scale_are_clips(tree, weights, tmp_path):
    run(tree, weights, tmp_path / "x.h5")
    table, clip, module = read_table(tmp_path / "x.h5"), import_clip(), clips.build().float()
    tokens = clip.tokenize([f"a picture of a {name}" for name in table.class_names])
    with torch.no_grad():
        ref = module.encode_text(tokens)
    np.testing.assert_allclose(table.text_features, ref, rtol=0, atol=1e-5)
    assert table.logit_scale == pytest.approx(module.logit_scale.exp().item(), rel=1e-6)


def test_workers_do_not_change_a_byte(tree, weights, tmp_path):
    files = [tmp_path / f"{workers}.h5" for workers in (0, 1, 2)]
    for workers, file in enumerate(files):
        run(tree, weights, file, workers=workers, batch=5)
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()


def test_workers_survive_spawn_and_change_no_byte(tree, weights, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
if __name__ == "__main__":
    from pipeline.extract import extract
    multiprocessing.set_start_method("spawn")
    extract({str(tree)!r}, model={str(weights)!r}, out=Path({str(tmp_path / "spawn.h5")!r}),
        device="cpu", workers=1, batch=5, say=print)
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    run(tree, weights, tmp_path / "x.h5", batch=5)
    assert (tmp_path / "spawn.h5").read_bytes() == (tmp_path / "x.h5").read_bytes()


def test_every_form_of_the_weights_makes_the_same_cache(tree, tmp_path):
    tables = []
    for form in ("state dict", "safetensors", "TorchScript"):
        weights = clips.save(clips.build(), tmp_path / form, form)
        run(tree, weights, tmp_path / f"{form}.h5")
        tables.append(read_table(tmp_path / f"{form}.h5"))
    assert same(tables[0], tables[1]) and same(tables[0], tables[2])


def test_batchnorm_statistics_of_a_resnet_stay_as_they_are(tree, resnet, tmp_path, monkeypatch):
    models, load = [], extract.load_model

    def keep(*words):
        models.append(load(*words))
        buffers.append({n: b.clone() for n, b in models[0].module.named_buffers()})
        return models[0]

    buffers: list[dict] = []
    monkeypatch.setattr(extract, "load_model", keep)
    run(tree, resnet, tmp_path / "rn.h5", batch=4)
    after = dict(models[0].module.named_buffers())
    assert any("running_mean" in name for name in after)
    assert all(torch.equal(after[name], before) for name, before in buffers[0].items())
    one = tmp_path / "one.h5"
    run(tree, resnet, one, batch=1, store="fp32")  # in train mode a batch would change its rows
    few = tmp_path / "few.h5"
    run(tree, resnet, few, batch=7, store="fp32")
    ref = read_table(one).features
    np.testing.assert_allclose(read_table(few).features, ref, rtol=0, atol=1e-5 * abs(ref).max())


def test_half_and_full_precision_are_stored_as_asked(tree, weights, tmp_path):
    for store in ("fp16", "fp32"):
        run(tree, weights, tmp_path / f"{store}.h5", store=store)
    half, full = (read_table(tmp_path / f"{store}.h5").features for store in ("fp16", "fp32"))
    assert (half.dtype, full.dtype) == (np.float16, np.float32)
    assert np.array_equal(half, full.astype(np.float16))


# --- what is there already ----------------------------------------------------------------------


def test_a_cache_that_is_there_is_not_made_again(tree, weights, tmp_path, monkeypatch):
    run(tree, weights, tmp_path / "x.h5")
    before = (tmp_path / "x.h5").stat()
    monkeypatch.setattr(encode_rows, "encode_images", None)
    report, said = run(tree, weights, tmp_path / "x.h5")
    assert (report.encoded, report.resumed) == (0, 23)
    assert any("up to date" in line for line in said)
    assert (tmp_path / "x.h5").stat().st_mtime_ns == before.st_mtime_ns


def change_an_image(tree: Path) -> dict:
    Image.new("RGB", (30, 30)).save(tree / "art" / "cat" / "00.png")
    return {}


UNLIKE = {
    "templates": lambda tree: {"templates": ("a sketch of a {}",)},
    "store_dtype": lambda tree: {"store": "fp32"},
    "weights_sha256": lambda tree: {
        "model": clips.save(clips.build(seed=1), tree.parent / "w.pt", "state dict")
    },
    "manifest_sha256": change_an_image,
    "class_names.0": lambda tree: (
        (tree / "art" / "ant").mkdir()
        or shutil.copy(tree / "art" / "cat" / "00.png", tree / "art" / "ant")
        and {}
    ),
}


@pytest.mark.parametrize("field", UNLIKE)
def test_an_unlike_cache_is_refused_by_field_and_kept(tree, weights, tmp_path, field):
    out = tmp_path / "x.h5"
    run(tree, weights, out)
    before, settings = out.read_bytes(), UNLIKE[field](tree) or {}
    model = settings.pop("model", weights)
    with pytest.raises(StaleCache) as caught:
        run(tree, model, out, **settings)
    assert field in str(caught.value) and "--force" in str(caught.value)
    assert out.read_bytes() == before
    report, _ = run(tree, model, out, force=True, **settings)
    assert report.encoded == report.rows and out.read_bytes() != before


def test_two_extractors_on_one_file_are_refused(tree, weights, tmp_path, monkeypatch):
    plain, seen = encode_rows.encode_images, []

    def second(clip, pixels):
        monkeypatch.setattr(encode_rows, "encode_images", plain)
        with pytest.raises(CacheError, match="another extraction") as caught:
            run(tree, weights, tmp_path / "x.h5")
        seen.append(caught)
        return plain(clip, pixels)

    monkeypatch.setattr(encode_rows, "encode_images", second)
    report, _ = run(tree, weights, tmp_path / "x.h5")
    assert seen and report.encoded == 23


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tree, weights, tmp_path):
    out = tmp_path / "x.h5"
    code = f"""
import os, signal, sys
from pathlib import Path
from pipeline import encode_rows, extract
plain, calls = encode_rows.encode_images, []
def encode(clip, pixels):
    calls.append(1)
    if len(calls) == 8:
        os.killpg(0, signal.SIGINT)
    return plain(clip, pixels)
encode_rows.encode_images = encode
try:
    extract.extract({str(tree)!r}, model={str(weights)!r}, out=Path({str(out)!r}), batch=2,
        workers=2, device="cpu", say=lambda line: print("SAID", line, file=sys.stderr))
except KeyboardInterrupt:
    sys.exit(130)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        timeout=120, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "SAID stopped; the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr
    found = info(out.with_name("x.h5.partial"))
    assert 2 <= found["rows_done"] < 23
    report, said = run(tree, weights, out, batch=2)
    assert report.resumed == found["rows_done"]
    assert report.encoded + report.resumed == 23
    run(tree, weights, tmp_path / "whole.h5", batch=2)
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()


# --- bad images ---------------------------------------------------------------------------------


def spoil(tree: Path) -> dict[str, str]:
    """Puts four bad images into the tree; {path: what its reason says}."""
    jpeg = (tree / "photo" / "cat" / "01.jpg").read_bytes()
    bad = {
        "art/cat/empty.jpg": (b"", "0 bytes"),
        "art/dog/text.png": (b"no image at all", "not an image"),
        "photo/cat/half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "photo/dog/dead.png": (None, "No such file"),
    }
    for path, (content, _) in bad.items():
        if content is None:
            (tree / path).symlink_to(tree / "nowhere")
        else:
            (tree / path).write_bytes(content)
    return {path: reason for path, (_, reason) in bad.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_ends_it_and_skip_goes_on_from_there(tree, weights, tmp_path, workers):
    bad, out = spoil(tree), tmp_path / "x.h5"
    with pytest.raises(DataError) as caught:
        run(tree, weights, out, batch=4, workers=workers)
    # art/cat has six images, 00 to 20, and empty.jpg after them: the second block of four.
    assert "art/cat/empty.jpg: empty file, 0 bytes" in str(caught.value)
    assert "--on-bad-image skip" in str(caught.value) and "\n" not in str(caught.value)
    assert info(tmp_path / "x.h5.partial")["rows_done"] == 4
    report, said = run(tree, weights, out, batch=4, workers=workers, on_bad_image="skip")
    assert (report.rows, report.encoded, report.resumed, report.unreadable) == (27, 19, 4, 4)
    for path, reason in bad.items():
        assert [path in line and reason in line for line in said].count(True) == 1
    assert not set(bad) & set(read_paths(out))
    table = read_table(out)
    assert len(table.features) == 23 and abs(table.features).max(axis=1).min() > 0
    undisturbed, _ = run(tree, weights, tmp_path / "y.h5", batch=4, on_bad_image="skip")
    assert undisturbed.encoded == 23 and out.read_bytes() == (tmp_path / "y.h5").read_bytes()


def test_a_data_set_of_bad_images_only_is_an_error(tmp_path, weights):
    for name in ("a", "b"):
        (tmp_path / "images" / "photo" / name).mkdir(parents=True)
        (tmp_path / "images" / "photo" / name / "x.jpg").write_bytes(b"nothing")
    with pytest.raises(CacheError, match="not one image"):
        run(tmp_path / "images", weights, tmp_path / "x.h5", on_bad_image="skip")
    assert not (tmp_path / "x.h5").exists()


def test_turned_images_are_counted_and_said(tree, weights, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    for name in ("x.jpg", "y.jpg"):
        Image.new("RGB", (40, 30)).save(tree / "art" / "cat" / name, exif=exif)
    report, said = run(tree, weights, tmp_path / "x.h5")
    assert report.turned == 2 and any(line.startswith("2 images carry an EXIF") for line in said)


def test_stray_files_are_said_and_a_class_may_lack_in_a_domain(tree, weights, tmp_path):
    (tree / "notes.txt").write_text("mine")
    shutil.rmtree(tree / "art" / "dog")
    report, said = run(tree, weights, tmp_path / "x.h5")
    assert any("notes.txt" in line for line in said)
    assert read_table(tmp_path / "x.h5").class_names == ("cat", "dog")


def test_a_killed_decoder_is_one_line_and_loses_nothing(tree, weights, tmp_path, monkeypatch):
    plain, parent, calls = encode_rows.encode_images, os.getpid(), []

    def encode(clip, pixels):
        calls.append(1)
        if len(calls) == 6:
            children = Path(f"/proc/{parent}/task/{parent}/children")
            if not children.exists():
                pytest.skip("needs /proc to find the worker")
            os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
            time.sleep(0.2)
        return plain(clip, pixels)

    monkeypatch.setattr(encode_rows, "encode_images", encode)
    with pytest.raises(DataError, match="--workers 0") as caught:
        run(tree, weights, tmp_path / "x.h5", batch=1, workers=1)
    assert "\n" not in str(caught.value)
    report, _ = run(tree, weights, tmp_path / "x.h5", batch=1)
    assert report.resumed >= 1 and report.resumed + report.encoded == 23


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"templates": ("a picture",)}, ConfigError, "--prompt"),
        ({"templates": ()}, ConfigError, "--prompt"),
        ({"batch": 0}, ConfigError, "--batch 0"),
        ({"workers": -1}, ConfigError, "--workers -1"),
        ({"store": "bf16"}, ConfigError, "fp16, fp32"),
        ({"on_bad_image": "ignore"}, ConfigError, "fail, skip"),
        ({"device": "tpu"}, BackendUnavailable, "tpu"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(tree, weights, tmp_path, settings, error, said):
    with pytest.raises(error, match=said):
        run(tree, weights, tmp_path / "x.h5", **settings)
    assert not list(tmp_path.glob("x.h5*"))


def test_unknown_words_are_refused_before_anything_is_made(tmp_path, weights):
    with pytest.raises(DataError, match="pacs"):
        extract.extract("pcas", model=str(weights), root=tmp_path, out=tmp_path / "x.h5", say=print)
    with pytest.raises(WeightsError, match="ViT-B/32"):
        extract.extract("demo", model="ViT-B-32", root=tmp_path, out=tmp_path / "x.h5", say=print)
    assert not list(tmp_path.glob("*.h5*"))


def test_pictures_in_the_place_of_the_built_in_ones_are_left_alone(tmp_path, weights):
    file = tmp_path / "demo" / "mine" / "cat" / "1.png"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(file)
    with pytest.raises(DataError, match="pictures"):
        extract.extract("demo", model=str(weights), root=tmp_path, out=tmp_path / "x.h5", say=print)
    assert file.exists()


def test_the_default_file_is_named_by_data_model_and_prompts():
    folder = ROOT / "cache" / "files"
    assert cache_path("demo", "demo") == folder / "demo-demo.h5"
    assert cache_path("Office-Home", "vit-l/14@336PX") == folder / "office_home-ViT-L-14-336px.h5"
    other = cache_path("pacs", "RN50", ("a {}", "the {}"))
    assert other.name.startswith("pacs-RN50-") and other != cache_path("pacs", "RN50", ("a {}",))


def test_known_data_is_checked_against_its_published_counts(shared, weights, tmp_path):
    (tmp_path / "PACS").symlink_to(shared / "data" / "pacs-subset")
    said = Said()
    extract.extract(
        "pacs", root=tmp_path, model=str(weights), out=tmp_path / "x.h5", device="cpu", say=said
    )
    assert any("art_painting/dog: 30 images, 349 short of the 379" in line for line in said)
    assert info(tmp_path / "x.h5")["dataset"] == "pacs"


def test_the_report_is_json(tree, weights, tmp_path):
    report, said = run(tree, weights, tmp_path / "x.h5")
    fields = dataclasses.asdict(report)
    assert json.loads(json.dumps(fields, default=str))["encoded"] == 23
    assert report.images_per_second > 0 and report.seconds["total"] >= report.seconds["rows"]
    assert any("cpu (" in line for line in said)
