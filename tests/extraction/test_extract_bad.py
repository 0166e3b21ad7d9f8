"""Bad and odd images, and invalid options: one line, and nothing is lost."""

import dataclasses
import json
import os
import shutil
import signal
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from cache.store import info, read_paths, read_table
from cache.table import CacheError
from kernels.backends import BackendUnavailable
from pipeline.errors import ConfigError, DataError, WeightsError
from pipeline.extraction import rows as encode_rows
from pipeline.extraction.cache_files import cache_path
from tests.conftest import NEEDS_PROC, ROOT
from tests.extraction.extraction import run, spoil

extract = import_module("pipeline.extraction.extract")  # the module; the package's is the function


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
    assert report.turned == 2 and any(line.startswith("2 images have an EXIF") for line in said)


def test_stray_files_are_said_and_a_class_may_lack_in_a_domain(tree, weights, tmp_path):
    (tree / "notes.txt").write_text("mine")
    shutil.rmtree(tree / "art" / "dog")
    report, said = run(tree, weights, tmp_path / "x.h5")
    assert any("notes.txt" in line for line in said)
    assert read_table(tmp_path / "x.h5").class_names == ("cat", "dog")


@NEEDS_PROC
def test_a_killed_decoder_is_replaced_and_changes_no_byte(tree, weights, tmp_path, monkeypatch):
    plain, parent, calls = encode_rows.encode_images, os.getpid(), []

    def encode(clip, pixels):
        calls.append(1)
        if len(calls) == 2:
            children = Path(f"/proc/{parent}/task/{parent}/children")
            os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
        return plain(clip, pixels)

    run(tree, weights, tmp_path / "whole.h5", batch=1)
    monkeypatch.setattr(encode_rows, "encode_images", encode)
    report, said = run(tree, weights, tmp_path / "x.h5", batch=1, workers=1)
    assert report.encoded == 23 and any("SIGKILL" in line for line in said)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"templates": ("a picture",)}, ConfigError, "--prompt"),
        ({"templates": ()}, ConfigError, "--prompt"),
        ({"batch": 0}, ConfigError, "--batch 0"),
        ({"workers": -1}, ConfigError, "--workers -1"),
        ({"max_megapixels": 0}, ConfigError, "--max-megapixels 0"),
        ({"max_megapixels": float("nan")}, ConfigError, "--max-megapixels nan"),
        ({"max_megapixels": 1000}, ConfigError, "at most 178"),
        ({"max_image_mib": 0.5}, ConfigError, "--max-image-mib 0.5"),
        ({"max_image_mib": float("nan")}, ConfigError, "--max-image-mib nan"),
        ({"max_image_seconds": -1}, ConfigError, "--max-image-seconds -1"),
        ({"max_image_seconds": float("inf")}, ConfigError, "--max-image-seconds inf"),
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
        extract.extract("pcas", model=str(weights), root=tmp_path, out=tmp_path / "x.h5")
    with pytest.raises(WeightsError, match="ViT-B/32"):
        extract.extract("demo", model="ViT-B-32", root=tmp_path, out=tmp_path / "x.h5")
    assert not list(tmp_path.glob("*.h5*"))


def test_pictures_in_the_place_of_the_built_in_ones_are_left_alone(tmp_path, weights):
    file = tmp_path / "demo" / "mine" / "cat" / "1.png"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(file)
    with pytest.raises(DataError, match="pictures"):
        extract.extract("demo", model=str(weights), root=tmp_path, out=tmp_path / "x.h5")
    assert file.exists()


def test_built_in_data_that_cannot_be_drawn_is_one_line(tmp_path, weights):
    (tmp_path / "demo").touch()  # what the folder is to be called
    with pytest.raises(DataError, match="--root"):
        extract.extract("demo", model=str(weights), root=tmp_path, out=tmp_path / "x.h5")


def test_an_empty_data_set_is_not_this_folder(tmp_path, weights):
    with pytest.raises(DataError, match="--dataset is empty"):
        run("", weights, tmp_path / "x.h5")


def test_the_default_file_is_named_by_data_model_and_prompts():
    folder = ROOT / "cache" / "files"
    assert cache_path("demo", "demo") == folder / "demo-demo.h5"
    assert cache_path("Office-Home", "vit-l/14@336PX") == folder / "office_home-ViT-L-14-336px.h5"
    other = cache_path("pacs", "RN50", ("a {}", "the {}"))
    assert other.name.startswith("pacs-RN50-") and other != cache_path("pacs", "RN50", ("a {}",))


def test_known_data_is_checked_against_its_published_counts(shared, weights, tmp_path, heard):
    (tmp_path / "PACS").symlink_to(shared / "data" / "pacs-subset")
    extract.extract("pacs", root=tmp_path, model=str(weights), out=tmp_path / "x.h5", device="cpu")
    assert any("art_painting/dog: 30 images, 349 short of the 379" in line for line in heard)
    assert info(tmp_path / "x.h5")["dataset"] == "pacs"


def test_the_report_is_json(tree, weights, tmp_path):
    report, said = run(tree, weights, tmp_path / "x.h5")
    fields = dataclasses.asdict(report)
    assert json.loads(json.dumps(fields, default=str))["encoded"] == 23
    assert report.images_per_second > 0 and report.seconds["total"] >= report.seconds["rows"]
    assert any("cpu (" in line for line in said)
