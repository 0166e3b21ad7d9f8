"""extract --check: a cache matches its images, and every mismatch shows."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cache.npz import read_npz
from cache.store import read_paths, read_table, write_table
from cache.table import CacheError, StaleCache
from pipeline.datasets.demo.draw import draw_dataset
from pipeline.errors import DataError
from pipeline.extraction.check import check_cache
from tests.cache.caches import make
from tests.cli.commands import call, refused
from tests.encoder import clips
from tests.extraction.extraction import draw_tree, run


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """60 of the built-in drawings with the built-in CLIP."""
    folder = tmp_path_factory.mktemp("check")
    images = draw_dataset(folder / "few", pictures=60)
    for store in ("fp16", "fp32"):
        run(images, "demo", folder / f"{store}.h5", store=store)
    return folder


def check(folder, rows, out, **settings):
    return check_cache(str(folder), rows, out=out, **({"device": "cpu", "seed": 0} | settings))


@pytest.mark.parametrize("store", ["fp16", "fp32"])
def test_the_demo_is_what_its_images_give(demo, store):
    found = check(demo / "few", 20, demo / f"{store}.h5")
    assert found.as_expected and found.rows == 20 and not found.gone
    # What storing as float16 costs, 2^-11 of a number at most.
    assert (1e-5 < found.difference < 5e-4) if store == "fp16" else (found.difference < 1e-5)
    assert found.prompt_difference < 1e-5


@pytest.mark.parametrize("kind", ["RN", "ViT"])
def test_small_clips_are_what_their_images_give(kind, tmp_path):
    tree = draw_tree(tmp_path)
    model = clips.save(clips.build(kind), tmp_path / "m.pt", "state dict")
    run(tree, model, tmp_path / "c.h5", templates=("a {}", "{}!"))
    settings = {"model": str(model), "templates": ("a {}", "{}!")}
    found = check(tree, 10**6, tmp_path / "c.h5", **settings)
    assert found.as_expected and found.rows == 23 and found.difference < 5e-4


def test_the_figures_equal_the_plain_ones(demo):
    table, paths = read_table(demo / "fp16.h5"), read_paths(demo / "fp16.h5")
    truth = read_table(demo / "fp32.h5").features
    found = check(demo / "few", 60, demo / "fp16.h5")
    apart = [max(abs(x - y)) / max(abs(x)) for x, y in zip(truth, table.features, strict=True)]
    assert found.difference == pytest.approx(max(apart), rel=0.05)
    assert found.worst == paths[int(np.argmax(apart))]
    cosines = [
        x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        for x, y in zip(truth.astype(float), table.features.astype(float), strict=True)
    ]
    assert found.cosine == pytest.approx(min(cosines), abs=1e-9)


def test_the_draw_is_random_or_fixed_by_a_seed(demo):
    one, same, *others = (
        check(demo / "few", 1, demo / "fp16.h5", seed=seed).worst for seed in (1, 1, *range(2, 9))
    )
    assert one == same and set(others) != {one}


def test_a_softer_resize_shows(demo, monkeypatch):
    """The limits are tight enough to detect bilinear in place of bicubic."""
    soft = Image.Resampling.BILINEAR
    plain = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, _: plain(image, size, soft))
    found = check(demo / "few", 20, demo / "fp32.h5")
    assert not found.as_expected and found.cosine > 0.9


def test_a_changed_a_lost_and_a_swapped_row_show(demo, tmp_path):
    images = tmp_path / "few"
    shutil.copytree(demo / "few", images)
    paths = read_paths(demo / "fp16.h5")
    shutil.copy(images / paths[-1], images / paths[3])
    found = check(images, 60, demo / "fp16.h5")
    assert not found.as_expected and found.worst == paths[3]
    shutil.copy(demo / "few" / paths[3], images / paths[3])
    (images / paths[5]).unlink()
    found = check(images, 60, demo / "fp16.h5")
    assert not found.as_expected and list(found.gone) == [paths[5]] and found.rows == 59
    shutil.rmtree(images)
    with pytest.raises(DataError):
        check(images, 60, demo / "fp16.h5")


def test_a_cache_whose_numbers_are_others_shows(demo, tmp_path):
    table = read_table(demo / "fp32.h5")
    drawn = {
        "features": table.features[::-1].copy(),
        "identity": table.identity,
        "class_names": table.class_names,
        "domain_names": table.domain_names,
        "labels": table.labels,
        "domains": table.domains,
        "paths": read_paths(demo / "fp32.h5"),
        "text_features": table.text_features,
        "logit_scale": table.logit_scale,
    }
    bare = {k: v for k, v in table.identity.items() if k not in ("compute", "preprocessing")}
    renamed = ["cartoon/boat/gone.png", *drawn["paths"][1:]]
    make(tmp_path / "bare.h5", drawn | {"identity": bare})
    with pytest.raises(StaleCache, match="preprocessing"):
        check(demo / "few", 5, tmp_path / "bare.h5")
    make(tmp_path / "out.h5", drawn | {"paths": renamed})
    assert check(demo / "few", 60, tmp_path / "out.h5").gone == {
        "cartoon/boat/gone.png": "not in the data set now"
    }
    make(tmp_path / "turned.h5", drawn)
    assert not check(demo / "few", 5, tmp_path / "turned.h5").as_expected
    drawn |= {"features": table.features, "text_features": table.text_features[::-1].copy()}
    make(tmp_path / "prompts.h5", drawn)
    found = check(demo / "few", 5, tmp_path / "prompts.h5")
    assert not found.as_expected and found.difference < 1e-5 < found.prompt_difference


def test_what_cannot_be_compared_is_named(demo, tmp_path):
    tree, cache = demo / "few", demo / "fp16.h5"
    other = clips.save(clips.build(), tmp_path / "other.pt", "state dict")
    with pytest.raises(StaleCache, match="weights_sha256.*options that it was extracted with"):
        check(tree, 5, cache, model=str(other))
    with pytest.raises(StaleCache, match="templates"):
        check(tree, 5, cache, templates=("a {}",))
    with pytest.raises(CacheError, match="no such cache"):
        check(tree, 5, tmp_path / "none.h5")
    rows = {"features": np.eye(3, dtype=np.float32), "labels": np.arange(3)}
    np.savez(tmp_path / "x.npz", text_features=np.eye(3, dtype=np.float32), **rows)
    write_table(tmp_path / "imported.h5", read_npz(tmp_path / "x.npz"))
    with pytest.raises(CacheError, match="imported"):
        check(tree, 5, tmp_path / "imported.h5")
    (tmp_path / "cut.h5").write_bytes(cache.read_bytes()[:-9])
    with pytest.raises(CacheError):
        check(tree, 5, tmp_path / "cut.h5")


def test_the_command(demo, tmp_path):
    cache = demo / "fp16.h5"
    words = ["extract", "--dataset", demo / "few", "--model", "demo", "--device", "cpu"]
    before = cache.read_bytes()
    told = call(*words, "--out", cache, "--check", 9).stdout
    assert "9 rows encoded again" in told and "as expected" in told
    document = json.loads(call(*words, "--out", cache, "--check", 9, "--json").stdout)
    assert document["as_expected"] and document["rows"] == 9
    assert cache.read_bytes() == before
    table = read_table(cache)
    images = tmp_path / "few"
    shutil.copytree(demo / "few", images)
    for path in read_paths(cache):
        Image.new("RGB", (64, 64), (200, 30, 30)).save(images / path)
    words[2] = images
    refused(*words, "--out", cache, "--check", len(table.labels), code=4, match="were changed")
    refused(*words, "--out", tmp_path / "no.h5", "--check", 2, code=4, match="no such cache")
    refused(*words, "--out", cache, "--prompt", "{}", "--check", 2, code=3, match="templates")
    call(*words, "--out", cache, "--check", 0, code=2)
