"""Image folders as rows: torchvision's order, strays, both layouts, the hash of the content."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from cache.identity import manifest_sha256 as manifest
from pipeline.datasets.tree import image_digests, scan
from pipeline.encoder.model import import_clip
from pipeline.errors import DataError
from tests.conftest import ROOT, on_linux, on_posix


def manifest_sha256(tree) -> str:
    return manifest(tree.paths, image_digests(tree))


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


@on_posix("makes pipes")
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


@on_linux("makes a name that other systems refuse themselves")
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


def test_the_real_subset(shared, image_folder):
    tree = assert_equals_image_folder(image_folder, shared / "data/pacs-subset")
    assert len(tree.paths) == 840 and tree.ignored == ()


def drawn_tree(root, count=200):
    for number in range(count):
        path = root / "photo" / "dog" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number % 256]) * (number + 1))
    return scan(root)


HASHED = """
import os, signal, sys
from pathlib import Path
from pipeline.datasets.tree import image_digests, scan
tree = scan(Path(sys.argv[1]))
for path in tree.paths[: int(sys.argv[2])]:  # as on a disk that does not answer any more
    os.unlink(tree.root / path)
    os.mkfifo(tree.root / path)
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in a script's background ignore it
print("hashing", flush=True)
image_digests(tree)
"""


@on_posix("makes pipes")
@pytest.mark.parametrize("dead", [1, 200])
def test_ctrl_c_ends_hashing_while_a_disk_does_not_answer(tmp_path, dead):
    drawn_tree(tmp_path)
    command = [sys.executable, "-c", HASHED, str(tmp_path), str(dead)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as one:
        assert one.stdout.readline() == b"hashing\n"
        time.sleep(0.5)
        one.send_signal(signal.SIGINT)
        try:
            assert one.wait(60) != 0
        finally:
            one.kill()
        assert b"KeyboardInterrupt" in one.stderr.read()


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_fewer_threads_than_asked_for_hash_all_the_same(tmp_path, monkeypatch, allowed):
    tree = drawn_tree(tmp_path)
    ref = image_digests(tree)
    left, start = [None] * allowed, threading.Thread.start

    def limited(thread):
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert np.array_equal(image_digests(tree), ref)


def test_an_error_in_a_thread_that_hashes_is_raised(tmp_path, monkeypatch):
    tree = drawn_tree(tmp_path)
    monkeypatch.setattr("pipeline.datasets.tree.hashlib", None)
    with pytest.raises(AttributeError):
        image_digests(tree)
