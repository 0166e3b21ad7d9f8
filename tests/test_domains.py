"""Image folders as rows: torchvision's order, strays, layouts, known sets, the content hash."""

import hashlib
import json
import os
import shutil
import sys

import numpy as np
import pytest

from pipeline.clip_model import import_clip
from pipeline.domains import (
    KNOWN,
    DataError,
    compare_counts,
    find_dataset,
    known_dataset,
    manifest_sha256,
    scan,
)


def make(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode())
    return root


def fill(root, counts):
    """Empty images: {domain: {class: number}}."""
    for domain, classes in counts.items():
        for name, number in classes.items():
            folder = root / domain / name
            folder.mkdir(parents=True)
            for i in range(number):
                (folder / f"{i}.jpg").touch()
    return root


def published(key):
    known = KNOWN[key]
    return {d: {c: known.counts[d, c] for c in known.class_names} for d in known.domain_names}


def needs_links(tmp_path):
    try:
        (tmp_path / "probe").symlink_to(tmp_path)
    except OSError as error:
        pytest.skip(f"no symbolic links here: {error}")
    (tmp_path / "probe").unlink()


@pytest.fixture(scope="module")
def image_folder():
    import_clip()  # repairs torchvision where it cannot be imported
    from torchvision.datasets import ImageFolder

    return ImageFolder


def as_image_folder_has_it(image_folder, domain):
    folder = image_folder(str(domain))
    paths = [os.path.relpath(path, domain).replace(os.sep, "/") for path, _ in folder.samples]
    return paths, [folder.classes[label] for _, label in folder.samples], folder.classes


def assert_equals_image_folder(image_folder, root):
    tree = scan(root)
    for number, domain in enumerate(tree.domain_names):
        paths, names, _ = as_image_folder_has_it(image_folder, root / domain)
        rows = np.flatnonzero(tree.domains == number)
        assert [tree.paths[i] for i in rows] == [f"{domain}/{path}" for path in paths]
        assert [tree.class_names[tree.labels[i]] for i in rows] == names
    assert np.all(np.diff(tree.domains) >= 0)
    return tree


def test_order_is_image_folders(tmp_path, image_folder):
    folders = [f"{d}/{c}" for d in ("b", "A", "a b") for c in ("dog", "Cat", "é")]
    make(
        tmp_path,
        *[f"{folder}/{i}.jpg" for folder in folders for i in (2, 10, 1)],
        "A/dog/UPPER.JPG", "A/dog/x.Jpeg", "A/dog/t.tif", "A/dog/w.webp", "A/dog/p.ppm",
        "A/dog/a/1.png", "A/dog/a b/1.png", "A/dog/a-b/1.png", "A/dog/a/z/1.png", "A/dog/a.b/1.png",
        "A/dog/0/1.png", "b/Cat/deep/er/1.bmp",
    )  # fmt: skip
    tree = assert_equals_image_folder(image_folder, tmp_path)
    assert tree.domain_names == ("A", "a b", "b")
    assert tree.class_names == ("Cat", "dog", "é")
    assert tree.labels.dtype == tree.domains.dtype == np.int64
    assert len(tree.paths) == len(set(tree.paths)) == 27 + 12
    assert tree.ignored == ()


def test_order_is_image_folders_on_random_trees(tmp_path, image_folder):
    random = np.random.default_rng(0)
    letters = list("aBz_0-. é+")

    def word():
        return "n" + "".join(random.choice(letters, 3)).rstrip(". ") + "n"

    for trial in range(12):
        root = tmp_path / str(trial)
        for domain in {word() for _ in range(3)}:
            for name in {word() for _ in range(4)}:
                for i in range(3):
                    make(root, f"{domain}/{name}/{word()}{i}.png")
                    inner = "/".join(word() for _ in range(random.integers(1, 3)))
                    make(root, f"{domain}/{name}/{inner}/{word()}{i}.JPG")
        assert_equals_image_folder(image_folder, root)


def test_links_are_followed_as_image_folder_does(tmp_path, image_folder):
    needs_links(tmp_path)
    elsewhere = make(tmp_path / "elsewhere", "1.jpg", "deep/2.jpg")
    root = make(tmp_path / "data", "photo/cat/1.jpg", "photo/cat/9.jpg", "photo/ant/1.jpg")
    (root / "photo/dog").symlink_to(elsewhere)
    (root / "photo/cat/m").symlink_to(elsewhere / "deep")
    (root / "photo/cat/5.jpg").symlink_to(elsewhere / "1.jpg")
    tree = assert_equals_image_folder(image_folder, root)
    assert "photo/dog/deep/2.jpg" in tree.paths and "photo/cat/m/2.jpg" in tree.paths


def test_a_link_to_a_folder_above_ends(tmp_path):
    needs_links(tmp_path)
    root = make(tmp_path / "data", "photo/cat/1.jpg", "art/cat/1.jpg")
    (root / "photo/cat/round").symlink_to(root / "photo")
    (root / "photo/cat/self").symlink_to("self")
    (root / "photo/other").symlink_to(root / "art/cat")
    (root / "art/cat/back").symlink_to(root / "photo/cat")
    tree = scan(root)
    assert {"photo/cat/1.jpg", "art/cat/1.jpg", "photo/other/1.jpg"} <= set(tree.paths)
    assert len(tree.paths) < 10
    assert "photo/cat/round/" in tree.ignored and "photo/cat/self" in tree.ignored


def test_class_image_is_one_domain_named_after_its_folder(tmp_path, image_folder, monkeypatch):
    root = make(tmp_path / "my photos", "dog/1.jpg", "cat/2.jpg", "dog/more/3.jpg")
    tree = scan(root)
    paths, names, classes = as_image_folder_has_it(image_folder, root)
    assert tree.domain_names == ("my photos",) and tree.class_names == tuple(classes)
    assert list(tree.paths) == paths
    assert [tree.class_names[label] for label in tree.labels] == names
    monkeypatch.chdir(root)
    assert scan(".").domain_names == ("my photos",)


def test_classes_with_folders_inside_are_no_domains(tmp_path, image_folder):
    make(tmp_path, "dog/1.jpg", "dog/2.jpg", "dog/more/3.jpg", "cat/1.jpg", "cat/more/2.jpg")
    tree = scan(tmp_path)
    assert tree.class_names == ("cat", "dog") and len(tree.domain_names) == 1
    assert list(tree.paths) == as_image_folder_has_it(image_folder, tmp_path)[0]


def test_a_class_may_be_missing_in_a_domain(tmp_path):
    make(tmp_path, "a/cat/1.jpg", "b/ant/1.jpg", "b/cat/1.jpg", "c/dog/1.jpg")
    (tmp_path / "a/ant").mkdir()
    tree = scan(tmp_path)
    assert tree.class_names == ("ant", "cat", "dog")
    assert tree.paths == ("a/cat/1.jpg", "b/ant/1.jpg", "b/cat/1.jpg", "c/dog/1.jpg")
    assert tree.labels.tolist() == [1, 0, 1, 2] and tree.domains.tolist() == [0, 1, 1, 2]
    assert tree.ignored == ("a/ant/",)


def test_strays_are_left_out_and_listed(tmp_path):
    images = [f"{d}/{c}/{i}.jpg" for d in ("art", "photo") for c in ("cat", "dog") for i in (1, 2)]
    strays = [
        ".DS_Store", "README.txt", "PACS.zip", "loose.jpg", "art/.DS_Store", "art/Thumbs.db",
        "art/list.txt", "art/loose.png", "art/cat/Thumbs.db", "art/cat/notes.md",
        "art/dog/._1.jpg", "art/dog/inner/x.txt",
    ]  # fmt: skip
    folders = ["__MACOSX/art/cat/1.jpg", ".git/a/b.jpg", "art/cat/.thumbs/1.jpg", "docs/a/b.txt"]
    make(tmp_path, *images, *strays, *folders)
    (tmp_path / "empty/inner").mkdir(parents=True)
    (tmp_path / "art/nothing").mkdir()
    tree = scan(tmp_path)
    assert list(tree.paths) == images
    assert tree.domain_names == ("art", "photo") and tree.class_names == ("cat", "dog")
    expected = {s for s in strays if s != "art/dog/inner/x.txt"} | {
        "__MACOSX/", ".git/", "art/cat/.thumbs/", "docs/", "empty/", "art/nothing/",
        "art/dog/inner/",
    }  # fmt: skip
    assert set(tree.ignored) == expected and list(tree.ignored) == sorted(tree.ignored)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_named_like_an_image_blocks_nothing(tmp_path):
    make(tmp_path, "a/cat/1.jpg", "b/cat/1.jpg")
    os.mkfifo(tmp_path / "a/cat/2.jpg")
    tree = scan(tmp_path)
    assert tree.paths == ("a/cat/1.jpg", "b/cat/1.jpg") and tree.ignored == ("a/cat/2.jpg",)
    manifest_sha256(tree)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (None, "there is no such folder"),
        ((), "no image"),
        (("a/b/readme.txt", "x.zip"), "no image"),
        (("1.jpg", "2.jpg"), "its 2 images lie directly in it"),
        (("dog/1.jpg", "art/dog/1.jpg"), "two depths, as dog/1.jpg and as art/dog/1.jpg"),
        (("a/1.jpg", "a/2.jpg", "a/c/1.jpg", "b/1.jpg", "b/c/1.jpg", "b/c/2.jpg"), "two depths"),
        (("PACS/art/dog/1.jpg", "PACS/photo/dog/2.jpg"), "too deep, as PACS/art/dog/1.jpg"),
    ],
)
def test_trees_that_cannot_be_read_so(tmp_path, files, words):
    root = tmp_path / "data"
    if files is not None:
        root.mkdir()
        make(root, *files)
    with pytest.raises(DataError) as caught:
        scan(root)
    message = str(caught.value)
    assert words in message and str(root) in message and "\n" not in message
    assert "FOLDER/domain/class/image" in message


def test_a_file_costs_no_stat(tmp_path, monkeypatch):
    """What keeps 600,000 files at about a second."""
    fill(tmp_path, {d: {c: 40 for c in "xyz"} for d in "ab"})
    calls = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *a, **k: calls.append(a) or stat(*a, **k))
    assert len(scan(tmp_path).paths) == 240
    assert len(calls) <= 20


def test_a_file_is_no_tree(tmp_path):
    make(tmp_path, "data.zip")
    with pytest.raises(DataError, match="this is a file"):
        scan(tmp_path / "data.zip")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names themselves")
def test_a_name_that_is_not_utf8_is_named(tmp_path):
    make(tmp_path, "a/cat/1.jpg")
    (tmp_path / os.fsdecode(b"a/cat/\xff.jpg")).touch()
    with pytest.raises(DataError, match=r"a/cat/\\\\?udcff\.jpg.* is not UTF-8"):
        scan(tmp_path)


def test_the_manifest_is_of_names_sizes_and_bytes(tmp_path):
    first = make(tmp_path / "x", "a/cat/1.jpg", "a/dog/2.jpg", "b/dog/1.jpg")
    (first / "a/cat/1.jpg").write_bytes(b"7" * 1_000_000)
    copy = tmp_path / "y"
    shutil.copytree(first, copy)
    base = manifest_sha256(scan(first))
    assert base == manifest_sha256(scan(copy))

    lines = [
        f"{path}\0{(first / path).stat().st_size}\0"
        + hashlib.sha256((first / path).read_bytes()).hexdigest()
        for path in ("a/cat/1.jpg", "a/dog/2.jpg", "b/dog/1.jpg")
    ]
    assert base == hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()

    seen = {base}
    content = bytearray((copy / "a/cat/1.jpg").read_bytes())
    content[777_777] ^= 1
    (copy / "a/cat/1.jpg").write_bytes(content)
    seen.add(manifest_sha256(scan(copy)))
    (copy / "a/dog/2.jpg").rename(copy / "a/dog/3.jpg")
    seen.add(manifest_sha256(scan(copy)))
    make(copy, "b/dog/4.jpg")
    seen.add(manifest_sha256(scan(copy)))
    assert len(seen) == 4


def test_a_dead_link_is_a_row_and_hashes_as_unreadable(tmp_path):
    needs_links(tmp_path)
    root = make(tmp_path / "data", "a/cat/1.jpg", "b/cat/1.jpg")
    (root / "a/cat/0.jpg").symlink_to(tmp_path / "gone.jpg")
    tree = scan(root)
    assert tree.paths == ("a/cat/0.jpg", "a/cat/1.jpg", "b/cat/1.jpg")
    dead = manifest_sha256(tree)
    (tmp_path / "gone.jpg").touch()
    assert manifest_sha256(scan(root)) != dead


def test_the_manifest_reports_every_file_once(tmp_path):
    tree = scan(fill(tmp_path, {"a": {"x": 150}, "b": {"x": 51}}))
    done = []
    manifest_sha256(tree, done.append)
    assert sum(done) == 201 and len(done) > 1


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
    assert KNOWN["pacs"].url == "https://wjdcloud.blob.core.windows.net/dataset/PACS.zip"
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
        "clipart: this is no domain of PACS (1 images)",
        "cat: this is no class of PACS (1 images)",
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
    assert lines == ["Trash_Can: there are 2 folders of it, Trash Can, Trash_Can"]


def test_two_spellings_of_one_domain_are_told():
    counts = published("vlcs")
    counts["PASCAL"] = {"bird": 2}
    lines = compare_counts(Counts(counts), "vlcs")
    assert lines == [
        "VOC2007: there are 2 folders of it, PASCAL, VOC2007",
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
    with pytest.raises(DataError, match="'pasc' is not known.*Did you mean pacs?"):
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
        ("pacs", (), ("data", "PACS (not there)", "./run.sh download pacs", "art_painting")),
        ("pacs", ("pacs/x/y", "pacs/photo"), ("pacs", "x", "./run.sh download pacs")),
        ("pacs", ("other/photo", "other/sketch"), ("(not there)",)),
        ("domain_net", ("PACS/photo",), ("put it at", "domain_net", "--root")),
    ],
)
def test_what_is_not_found_names_every_place(tmp_path, name, there, words):
    root = tmp_path / "data"
    for path in there:
        (root / path).mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        find_dataset(name, root)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_the_real_subset(shared, image_folder):
    root = find_dataset("pacs", shared / "data/pacs-subset")
    tree = assert_equals_image_folder(image_folder, root)
    assert len(tree.paths) == 840 and tree.ignored == ()
    lines = compare_counts(tree, "pacs")
    assert len(lines) == 28 and lines[0] == (
        "art_painting/dog: 30 images, 349 short of the 379 published"
    )
