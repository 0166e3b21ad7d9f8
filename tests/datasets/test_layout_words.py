"""Layouts that are stated, and what commands say of folders."""

import shlex

import pytest

from cache.store import info
from pipeline.datasets.find import find_images
from pipeline.datasets.stated import LAYOUTS, Stated
from pipeline.datasets.tree import scan
from pipeline.errors import ConfigError, DataError
from pipeline.extraction import cache_files
from tests.cli.commands import call, refused
from tests.datasets.folders import advised_words, fill, trees
from tests.extraction.extraction import Said, run
from tests.processes import python


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stated_layout_is_taken_at_its_word(tmp_path, layout):
    levels = {"domain": ("A", "1"), "split": ("dev", "Train"), "class": ("x", "test", "train")}
    names = [""]
    for level in layout.split("/"):
        names = [f"{above}/{name}" if above else name for above in names for name in levels[level]]
    fill(tmp_path / "mine", [f"{name}/{{1..2}}.jpg" for name in names])
    tree = find_images(str(tmp_path / "mine"), tmp_path, Said(), stated=Stated(layout))
    assert tree.layout == layout and len(tree.paths) == 2 * len(names) and not tree.ignored
    assert tree.class_names == ("test", "train", "x")
    if "split" in layout:
        assert set(tree.split.tolist()) == {0, 1}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_that_does_not_fit_is_refused(tmp_path, layout):
    fill(tmp_path / "mine", ["1.jpg"])
    with pytest.raises(DataError, match="has no image in the layout"):
        scan(tmp_path / "mine", layout)


def test_words_that_cannot_be_are_refused(tmp_path, tree):
    for words in (["--layout", "class/domain"], ["--accept", "all"]):
        call("extract", "--dataset", tree, *words, code=2)
    for stated in ({"layout": "x"}, {"accept": ("x",)}):
        with pytest.raises(ConfigError, match="choose from"):
            Stated(**stated)
    refused("extract", "--dry-run", "--check", 3, code=1, match="only one of them")


def test_a_plain_folder_has_the_identity_of_older_releases(tree, weights, tmp_path):
    run(tree, weights, tmp_path / "x.h5")
    run(tree, weights, tmp_path / "y.h5", layout="domain/class", class_names="folder")
    assert set(info(tmp_path / "x.h5")["identity"]) == {
        "schema", "dataset", "model", "templates", "weights_sha256", "architecture",
        "preprocessing", "compute", "store_dtype", "layer", "normalised", "class_names",
        "domain_names", "manifest_sha256",
    }  # fmt: skip
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "y.h5").read_bytes()


def test_a_dry_run_writes_nothing_and_loads_no_clip(tmp_path):
    root = fill(tmp_path / "mine", trees("train", "test"))
    code = (
        "import sys; from pipeline.cli.app import cli\n"
        f"cli(['extract', '--dataset', {str(root)!r}, '--dry-run'], standalone_mode=False)\n"
        f"cli(['extract', '--root', {str(tmp_path / 'data')!r}, '--dry-run'], "
        "standalone_mode=False)\n"
        "sys.exit(f'imported torch' if 'torch' in sys.modules else 0)"
    )
    told = python(code)
    assert "split/class/image (8 images, 1 domain, 2 classes, 4 train, 4 test)" in told
    assert "3,000 images, 4 domains, 7 classes" in told  # the built-in ones, not drawn
    assert not (tmp_path / "data").exists()


def test_what_is_said_is_short_for_many_classes_and_escaped(tmp_path):
    names = [f"kind {number:04} of thing" for number in range(1000)]
    for domain in range(3):
        for name in names:
            folder = tmp_path / "mine" / f"domain {domain}" / name
            folder.mkdir(parents=True)
            (folder / "1.jpg").touch()
    for number in range(200):
        (tmp_path / "mine" / f"site {number}" / names[0]).mkdir(parents=True)
        (tmp_path / "mine" / f"site {number}" / names[0] / "1.jpg").touch()
    said = Said()
    find_images(str(tmp_path / "mine"), tmp_path, said)
    assert len(said) < 10 and all(len(line) < 600 for line in said)
    assert any("and 195 more domains (1 each)" in line for line in said)
    root = fill(tmp_path / "odd", [*trees("photo", "art"), "photo/.\x1b[2J.jpg", "photo/\x1b.txt"])
    said.clear()
    find_images(str(root), tmp_path, said)
    assert said and all(line.isprintable() for line in said)


@pytest.mark.parametrize("path", ["photo/\x1b[2Jdog/1.jpg", "ph\x1boto/dog/1.jpg"])
def test_folders_whose_names_steer_a_terminal_are_refused_in_escapes(tmp_path, path):
    root = fill(tmp_path / "mine", [*trees("photo", "art"), path])
    result = call("extract", "--dataset", root, "--dry-run", code=6)
    assert "\x1b" not in result.output and r"\x1b" in result.stderr


def test_federate_says_the_extraction_that_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_files, "CACHES", tmp_path / "files")
    root = fill(tmp_path / "mine", trees("train", "test", "sketch", images="{1..8}.jpg"))
    words = [
        "federate",
        "--dataset",
        root,
        "--model",
        "demo",
        "--rounds",
        1,
        "--out",
        tmp_path / "r",
    ]
    error = call(*words, code=6).stderr.strip().splitlines()[-1]
    command = shlex.split(error[error.index("./run.sh extract") :])
    call(*command[1:])
    call(*words)


def test_reproduce_takes_the_words_that_it_advises(tmp_path):
    root = fill(tmp_path / "mine", trees("A", "C", images="{1..10}.jpg"))
    words = ["reproduce", root, "--model", "demo", "--seeds", 1, "--rounds", 1, "--workers", 0,
             "--cache", tmp_path / "c.h5", "--out", tmp_path / "s"]  # fmt: skip
    error = call(*words, code=6).stderr.strip().splitlines()[-1]
    call(*words, *advised_words(error)[0])
