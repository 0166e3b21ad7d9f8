"""Folders as people have them: read right, or refused with the words that state what is meant."""

import json
import unicodedata

import numpy as np
import pytest

from cache.store import info, merge_shards, read_paths, read_table
from pipeline.datasets.find import find_images
from pipeline.datasets.layouts import split_of
from pipeline.datasets.stated import Stated
from pipeline.errors import DataError, Doubtful
from tests.cli.commands import call
from tests.datasets.folders import CLASSES, advised_folders, advised_words, fill, trees
from tests.extraction.extraction import Said, run

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


READ = {  # paths, layout, domains, classes, images by split
    "domains": (trees("photo", "art"), "domain/class", 2, 2, None),
    "one domain": (trees(".")[:], "class", 1, 2, None),
    "one image a class": (trees("photo", "art", images="1.jpg"), "domain/class", 2, 2, None),
    "a class in one domain alone": ([*trees("photo", "art"), "art/ant/1.jpg"],
                                    "domain/class", 2, 3, None),
    "folders in classes": ([*trees("photo", "art", images="{1..2}/{1..2}.jpg"),
                            *trees("photo", "art", images="{1..4}.jpg")],
                           "domain/class", 2, 2, None),
    "a class named train": ([*trees("photo", "art"), "photo/train/1.jpg", "art/train/1.jpg"],
                            "domain/class", 2, 3, None),
    "ImageFolder": (trees("train", "val", "test"), "split/class", 1, 2, (4, 4, 4)),
    "capitals": (trees("Train", "VAL"), "split/class", 1, 2, (4, 4, 0)),
    "long words": (trees("training", "validation", "testing"), "split/class", 1, 2, (4, 4, 4)),
    "years": (trees("train2017", "val2017"), "split/class", 1, 2, (4, 4, 0)),
    "sets": (trees("training_set", "test-set"), "split/class", 1, 2, (4, 0, 4)),
    "valid, dev": (trees("train", "valid", "dev"), "split/class", 1, 2, (4, 8, 0)),
    "Dassl": (trees("CALTECH/train", "CALTECH/crossval", "CALTECH/test", "SUN/train",
                    "SUN/crossval", "SUN/test"), "domain/split/class", 2, 2, (8, 8, 8)),
    "Office-Home-DG": (trees("art/train", "art/val", "real/train", "real/val"),
                       "domain/split/class", 2, 2, (8, 8, 0)),
    "a domain without test": (trees("art/train", "art/test", "real/train"),
                              "domain/split/class", 2, 2, (8, 0, 4)),
    "splits above": (trees("Training/art", "Training/real", "Testing/art", "Testing/real"),
                     "split/domain/class", 2, 2, (8, 0, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_is_in_no_doubt_is_read_unasked(name, tmp_path):
    paths, layout, domains, classes, split = READ[name]
    fill(tmp_path / "mine", paths)
    said = Said()
    tree = find_images(str(tmp_path / "mine"), tmp_path, said, templates=("a {}",))
    assert (tree.layout, len(tree.domain_names), len(tree.class_names)) == (
        layout,
        domains,
        classes,
    )
    if split is None:
        assert tree.split is None
    else:
        assert tuple(np.bincount(tree.split, minlength=3).tolist()) == split
    assert not tree.ignored and len(set(tree.paths)) == len(tree.paths) == sum(
        file.is_file() for file in (tmp_path / "mine").rglob("*")
    )
    for path, label, domain, part in zip(
        tree.paths, tree.labels, tree.domains, tree.split if split else tree.labels, strict=True
    ):
        for level, folder in zip(layout.split("/"), path.split("/"), strict=False):
            expected = {"class": tree.class_names[label], "domain": tree.domain_names[domain]}
            assert part == split_of(folder) if level == "split" else folder == expected[level]
    assert any(f"{len(tree.paths):,} images" in line and layout in line for line in said)
    assert f'prompt: "a {tree.class_names[0]}"' in said


REFUSED = {  # paths, what is said, what the first advised words make of it: layout, classes
    "splits among domains": (trees("train", "test", "sketch"), "'test', 'train' are names of split",
                             "domain/class", 2),
    "train alone": (trees("train"), "all images are in the split train", "split/class", 2),
    "train alone below": (trees("art/train", "real/train"), "in the split train",
                          "domain/split/class", 2),
    "splits in classes": ([f"{c}/{s}/1.jpg" for c in CLASSES for s in ("train", "test")],
                          "'test', 'train' could be splits", "domain/class", 2),
    "flat splits": (["train/1.jpg", "test/2.jpg"], "could be splits", "class", 2),
    "full beside train": (trees("A1/train", "A1/test", "A1/full", "B1/train", "B1/test"),
                          "too deep", "domain/split/class", 2),
    "some domains with splits": (trees("art/train", "art/test", "real"), "two depths",
                                 "domain/split/class", 2),
    "no classes in test": ([*trees("train"), "test/1.jpg"], "two depths", "domain/class", 2),
    "numbers": (trees("photo", "art", classes="0123456789"), "'0', '1', '2' and 7 more are numbers",
                "domain/class", 10),
    "codes": (trees("photo", "art", classes=("class_1", "class_2")), "are numbers or codes",
              "domain/class", 2),
    "ImageNet ids": (trees("train", "val", classes=("n01440764", "n01443537")), "are ImageNet ids",
                     "split/class", 2),
    "numbers in splits": (trees("art/train", "real/test", classes="01"), "are numbers or codes",
                          "domain/split/class", 2),
    "one letter": (trees("A", "C", "P"), "'A', 'C', 'P' are single characters", "domain/class", 2),
    "one class": (trees("photo", "art", classes=("dog",)), "only one class, 'dog'",
                  "domain/class", 1),
    "nothing in common": (trees("pets") + trees("cars", classes=("vw", "bmw")),
                          "no class in common", "domain/class", 4),
    "a space behind": (trees("photo", "art") + ["art/dog /1.jpg"], "'dog' and 'dog '",
                       "domain/class", 3),
    "case": (trees("photo", "art") + ["art/Dog/1.jpg"], "'Dog' and 'dog'", "domain/class", 3),
    "sharp s": (trees("photo", "art", classes=("Straße", "STRASSE")), "'STRASSE' and 'Straße'",
                "domain/class", 2),
    "underscore": (["photo/Alarm_Clock/1.jpg", "art/Alarm Clock/1.jpg", *trees("photo", "art")],
                   "'Alarm Clock' and 'Alarm_Clock' in different domains", "domain/class", 4),
    "Unicode forms": ([*trees("photo", "art"), f"photo/{NFC}/1.jpg", f"art/{NFD}/1.jpg"],
                      "in 2 Unicode forms", "domain/class", 4),
    "full width": (trees("photo", "art") + ["art/ｄｏｇ/1.jpg"], "'dog' and 'ｄｏｇ'",
                   "domain/class", 3),
    "domains' spelling": (trees("Real World", "Real_World"), "folders differ only in spelling",
                          "domain/class", 2),
    "several at once": (trees("A", "C", classes=("1", "2")),
                        "single characters; the classes '1', '2'", "domain/class", 2),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_dangerous_to_guess_is_refused_and_the_advised_words_do(name, tmp_path):
    paths, match, layout, classes = REFUSED[name]
    root = fill(tmp_path / "mine", paths)
    if len({file.parent for file in root.rglob("*.jpg")}) < len(
        {p.rsplit("/", 1)[0] for p in paths}
    ):
        pytest.skip("this file system takes these names for one")
    out = tmp_path / "x.h5"
    result = call("extract", "--dataset", root, "--model", "demo", "--out", out, code=6)
    error = result.stderr.strip().splitlines()[-1]
    assert match in error and "Traceback" not in result.stderr
    assert not list(tmp_path.glob("x.h5*"))
    advised = advised_words(error)
    assert advised, error
    for number, words in enumerate(advised):
        told = call("extract", "--dataset", root, "--dry-run", "--json", *words)
        facts = json.loads(told.stdout)
        if not number:
            assert (facts["layout"], len(facts["classes"])) == (layout, classes)
    for folder in advised_folders(error):
        call("extract", "--dataset", folder, "--dry-run")


def test_random_trees_are_read_right_or_refused_with_words_that_do(tmp_path):
    """Of names that are splits, numbers, spellings of each other or ordinary, at every depth."""
    random = np.random.default_rng(0)
    pools = [
        ["train", "Val", "test", "TESTING", "dev"],
        ["photo", "art", "Real World", "Real_World", "A", "test"],
        ["dog", "cat", "Dog", "dog ", "n01440764", "7", "train", "val", NFC, NFD],
    ]
    refusals = 0
    for trial in range(150):
        root, chosen = tmp_path / str(trial), random.permutation(3)[: random.integers(1, 4)]
        levels = [random.choice(pools[k], random.integers(1, 4), replace=False) for k in chosen]
        paths = [""]
        for level in levels:
            paths = [f"{above}{name}/" for above in paths for name in level]
        kept = [path for path in paths if random.random() < 0.9] or paths
        fill(root, [f"{path}{{1..2}}.jpg" for path in kept])
        try:
            tree = find_images(str(root), tmp_path, Said())
        except DataError as error:
            refusals += 1
            for words in advised_words(str(error)):
                call("extract", "--dataset", root, "--dry-run", *words)
            for folder in advised_folders(str(error).replace("'", "")):
                call("extract", "--dataset", folder, "--dry-run")
            continue
        names = tree.layout.split("/")
        for path, label in zip(tree.paths, tree.labels, strict=True):
            assert path.split("/")[names.index("class")] == tree.class_names[label]
        found = {level: [split_of(p.split("/")[k]) for p in tree.paths]
                 for k, level in enumerate(names)}  # fmt: skip
        assert set(found.get("domain", [])) <= {None} and None not in found.get("split", [])
    assert 20 < refusals < 145


@pytest.mark.parametrize("name", ["splits among domains", "numbers in splits", "Unicode forms"])
def test_with_the_advised_words_it_is_extracted(name, tmp_path):
    root, out = fill(tmp_path / "mine", REFUSED[name][0]), tmp_path / "x.h5"
    words = ["extract", "--dataset", root, "--model", "demo", "--out", out, "--workers", 0]
    error = call(*words, code=6).stderr.strip().splitlines()[-1]
    call(*words, *advised_words(error)[0])
    assert info(out)["rows"] == len(list(root.rglob("*.jpg")))


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (trees("PACS/art", "PACS/photo"), ["PACS"]),
        (trees("in/PACS/art", "in/PACS/photo"), []),  # two folders above: none of ours helps
        (trees("one/art", "one/photo", "two/art", "two/photo"), ["one", "two"]),
        (trees("art/2019", "art/2020", "photo/2019/x"), []),
        (trees("pets") + trees("cars", classes=("vw", "bmw")), ["cars", "pets"]),
    ],
)
def test_a_parent_of_data_sets_names_those_that_can_be_read(tmp_path, paths, expected):
    fill(tmp_path / "mine", paths)
    with pytest.raises(DataError) as caught:
        find_images(str(tmp_path / "mine"), tmp_path, Said())
    assert advised_folders(str(caught.value)) == [str(tmp_path / "mine" / one) for one in expected]
    for folder in advised_folders(str(caught.value)):
        find_images(folder, tmp_path, Said())


def test_one_split_of_several_is_recognised(tmp_path):
    fill(tmp_path / "mine", trees("train", "test"))
    with pytest.raises(Doubtful, match="'train' is the name of a split") as caught:
        find_images(str(tmp_path / "mine" / "train"), tmp_path, Said())
    assert advised_folders(str(caught.value)) == [str(tmp_path / "mine")]
    find_images(str(tmp_path / "mine"), tmp_path, Said())
    find_images(str(tmp_path / "mine" / "train"), tmp_path, Said(), stated=Stated("class"))


def test_one_domain_of_several_is_said(tmp_path):
    fill(tmp_path / "mine", trees("photo", "art"))
    said = Said()
    find_images(str(tmp_path / "mine" / "photo"), tmp_path, said)
    assert (
        said[-1]
        == f"folders beside it have the same classes; to use all of them, name {tmp_path}/mine"
    )
    fill(tmp_path, ["mine/else/1.jpg"])  # then the folder above is no whole
    said.clear()
    find_images(str(tmp_path / "mine" / "photo"), tmp_path, said)
    assert "beside" not in said[-1]


@pytest.mark.parametrize("name", ["ImageFolder", "Dassl", "splits above"])
def test_splits_on_disk_are_the_caches_also_in_shards(name, tmp_path, weights):
    root, whole = fill(tmp_path / "mine", READ[name][0]), tmp_path / "whole.h5"
    run(root, weights, whole, batch=3)
    table, paths = read_table(whole), read_paths(whole)
    for path, part in zip(paths, table.split, strict=True):
        named = next(split_of(folder) for folder in path.split("/") if split_of(folder) is not None)
        assert named == part
    assert info(whole)["identity"]["layout"] == READ[name][1]
    files = [run(root, weights, tmp_path / "x.h5", batch=3, shard=f"{i}/2")[0].path for i in (1, 2)]
    assert merge_shards(files).read_bytes() == whole.read_bytes()
    again, said = run(root, weights, whole, batch=3)
    assert not again.encoded and any("up to date" in line for line in said)
    call("extract", "--dataset", root, "--model", weights, "--out", whole, "--check", 5)
