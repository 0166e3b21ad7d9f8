"""Extraction against plain clip, image by image; formats, workers and precision do not matter."""

import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cache.store import read_paths, read_table, verify
from cache.table import FeatureTable
from pipeline.encoder import decoding
from pipeline.encoder.model import import_clip
from pipeline.encoder.weights import WEIGHTS
from pipeline.extraction import rows as encode_rows
from pipeline.extraction.rate import read_rate
from pipeline.extraction.rows import row_blocks
from tests.conftest import ROOT
from tests.encoder import clips
from tests.extraction.extraction import run

extract = import_module("pipeline.extraction.extract")  # the module; the package's is the function


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> Path:
    return clips.save(clips.build("RN"), tmp_path_factory.mktemp("clip") / "rn.pt", "state dict")


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


def test_workers_start_from_a_script_without_a_main_guard(tree, weights, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from pipeline.extraction.extract import extract
extract({str(tree)!r}, model={str(weights)!r}, out=Path({str(tmp_path / "script.h5")!r}),
    device="cpu", workers=1, batch=5)
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    run(tree, weights, tmp_path / "x.h5", batch=5)
    assert (tmp_path / "script.h5").read_bytes() == (tmp_path / "x.h5").read_bytes()


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


def test_rows_are_asked_for_in_whole_blocks_and_each_once():
    for numbers in ([0, 1, 2, 3, 4], [1, 2, 4], [4], []):
        wanted = [row for k in numbers for row in range(5 * k, min(5 * k + 5, 23))]
        assert [row for one in row_blocks(numbers, 5, 23) for row in one] == wanted


def test_how_many_images_are_handed_over_at_once_changes_no_byte(tree, weights, tmp_path):
    """Also with bad and rotated images, whose blocks are assembled from the workers' results."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in (3, 9, 17):
        Image.new("RGB", (40, 30)).save(tree / "art" / "cat" / f"{number:02}.jpg", exif=exif)
    for path in ("art/cat/05.jpg", "photo/dog/zz.jpg"):
        (tree / path).write_bytes(b"no image " + path.encode())
    found = []
    for at_once in (1, 5, 64):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decoding, "IMAGES_A_JOB", at_once)
            patch.setattr(decoding, "SHARES", 1)
            out = tmp_path / f"{at_once}.h5"
            report, said = run(tree, weights, out, workers=2, batch=3, on_bad_image="skip")
        found.append((out.read_bytes(), report.turned, report.unreadable, said[1:]))
    assert found[0] == found[1] == found[2] and found[0][1:3] == (3, 2)


def test_the_measured_rate_lies_beside_the_cache_and_is_of_its_content(tree, weights, tmp_path):
    out = tmp_path / "cache.h5"
    report, _ = run(tree, weights, out)
    rate = read_rate(out, read_table(out).content_sha256)
    assert rate.images == report.encoded == 23 and rate.device.startswith("cpu (")
    assert rate.per_second == pytest.approx(report.images_per_second, abs=0.06)
    before = (tmp_path / "cache.h5.rate.json").read_bytes()
    run(tree, weights, out)  # nothing to encode: nothing measured
    assert (tmp_path / "cache.h5.rate.json").read_bytes() == before
