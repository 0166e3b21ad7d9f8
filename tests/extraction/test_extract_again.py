"""Extraction where a cache exists: up to date, mismatched, locked, or interrupted."""

import shutil
import signal
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.npz import read_npz
from cache.store import info, write_table
from cache.table import CacheError, StaleCache
from pipeline.extraction import cache_files
from pipeline.extraction import rows as encode_rows
from tests.conftest import on_posix
from tests.encoder import clips
from tests.extraction.extraction import draw_tree, run
from tests.processes import python

extract = import_module("pipeline.extraction.extract")  # the module; the package's is the function


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
    "content of some of the 23 was changed": change_an_image,
    r"1 added (art/ant/00.png)": lambda tree: (
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


@pytest.mark.parametrize("finished", [True, False])
def test_what_changed_in_the_images_is_said_in_words_of_images(
    tree, weights, tmp_path, finished, monkeypatch
):
    out = tmp_path / "x.h5"
    shutil.copy(tree / "art" / "cat" / "00.png", tree / "art" / "cat" / "z.png")
    (tree / "art" / "cat" / "z.png").write_bytes(b"not an image")
    if not finished:

        def stop(clip, pixels):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(encode_rows, "encode_images", stop)
            run(tree, weights, out, on_bad_image="skip")
    else:
        run(tree, weights, out, on_bad_image="skip")
    (tree / "photo" / "dog" / "03.png").unlink()
    for number in range(5):
        shutil.copy(tree / "art" / "cat" / "00.png", tree / "art" / "dog" / f"new{number}.png")
    with pytest.raises(StaleCache) as caught:
        run(tree, weights, out, on_bad_image="skip")
    assert (
        "5 added (art/dog/new0.png, art/dog/new1.png, art/dog/new2.png and 2 more), "
        "1 removed (photo/dog/03.png); pass --force"
    ) in str(caught.value)
    assert "sha256" not in str(caught.value)
    with pytest.raises(StaleCache, match="templates"):  # what is not of images stays as it was
        run(tree, weights, out, on_bad_image="skip", templates=("a {}",))


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


# Every extraction is forked from a process that has imported all, and ends as a program ends.
SIGNALLED = """
import os, sys
from pipeline.encoder.model import import_clip
from pipeline.extraction import extract, rows
from pipeline.cli.app import cli
import_clip()
tree, weights, *asked = sys.argv[1:]
plain, calls, children = rows.encode_images, [], {}
for number, out in zip(asked[::2], asked[1::2]):
    children[number] = os.fork()
    if children[number]:
        continue
    os.setsid()
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{out}.{name}", os.O_CREAT | os.O_WRONLY), stream)
    def encode(clip, pixels):
        calls.append(1)
        if len(calls) == 8:
            os.killpg(0, int(number))
        return plain(clip, pixels)
    rows.encode_images = encode
    cli(["extract", "--dataset", tree, "--model", weights, "--out", out,
        "--batch", "2", "--workers", "2", "--device", "cpu"])
for number, child in children.items():
    print(number, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
NUMBERS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(scope="module")
def signalled(tmp_path_factory, weights) -> tuple[Path, dict[int, tuple[int, Path]]]:
    """The images, and by signal how an extraction ended that was sent it, and what it wrote."""
    folder = tmp_path_factory.mktemp("signalled")
    tree, outs = draw_tree(folder), {number: folder / f"{number.name}.h5" for number in NUMBERS}
    asked = [word for number, out in outs.items() for word in (int(number), out)]
    codes = dict(map(str.split, python(SIGNALLED, tree, weights, *asked).splitlines()))
    return tree, {number: (int(codes[str(int(number))]), outs[number]) for number in NUMBERS}


@on_posix("sends signals to a process group")
@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_keeps_what_is_done_and_says_how_to_go_on(signalled, weights, tmp_path, number):
    tree, ended = signalled
    code, out = ended[number]
    said, printed = (
        out.with_name(f"{out.name}.{name}").read_text() for name in ("stderr", "stdout")
    )
    assert code == 128 + number, said
    last = said.splitlines()[-1]
    assert (
        last.startswith("Error: stopped; run the same command to resume")
        and f"{out.name}.partial" in last
    )
    assert "Traceback" not in said and not printed
    found = info(out.with_name(f"{out.name}.partial"))
    assert 2 <= found["rows_done"] < 23
    report, said = run(tree, weights, out, batch=2)
    assert report.resumed == found["rows_done"]
    assert report.encoded + report.resumed == 23
    run(tree, weights, tmp_path / "whole.h5", batch=2)
    assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_federate_by_name_refuses_a_cache_of_other_weights(tree, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_files, "CACHES", tmp_path / "files")
    mine = shutil.copy(weights, tmp_path / "mine.safetensors")
    assert cache_files.find_cache(str(tree), str(mine)) is None
    run(tree, mine, cache_files.cache_path(str(tree), str(mine)))
    assert cache_files.find_cache(str(tree), str(mine)) == tmp_path / "files" / "images-mine.h5"
    clips.save(clips.build(seed=1), mine, "safetensors")  # trained on, under the same name
    with pytest.raises(StaleCache, match="weights_sha256.*extract --force"):
        cache_files.find_cache(str(tree), str(mine))
    theirs = cache_files.cache_path("pacs", "ViT-B/32")
    shutil.copy(cache_files.cache_path(str(tree), str(mine)), theirs)
    with pytest.raises(StaleCache, match='dataset = "images", asked for "pacs"'):
        cache_files.find_cache("pacs", "vit-b/32")


def test_federate_by_name_takes_an_imported_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_files, "CACHES", tmp_path)
    rows = {"features": np.eye(3, dtype=np.float32), "labels": np.arange(3)}
    np.savez(tmp_path / "x.npz", text_features=np.eye(3, dtype=np.float32), **rows)
    write_table(tmp_path / "pacs-ViT-B-32.h5", read_npz(tmp_path / "x.npz"))
    assert cache_files.find_cache("PACS", "ViT-B/32") == tmp_path / "pacs-ViT-B-32.h5"
