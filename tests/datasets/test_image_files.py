"""One walker and one list of extensions: what extract and predict take of a folder is the same."""

import os

import numpy as np
import pytest

from pipeline.datasets.find import find_images
from pipeline.datasets.image_files import (
    IMAGE_EXTENSIONS,
    MOST_VISITS,
    NEEDS_CONVERTER,
    kind_of,
    read_folder,
)
from pipeline.datasets.tree import scan
from pipeline.encoder.pixels import load_pixels
from pipeline.errors import DataError
from pipeline.runs.predict import find_pictures
from tests.conftest import on_posix
from tests.datasets.folders import fill, picture
from tests.extraction.extraction import Said
from tests.packages import need_codec

ENCODERS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".apng": "PNG",
    ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM", ".bmp": "BMP",
    ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".gif": "GIF", ".avif": "AVIF",
    ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".jpx": "JPEG2000",
}  # fmt: skip


@pytest.mark.parametrize("extension", IMAGE_EXTENSIONS)
def test_what_is_taken_by_its_name_can_be_decoded(tmp_path, extension):
    if extension == ".avif":
        need_codec("avif")
    for name in (f"x{extension}", f"x{extension.upper()}"):
        file = tmp_path / "photo" / "cat" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(3, ENCODERS[extension]))
        assert load_pixels(file, 16).shape == (16, 16, 3)
        assert scan(tmp_path).paths == (f"photo/cat/{name}",)
        assert find_pictures([str(tmp_path)]) == ([file], [])
        file.unlink()


@pytest.mark.parametrize("extension", NEEDS_CONVERTER)
def test_what_needs_a_converter_is_said_by_its_name(tmp_path, extension):
    kind = NEEDS_CONVERTER[extension]
    fill(tmp_path / "mine", ["photo/cat/1.jpg", "photo/dog/1.jpg", "art/cat/1.jpg"])
    (tmp_path / "mine/photo/cat" / f"2{extension.upper()}").write_bytes(b"\0\0\0\x18ftypheic")
    said = Said()
    find_images(str(tmp_path / "mine"), tmp_path, said)
    assert any(f"1 {kind} images ('photo/cat/2{extension.upper()}'): {kind} needs a converter" in
               line for line in said)  # fmt: skip
    files, lost = find_pictures([str(tmp_path / "mine")])
    assert len(files) == 3
    assert [one.error for one in lost] == [f"{kind} needs a converter: save it as JPEG or PNG"]
    for inner in ("a/b", "a/c"):  # a folder of nothing else
        (tmp_path / "only" / inner).mkdir(parents=True)
        (tmp_path / "only" / inner / f"2{extension}").touch()
    with pytest.raises(DataError, match=f"2 as a/b/2{extension}: {kind} needs a converter"):
        scan(tmp_path / "only")


JUNK = {
    "photo/cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg": "thumbnails of a NAS",
    ".@__thumb/1.jpg": "thumbnails of a NAS",
    "#recycle/cat/1.jpg": "files of a NAS",
    "photo/.AppleDouble/1.jpg": "files of macOS",
    "__MACOSX/photo/cat/1.jpg": "files of macOS",
    "photo/cat/._1.jpg": "files of macOS",
    "photo/cat/.DS_Store": "files of macOS",
    "photo/cat/Thumbs.db": "files of Windows",
    "photo/desktop.ini": "files of Windows",
    "System Volume Information/a/1.jpg": "files of Windows",
    "$RECYCLE.BIN/cat/1.jpg": "files of Windows",
    ".ipynb_checkpoints/cat/1.jpg": "Jupyter checkpoints",
    "photo/cat/.ipynb_checkpoints/1-checkpoint.jpg": "Jupyter checkpoints",
    "lost+found/1.jpg": "lost+found",
    ".git/cat/1.jpg": "version control",
    "photo/.cache/1.jpg": "hidden",
    "photo/cat/.hidden.jpg": "hidden",
    "photo/cat/notes.txt": "not images",
    "docs/readme.md": "folders without images",
    "photo/loose.jpg": "in no class folder",
}


@pytest.mark.parametrize("path", JUNK)
def test_junk_is_left_out_and_counted_by_kind(tmp_path, path):
    images = ["art/cat/1.jpg", "art/dog/1.jpg", "photo/cat/1.jpg", "photo/dog/1.jpg"]
    fill(tmp_path / "mine", [*images, path])
    said = Said()
    tree = find_images(str(tmp_path / "mine"), tmp_path, said)
    assert list(tree.paths) == images and tree.layout == "domain/class"
    assert [kind_of(one) for one in tree.ignored] == [JUNK[path]]
    assert f"left out: 1 {JUNK[path]} ('{tree.ignored[0]}')" in said
    files, lost = find_pictures([str(tmp_path / "mine")])
    loose = ["photo/loose.jpg"] if path == "photo/loose.jpg" else []  # it has no classes to miss
    assert sorted(files) == sorted(tmp_path / "mine" / one for one in [*images, *loose])
    assert not lost


needs_links = on_posix("makes symbolic links, which needs a right on Windows")


@needs_links
def test_both_follow_links_and_end_in_circles(tmp_path):
    root = fill(tmp_path / "mine", ["art/cat/1.jpg", "art/dog/2.jpg"])
    elsewhere = fill(tmp_path / "elsewhere", ["cat/3.jpg", "dog/4.jpg", "dog/5.jpg"])
    (root / "photo").symlink_to(elsewhere)
    (root / "art/cat/up").symlink_to(root)
    (root / "art/dog/self").symlink_to("self")
    (elsewhere / "dog/back").symlink_to(root / "photo")
    (root / "art/cat/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    tree = scan(root)
    assert tree.domain_names == ("art", "photo") and "photo/cat/3.jpg" in tree.paths
    files, lost = find_pictures([str(root)])
    assert sorted(files) == sorted(root / path for path in tree.paths) and not lost


@needs_links
def test_folders_that_all_link_to_each_other_end(tmp_path):
    for one in range(9):
        fill(tmp_path / "mine", [f"f{one}/cat/{one}.jpg"])
        for other in range(9):
            if other != one:
                (tmp_path / "mine" / f"f{one}" / f"to{other}").symlink_to(f"../f{other}")
    with pytest.raises(DataError, match="in circles"):
        scan(tmp_path / "mine")
    _, lost = find_pictures([str(tmp_path / "mine")])
    assert {one.error for one in lost} == {"links lead to it in circles"} and len(lost) <= 18
    assert MOST_VISITS < 8 * 7 * 6 * 5 * 4


def test_a_folder_too_deep_is_refused(tmp_path):
    inner = tmp_path / "mine"
    inner.mkdir()
    deep = inner / "/".join("d" * 150)
    deep.mkdir(parents=True)
    (deep / "1.jpg").touch()
    with pytest.raises(DataError, match="more than 100 folders deep"):
        scan(inner)
    _, lost = find_pictures([str(inner)])
    assert [one.error for one in lost] == ["more than 100 folders deep"]


def test_predict_takes_what_extract_takes_on_random_trees(tmp_path):
    random = np.random.default_rng(0)
    words = ["a", "B", "c-d", "c", "é", ".x", "@eaDir", "Thumbs.db", "1.jpg", "2.PNG", "n.txt",
             "3.heic", "4.gif", "e f"]  # fmt: skip
    for trial in range(20):
        root = tmp_path / str(trial)
        for _ in range(30):
            folders = [str(random.choice([w for w in words if "." not in w[1:]])) for _ in "123"]
            file = root.joinpath(*folders, str(random.choice(words[8:13])))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        files, lost = find_pictures([str(root)])
        expected = [
            os.path.join(where, name)
            for where, _, names in os.walk(root)
            if "@eaDir" not in where and "/." not in where.removeprefix(str(tmp_path))
            for name in names
            if name.lower().endswith(IMAGE_EXTENSIONS)
        ]
        assert sorted(map(str, files)) == sorted(expected)
        found = read_folder(str(root))
        assert not lost or {one.image.suffix for one in lost} == {".heic"}
        if not found.folders:
            continue
        tree = scan(root, "class")
        assert set(tree.paths) | set(tree.ignored) >= {str(f.relative_to(root)) for f in files}
