"""Known data sets: their published counts, their folders' spellings, and what differs."""

import json
import re
import shlex

import numpy as np
import pytest

from pipeline.cli.app import cli
from pipeline.datasets.counts import DOWNLOADS, KNOWN
from pipeline.datasets.find import find_images, refuse_copies
from pipeline.datasets.known import compare_counts, find_dataset, known_dataset
from pipeline.datasets.stated import Stated
from pipeline.datasets.tree import image_digests, scan
from pipeline.errors import DataError
from tests.cli.commands import call


def published(key):
    known = KNOWN[key]
    return {d: {c: known.counts[d, c] for c in known.class_names} for d in known.domain_names}


def spread(total, class_names):
    """`total` images over the classes, one each and the rest in the last."""
    counts = dict.fromkeys(class_names, 1)
    counts[class_names[-1]] = total - len(class_names) + 1
    return counts


class Counts:
    """Stands for a scanned tree where only its counts matter."""

    def __init__(self, counts):
        self.domain_names = tuple(sorted(counts))
        self.class_names = tuple(sorted({c for classes in counts.values() for c in classes}))
        rows = [
            (d, self.class_names.index(c), n)
            for d, name in enumerate(self.domain_names)
            for c, n in sorted(counts[name].items())
        ]
        repeats = [n for *_, n in rows]
        self.domains = np.repeat([d for d, *_ in rows], repeats)
        self.labels = np.repeat([c for _, c, _ in rows], repeats)
        self.paths = range(sum(repeats))


def test_the_published_counts_add_up():
    totals = {k: sum(v[0] for v in known.rows.values()) for k, known in KNOWN.items()}
    assert totals == {
        "pacs": 9991, "vlcs": 10729, "office_home": 15588, "domain_net": 586575,
        "terra_incognita": 24788,
    }  # fmt: skip
    assert KNOWN["pacs"].urls == ("https://wjdcloud.blob.core.windows.net/dataset/PACS.zip",)
    assert KNOWN["pacs"].rows["sketch"] == (3929,)
    assert KNOWN["office_home"].rows["Real_World"] == (4357,)
    assert [len(k.class_names) for k in KNOWN.values()] == [7, 5, 65, 345, 10]
    for known in KNOWN.values():
        assert list(known.class_names) == sorted(set(known.class_names))


def test_the_published_counts_are_the_shared_ones(shared):
    facts = json.loads((shared / "data/dataset_counts.json").read_text())
    for key in ("pacs", "vlcs", "office_home"):
        assert published(key) == facts[key]["counts"]
    assert {d: n[0] for d, n in KNOWN["domain_net"].rows.items()} == facts["domainnet"]["cleaned"]
    assert list(KNOWN["domain_net"].class_names) == facts["domainnet"]["classes_imagefolder_order"]
    terra = facts["terra_incognita"]
    rows = {d: n[0] for d, n in KNOWN["terra_incognita"].rows.items()}
    assert rows == terra["old_release"]["domains"]
    assert KNOWN["terra_incognita"].totals == (terra["current_release"]["total"],)


@pytest.mark.parametrize("key", ["pacs", "vlcs", "office_home"])
def test_a_whole_data_set_agrees(key):
    assert compare_counts(Counts(published(key)), key) == []


def test_each_difference_is_a_line():
    counts = published("pacs")
    counts["photo"]["dog"] -= 3
    counts["cartoon"] |= {"house": 289, "cat": 1}
    del counts["sketch"]["guitar"], counts["art_painting"]
    counts["clipart"] = {"dog": 1}
    assert compare_counts(Counts(counts), "PACS") == [
        "clipart: not a domain of PACS (1 images)",
        "cat: not a class of PACS (1 images)",
        "art_painting: this domain is missing (2,048 images published)",
        "cartoon/house: 289 images, 1 more than the 288 published",
        "photo/dog: 186 images, 3 short of the 189 published",
        "sketch/guitar: 0 images, 608 short of the 608 published",
    ]


@pytest.mark.parametrize("spelling", ["Real World", "RealWorld", "real_world"])
def test_spellings_of_domains_and_classes(spelling):
    spaced = {
        domain: {name.replace("_", " "): n for name, n in classes.items()}
        for domain, classes in published("office_home").items()
    }
    spaced[spelling] = spaced.pop("Real_World")
    assert compare_counts(Counts(spaced), "Office-Home") == []


def test_two_spellings_of_one_class_are_told():
    """They would be two classes to whoever trains on the folder."""
    counts = published("office_home")
    counts["Art"]["Trash Can"] = counts["Art"].pop("Trash_Can")
    lines = compare_counts(Counts(counts), "office_home")
    assert lines == ["Trash_Can: has 2 folders, Trash Can, Trash_Can"]


def test_two_spellings_of_one_domain_are_told():
    counts = published("vlcs")
    counts["PASCAL"] = {"bird": 2}
    lines = compare_counts(Counts(counts), "vlcs")
    assert lines == [
        "VOC2007: has 2 folders, PASCAL, VOC2007",
        "VOC2007/bird: 332 images, 2 more than the 330 published",
    ]


@pytest.mark.parametrize("clipart", [48129, 48133])
def test_both_counts_of_domain_net_clipart_agree(clipart):
    known = KNOWN["domain_net"]
    rows = {d: n[0] for d, n in known.rows.items()} | {"clipart": clipart}
    counts = {d: spread(n, known.class_names) for d, n in rows.items()}
    assert compare_counts(Counts(counts), "DomainNet") == []
    counts["clipart"]["zigzag"] += 700
    assert len(compare_counts(Counts(counts), "DomainNet")) == 1


def test_both_releases_of_terra_incognita_agree():
    known = KNOWN["terra_incognita"]
    old = {d: spread(n[0], known.class_names) for d, n in known.rows.items()}
    assert compare_counts(Counts(old), "terra_incognita") == []
    present = {d: spread(6000, known.class_names) for d in known.domain_names}
    present["location_46"] = spread(24330 - 18000, known.class_names)
    assert compare_counts(Counts(present), "terra_incognita") == []
    present["location_46"] = spread(24330 - 18000 + 1, known.class_names)
    assert len(compare_counts(Counts(present), "terra_incognita")) == 4


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("pacs", "pacs"), ("PACS", "pacs"), ("VLCS", "vlcs"), ("OfficeHome", "office_home"),
        ("Office-Home", "office_home"), ("OfficeHomeDataset_10072016", "office_home"),
        ("DomainNet", "domain_net"), ("domain_net", "domain_net"), ("domainnet", "domain_net"),
        ("TerraIncognita", "terra_incognita"), ("terra_incognita", "terra_incognita"),
    ],
)  # fmt: skip
def test_spellings_of_data_sets(name, key):
    assert known_dataset(name) == key


def test_an_unknown_data_set_gets_the_nearest_name():
    with pytest.raises(DataError, match="unknown data set 'pasc'.*Did you mean pacs?"):
        known_dataset("pasc")


@pytest.mark.parametrize(
    ("name", "inner", "domains"),
    [
        ("pacs", "PACS", "art_painting cartoon photo sketch"),
        ("pacs", "pacs", "art_painting cartoon photo sketch"),
        ("pacs", "PACS/kfold", "art_painting cartoon photo sketch"),
        ("pacs", "kfold", "art_painting cartoon photo sketch"),
        ("PACS", "PACS/PACS/images", "art_painting cartoon photo sketch"),
        ("pacs", ".", "art_painting cartoon photo sketch"),
        ("pacs", "PACS", "photo sketch"),
        ("vlcs", "VLCS/VLCS", "Caltech101 LabelMe SUN09 VOC2007"),
        ("vlcs", "vlcs", "CALTECH LABELME SUN PASCAL"),
        ("office_home", "OfficeHomeDataset_10072016", "Art;Clipart;Product;Real World"),
        ("Office-Home", "office-home", "Art Clipart Product RealWorld"),
        ("domain_net", "DomainNet", "clipart infograph painting quickdraw real sketch"),
        ("TerraIncognita", "terra_incognita", "location_38 location_43 location_46 location_100"),
    ],
)
def test_known_data_sets_are_found(tmp_path, name, inner, domains):
    for domain in domains.split(";" if ";" in domains else None):
        (tmp_path / inner / domain).mkdir(parents=True)
    (tmp_path / "__MACOSX" / "PACS" / "photo").mkdir(parents=True)
    (tmp_path / "zzz" / "photo").mkdir(parents=True)
    assert find_dataset(name, tmp_path) == tmp_path / inner


def test_a_fuller_copy_wins_over_a_poorer_one(tmp_path):
    for path in ("PACS/photo", "PACS/sketch", "pacs/photo", "pacs/sketch", "pacs/cartoon"):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system does not tell PACS from pacs")
    assert find_dataset("pacs", tmp_path).name == "pacs"


@pytest.mark.parametrize(
    ("name", "there", "words"),
    [
        ("pacs", (), ("data", "PACS (missing)", "./run.sh download pacs", "art_painting")),
        ("pacs", ("pacs/x/y", "pacs/photo"), ("pacs", "x", "./run.sh download pacs")),
        ("pacs", ("other/photo", "other/sketch"), ("(missing)",)),
        ("terra_incognita", ("PACS/photo",), ("put it at", "terra_incognita", "--root")),
    ],
)
def test_what_is_not_found_names_every_place(tmp_path, name, there, words):
    root = tmp_path / "data"
    for path in there:
        (root / path).mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        find_dataset(name, root)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_advised_for_a_missing_data_set_is_not_refused(tmp_path, name):
    """A command that is named takes its words; a folder that is named is one that is looked at."""
    result = call("extract", "--dataset", name, "--root", tmp_path / "my data", code=6)
    error = result.stderr.strip().splitlines()[-1]
    for command in re.findall(r"run \./run\.sh ([^,]*)", error):
        words = shlex.split(command)
        cli.commands[words[0]].make_context(words[0], words[1:])
        assert words[words.index("--root") + 1] == str(tmp_path / "my data")
    assert ("./run.sh download" in error) == (name in DOWNLOADS)
    place = tmp_path / "my data" / KNOWN[name].title
    if name not in DOWNLOADS:
        assert f"put it at {place}" in error
    for domain in KNOWN[name].domain_names:
        (place / domain).mkdir(parents=True)
    assert find_dataset(name, tmp_path / "my data") == place


def test_known_data_sets_are_read_unasked(tmp_path):
    """With the domains and classes that they are published with."""
    for key, known in KNOWN.items():
        for domain in known.domain_names:
            for name in known.class_names:
                folder = tmp_path / known.title / domain / name
                folder.mkdir(parents=True)
                (folder / "1.jpg").write_bytes(b"the same in every domain")
        tree = find_images(key, tmp_path, lambda line: None)
        assert tree.layout == "domain/class" and tree.class_names == known.class_names
        assert tree.split is None and not tree.renamed
        refuse_copies(key, tree, image_digests(tree), Stated(), lambda line: None)


def test_the_real_subset(shared):
    tree = scan(find_dataset("pacs", shared / "data/pacs-subset"))
    lines = compare_counts(tree, "pacs")
    assert len(lines) == 28 and lines[0] == (
        "art_painting/dog: 30 images, 349 short of the 379 published"
    )
