"""Images in lists, zips, tars and parquet files: the rows and pixels of the same folder."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.store import info, read_table
from pipeline.datasets.find import dataset_name, find_images
from pipeline.datasets.lists import read_list
from pipeline.datasets.stated import Stated
from pipeline.datasets.tree import ImageTree, image_digests
from pipeline.encoder.blocks import read_image
from pipeline.encoder.pixels import IMAGE_LIMITS
from pipeline.errors import DataError, Doubtful
from tests.cli.commands import call
from tests.conftest import logged
from tests.packages import need

DOMAINS, CLASSES = ("photo", "sketch"), ("cat", "dog")


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


IMAGES = {  # path -> bytes
    f"{domain}/{name}/{number}.png": picture(100 * d + 10 * c + number)
    for d, domain in enumerate(DOMAINS)
    for c, name in enumerate(CLASSES)
    for number in range(3)
}


@pytest.fixture
def folder(tmp_path) -> Path:
    for path, content in IMAGES.items():
        file = tmp_path / "set" / "images" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "set"


def found(dataset: Path, stated: Stated | None = None) -> tuple[ImageTree, list[str]]:
    said: list[str] = []
    tree = find_images(str(dataset), Path("x"), said.append, stated=stated or Stated())
    return tree, said


def content(tree: ImageTree) -> list[tuple]:
    """What each row is, apart from its path: domain, class, split and pixels, in order."""
    digests = image_digests(tree)
    rows = []
    for row in range(len(tree.paths)):
        decoded = read_image(tree.file(row), 16, IMAGE_LIMITS)
        assert decoded.pixels is not None, decoded.reason
        split = None if tree.split is None else int(tree.split[row])
        names = tree.domain_names[tree.domains[row]], tree.class_names[tree.labels[row]]
        rows.append((*names, split, digests[row].tobytes(), decoded.pixels.tobytes()))
    return sorted(rows, key=lambda row: (row[0], row[1], row[3]))


# --- zips -----------------------------------------------------------------------------------------


def zipped(file: Path, prefix: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("__MACOSX/._x.png", b"x")
        for path, data in IMAGES.items():
            archive.writestr(prefix + path, data)
        archive.writestr(f"{prefix}notes.txt", "x")
    return file


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("prefix", ["", "pics/", "some/where/else/"])
def test_a_zip_left_zipped_is_the_folder(folder, prefix, method, tmp_path):
    tree, said = found(zipped(tmp_path / "pics.zip", prefix, method))
    ref, _ = found(folder / "images")
    assert content(tree) == content(ref) and tree.paths == ref.paths
    assert tree.layout == "domain/class" and any("domain/class/image" in line for line in said)
    assert not [p for p in tmp_path.rglob("*.png") if folder not in p.parents]


HOSTILE_ZIPS = {
    "climbs": [("../cat/1.png", b"x")],
    "absolute": [("/cat/1.png", b"x")],
    "bomb": [("cat/1.png", bytes(8 << 20))],
    "empty": [],
}


@pytest.mark.parametrize("name", HOSTILE_ZIPS)
def test_hostile_zips_are_refused(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in HOSTILE_ZIPS[name]:
            archive.writestr(path, data)
    with pytest.raises(DataError, match=r"a\.zip"):
        found(tmp_path / "a.zip")
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(DataError, match="not a valid zip"):
        found(tmp_path / "a.zip")


def test_a_damaged_member_is_an_unreadable_image(tmp_path):
    file = zipped(tmp_path / "a.zip", method=zipfile.ZIP_STORED)
    raw = bytearray(file.read_bytes())
    at = raw.index(IMAGES["photo/cat/1.png"]) + 60
    raw[at] ^= 0xFF
    file.write_bytes(raw)
    tree, _ = found(file)
    row = tree.paths.index("photo/cat/1.png")
    assert read_image(tree.file(row), 16, IMAGE_LIMITS).pixels is None
    assert not image_digests(tree)[row].any()


# --- lists ----------------------------------------------------------------------------------------

SPLIT = {path: ("train", "val", "test")[int(path[-5])] for path in IMAGES}


def lines(header: str, row, mark: str) -> str:
    return "\n".join([header, *(mark.join(row(path)) for path in IMAGES)]).strip() + "\n"


LISTS = {  # name -> (text, has domains, has splits)
    "a.csv": (lines("path,label,domain,split",
                    lambda p: [p, p.split("/")[1], p.split("/")[0], SPLIT[p]], ","), True, True),
    "b.csv": (lines("subset,filename,class",
                    lambda p: [SPLIT[p], p, p.split("/")[1]], ","), False, True),
    "c.tsv": (lines("Image Path\tCategory", lambda p: ["./" + p, p.split("/")[1]], "\t"),
              False, False),
    "d.txt": (lines("", lambda p: [p, str(CLASSES.index(p.split("/")[1]))], " "), False, False),
    "e.txt": (lines("", lambda p: [p, p.split("/")[1]], "\t"), False, False),
    "f.json": (json.dumps({split: [[p, CLASSES.index(p.split("/")[1]), p.split("/")[1]]
                                   for p in IMAGES if SPLIT[p] == split]
                           for split in ("train", "val", "test")}), False, True),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_a_list_names_the_same_images(name, folder):
    text, domains, splits = LISTS[name]
    (folder / name).write_text(text)
    tree, said = found(folder / name)
    ref, _ = found(folder / "images")
    assert tree.class_names == CLASSES and tree.domain_names == (DOMAINS if domains else (name[0],))
    by_pixels = {row[3]: row[:2] for row in content(ref)}
    for domain, class_name, split, digest, _ in content(tree):
        assert class_name == by_pixels[digest][1]
        assert not domains or domain == by_pixels[digest][0]
        assert (split is not None) == splits
    if splits:
        for row, path in enumerate(tree.paths):
            assert ("train", "val", "test")[tree.split[row]] == SPLIT[path.removeprefix("./")]
    if name == "d.txt":
        assert any("named after the images' folders" in line for line in said)
        both, _ = found(folder / name, Stated(layout="domain/class"))
        assert both.domain_names == DOMAINS
        (folder / "g.txt").write_text(text.replace("/", "\\"))  # as a list made on Windows
        other, _ = found(folder / "g.txt", Stated(layout="domain/class"))
        assert other.domain_names == DOMAINS and other.paths == both.paths


def test_numbers_without_folders_need_names(folder):
    paths = [p for p in IMAGES if p.startswith("photo/cat")]
    text = "\n".join(f"{path} {number}" for number, path in enumerate(paths))
    (folder / "n.txt").write_text(text)
    with pytest.raises(Doubtful, match="--class-names"):
        found(folder / "n.txt")
    (folder / "names.txt").write_text("ant\nbee\ncow\n")
    tree, _ = found(folder / "n.txt", Stated(class_names=str(folder / "names.txt")))
    assert tree.class_names == ("ant", "bee", "cow")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists no image"),
        ("path,label\n", "lists no image"),
        ("path,label\nphoto/cat/0.png\n", "line 2 has 1 parts"),
        ("path,label\nphoto/cat/0.png,\n", "line 2 has no path or no label"),
        ("path,label,split\na.png,cat,dev?\nb.png,cat,maybe", "line 3 has the split 'maybe'"),
        ("photo/cat/0.png,cat,photo", "no header names them"),
        ("path,label\n../secret.png,cat", "must not leave it"),
        ("path,label\n/etc/passwd,cat", "must not leave it"),
        ("path,label\na//b.png,cat", "must not leave it"),
        ("path,label\nnot/there.png,cat", "put the list beside the images"),
        ("path,label\nphoto/cat/0.png,cat\nphoto/cat/0.png,dog", "is listed twice"),
        ("path,label,domain\nphoto/cat/0.png,cat,x\nphoto/cat/1.png,cat,", "rows have no domain"),
        ('{"train": [["a.png", 0]]}', "not a list of"),
        ('{"left": []}', "not an object of train, val and test"),
        ('{"train": [["a.png", 0, "a"], ["b.png", 0, "b"]]}', "label 0 is 'a' and 'b'"),
        ("{", "is not JSON"),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_are_refused_with_the_line(text, said, folder):
    file = folder / ("x.json" if text.startswith("{") else "x.csv")
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_list(file, lambda line: None)
    assert said in str(caught.value) and file.name in str(caught.value)


# --- webdataset -----------------------------------------------------------------------------------


def put(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def shards(folder: Path, label: str) -> None:
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as archive:
            for number, (path, data) in enumerate(IMAGES.items()):
                if number % 2 != shard:
                    continue
                domain, name, _ = path.split("/")
                key = f"{number:09}"
                if label == "folder":
                    key = f"{name}/{key}"
                put(archive, f"{key}.png", data)
                if label == "cls":
                    put(archive, f"{key}.cls", str(CLASSES.index(name)).encode())
                if label == "json":
                    facts = {"label": name, "domain": domain, "caption": "x"}
                    put(archive, f"{key}.json", json.dumps(facts).encode())
                if label == "caption":
                    put(archive, f"{key}.txt", b"a cat")


@pytest.mark.parametrize("label", ["json", "folder", "cls"])
def test_webdatasets_shards_are_read_where_they_lie(label, folder, tmp_path):
    shards(tmp_path / "wds", label)
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"0": "cat", "1": "dog"}))
    stated = Stated(class_names=str(names)) if label == "cls" else Stated()
    tree, _ = found(tmp_path / "wds", stated)
    ref, _ = found(folder / "images")
    assert tree.class_names == CLASSES
    assert tree.domain_names == (DOMAINS if label == "json" else ("wds",))
    assert sorted(row[3:] for row in content(tree)) == sorted(row[3:] for row in content(ref))


def test_tars_that_cannot_be_are_refused(tmp_path):
    shards(tmp_path / "wds", "caption")
    with pytest.raises(DataError, match=r"no label but captions \(\.txt\)"):
        found(tmp_path / "wds")
    (tmp_path / "a.tar").write_bytes(bytes(range(256)) * 8)
    with pytest.raises(DataError, match="not a valid tar"):
        found(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "link.tar", "w") as archive:
        member = tarfile.TarInfo("cat/1.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(member)
    with pytest.raises(DataError, match="no image in it"):
        found(tmp_path / "link.tar")
    with tarfile.open(tmp_path / "cut.tar", "w") as archive:
        put(archive, "cat/1.png", picture(1) * 20)
    raw = (tmp_path / "cut.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(raw[:2048])
    with pytest.raises(DataError, match=r"cut\.tar"):
        found(tmp_path / "cut.tar")


# --- parquet --------------------------------------------------------------------------------------


def tables(folder: Path, splits: tuple[str, ...] = ("train", "test"), **columns: object) -> None:
    need("pyarrow")
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True)
    features = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    paths = list(IMAGES)
    for number, split in enumerate(splits):
        mine = paths[number :: len(splits)]
        table = pyarrow.table({
            "image": [{"bytes": IMAGES[path], "path": None} for path in mine],
            "domain": [path.split("/")[0] for path in mine],
            "label": [CLASSES.index(path.split("/")[1]) for path in mine],
        } | columns).replace_schema_metadata(metadata)  # fmt: skip
        file = folder / f"{split}-00000-of-00001-0123456789abcdef.parquet"
        parquet.write_table(table, file, row_group_size=5)


@pytest.mark.parametrize("inner", ["", "data"])
@pytest.mark.parametrize("splits", [("train",), ("train", "test")])
def test_hugging_faces_tables_are_read_where_they_lie(splits, inner, folder, tmp_path):
    tables(tmp_path / "hf" / inner, splits)
    tree, _ = found(tmp_path / "hf")
    ref, _ = found(folder / "images")
    assert (tree.split is None) == (len(splits) == 1)
    assert [row[:2] + row[3:] for row in content(tree)] == [
        row[:2] + row[3:] for row in content(ref)
    ]


def test_tables_that_cannot_be_are_refused(tmp_path):
    need("pyarrow")
    import pyarrow
    from pyarrow import parquet

    for columns, said in (
        ({"image": [b"x"], "text": ["x"]}, "no column of labels among image, text"),
        ({"label": [1], "text": ["x"]}, "no column of images among label"),
        ({"image": [b"x"], "label": [-1]}, "has the label -1"),
        ({"image": [b"x"], "label": [None]}, "has the label None"),
    ):
        parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=said):
            found(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(100))
    with pytest.raises(DataError, match="cannot be read as parquet"):
        found(tmp_path / "a.parquet")


# --- whole commands, and what is said -------------------------------------------------------------


def test_a_zip_is_extracted_checked_and_resumed_like_its_folder(folder, tmp_path):
    zipped(tmp_path / "images.zip")
    shared = ("--model", "demo", "--device", "cpu", "--workers", 0, "--batch", 4)
    for source, out in ((folder / "images", "a.h5"), (tmp_path / "images.zip", "b.h5")):
        call("extract", "--dataset", source, "--out", tmp_path / out, *shared)
    one, two = (read_table(tmp_path / name) for name in ("a.h5", "b.h5"))
    np.testing.assert_array_equal(one.features, two.features)
    assert info(tmp_path / "a.h5")["identity"] == info(tmp_path / "b.h5")["identity"]
    call("extract", "--dataset", tmp_path / "images.zip", "--out", tmp_path / "b.h5", "--check", 5,
         "--model", "demo", "--device", "cpu")  # fmt: skip
    (tmp_path / "images.zip").unlink()
    zipped(tmp_path / "images.zip", method=zipfile.ZIP_STORED)
    with logged() as said:
        call("extract", "--dataset", tmp_path / "images.zip", "--out", tmp_path / "b.h5", *shared)
    assert any("up to date" in line for line in said)


def test_a_worker_process_reads_out_of_a_zip(tmp_path):
    from pipeline.encoder.decoding import decoded_images

    tree, _ = found(zipped(tmp_path / "a.zip"))
    places = [tree.file(row) for row in range(len(tree.paths))]
    with decoded_images(places, 16, workers=1, limits=IMAGE_LIMITS) as images:
        assert all(one.pixels is not None for one in images)


def test_what_is_plainly_something_else_is_said(folder, tmp_path):
    (folder / "images" / "photo" / "BACKGROUND_Google").mkdir()
    (folder / "images" / "photo" / "BACKGROUND_Google" / "1.png").write_bytes(picture(999))
    _, said = found(folder / "images")
    assert any("'BACKGROUND_Google' seems to hold images without a class" in line for line in said)
    above = tmp_path / "above"
    (folder / "images" / "photo").rename(folder / "101_ObjectCategories")
    above.mkdir()
    (folder / "101_ObjectCategories").rename(above / "101_ObjectCategories")
    _, said = found(above)
    assert any("if it is the data set itself, name" in line for line in said)
    (tmp_path / "packed").mkdir()
    zipped(tmp_path / "packed" / "x.zip")
    with pytest.raises(DataError, match=r"x\.zip in it may be the data set"):
        found(tmp_path / "packed")
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(DataError, match="this is a file"):
        found(tmp_path / "a.xyz")


def test_a_file_gives_its_name_without_the_suffix(tmp_path):
    assert dataset_name(str(tmp_path / "PACS.zip")) == "pacs"
    assert dataset_name("birds.csv") == "birds"
