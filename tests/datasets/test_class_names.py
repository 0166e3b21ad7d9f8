"""--class-names: files of names in every form, and what of them is refused."""

import dataclasses
import json

import pytest

from cache.store import info, read_table
from pipeline.datasets.class_names import with_names
from pipeline.datasets.find import find_images
from pipeline.datasets.stated import Stated
from pipeline.datasets.tree import scan
from pipeline.errors import DataError
from tests.cli.commands import call
from tests.datasets.folders import fill
from tests.extraction.extraction import Said, run

WNIDS = {"n01440764": "tench", "n01443537": "goldfish, Carassius auratus", "n02123045": "tabby cat"}


@pytest.fixture
def wnids(tmp_path):
    return fill(tmp_path / "mine", [f"{d}/{c}/1.jpg" for d in ("photo", "art") for c in WNIDS])


def lines(separator: str) -> str:
    return "".join(f"{folder}{separator}{name}\n" for folder, name in WNIDS.items())


@pytest.mark.parametrize(
    "text",
    [
        lines("\t"), lines("="), lines(" = "), lines(","), lines(" "), lines("  \t "),
        "\ufeff" + lines("\t").replace("\n", "\r\n") + "\n\n",
        "\n".join(f'{f},"{n}"' for f, n in WNIDS.items()).replace("n0", '"n0', 0),
        json.dumps(WNIDS), json.dumps(dict(reversed(WNIDS.items())), indent=1),
        "\n".join(WNIDS.values()), json.dumps(list(WNIDS.values())),
        lines("\t") + "n09999999\tnot here\n",
    ],
)  # fmt: skip
def test_every_form_names_the_folders(wnids, tmp_path, text):
    (tmp_path / "names").write_text(text, "utf-8")
    if '"' in text and not text.startswith(("{", "[")):
        text = text.replace('"', "")
        (tmp_path / "names").write_text(text, "utf-8")
    tree = find_images(
        str(wnids), tmp_path, Said(), stated=Stated(class_names=str(tmp_path / "names"))
    )
    assert tree.class_names == tuple(WNIDS.values())
    for path, label in zip(tree.paths, tree.labels, strict=True):
        assert WNIDS[path.split("/")[1]] == tree.class_names[label]


def test_a_list_of_names_goes_by_number_where_folders_are_numbers(tmp_path):
    fill(tmp_path / "mine", [f"{d}/{c}/1.jpg" for d in ("photo", "art") for c in range(12)])
    (tmp_path / "names.txt").write_text("".join(f"name {number}\n" for number in range(12)))
    tree = with_names(scan(tmp_path / "mine"), tmp_path / "names.txt")
    for path, label in zip(tree.paths, tree.labels, strict=True):
        assert tree.class_names[label] == f"name {path.split('/')[1]}"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "has 0 names for 3 class folders"),
        (b"tench\ngoldfish\n", "has 2 names"),
        (b"a\tb\nc\td\n", "has 2 names"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"{", "is not JSON"),
        (b'{"n01440764": 3}', "holds more than strings"),
        (b'{"x": "tench"}', "names none of the class folders"),
        (b'{"n01440764": " "}', "empty or not printable"),
        (b"n01440764\ta\x1b[2J\nn01443537\tb", "empty or not printable"),
        (b"n01440764\ta\nn01440764\tb", "a folder two names"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_file_that_does_not_name_them_is_refused(wnids, tmp_path, text, match):
    (tmp_path / "names.txt").write_bytes(text)
    with pytest.raises(DataError, match=match) as caught:
        with_names(scan(wnids), tmp_path / "names.txt")
    assert str(caught.value).startswith(f"--class-names {tmp_path}/names.txt: ")
    assert str(caught.value).replace("\n", "").isprintable()


def test_a_file_that_is_not_there_is_refused(wnids, tmp_path):
    for name in ("none.txt", "."):
        with pytest.raises(DataError, match="cannot be read"):
            with_names(scan(wnids), tmp_path / name)


def test_folders_that_a_file_leaves_out_are_still_asked_about(wnids, tmp_path):
    (tmp_path / "names.txt").write_text("n01440764=tench\n")
    words = ["extract", "--dataset", wnids, "--dry-run", "--class-names", tmp_path / "names.txt"]
    error = call(*words, code=6).stderr
    assert "'n01443537', 'n02123045' are ImageNet ids" in error and "name them in the file" in error
    assert "--accept codes" in error
    call(*words, "--accept", "codes")


def test_one_name_for_two_folders_is_asked_about_unless_they_are_spellings(wnids, tmp_path):
    (tmp_path / "names.txt").write_text("crane\ntabby\ncrane\n")
    words = ["extract", "--dataset", wnids, "--dry-run", "--class-names", tmp_path / "names.txt"]
    error = call(*words, code=6).stderr
    assert "'n01440764', 'n02123045' are all named 'crane'" in error
    facts = json.loads(call(*words, "--json", "--accept", "same-name").stdout)
    assert {name: one["images"] for name, one in facts["classes"].items()} == {
        "crane": 4, "tabby": 2
    }  # fmt: skip
    root = fill(tmp_path / "two", ["art/Trash Can/1.jpg", "real/Trash_Can/1.jpg", "real/x/1.jpg"])
    (tmp_path / "one.txt").write_text("Trash_Can=Trash Can\n")
    told = call("extract", "--dataset", root, "--dry-run", "--class-names", tmp_path / "one.txt")
    assert "3 images, 2 domains, 2 classes" in told.stdout


def test_names_are_in_prompts_and_in_the_identity(wnids, tmp_path, weights):
    (tmp_path / "names.json").write_text(json.dumps(WNIDS))
    _, said = run(wnids, weights, tmp_path / "x.h5", class_names=str(tmp_path / "names.json"))
    assert 'prompt: "a picture of a tench"' in said
    table, identity = read_table(tmp_path / "x.h5"), info(tmp_path / "x.h5")["identity"]
    assert table.class_names == tuple(WNIDS.values()) and identity["class_folders"] == WNIDS
    report, _ = run(wnids, weights, tmp_path / "x.h5", class_names=str(tmp_path / "names.json"))
    assert not report.encoded
    with pytest.raises(Exception, match="class_names.0") as caught:
        run(wnids, weights, tmp_path / "x.h5", class_names="folder")
    assert caught.value.exit_code == 3


def test_which_folder_has_which_name_is_part_of_the_identity(tmp_path):
    """The same names, paths and images, and other labels."""
    root = fill(tmp_path / "mine", [f"{c}/1.jpg" for c in "abc"])
    trees = []
    for text in ("a=x\nb=x\nc=y\n", "a=x\nb=y\nc=y\n"):
        (tmp_path / "names.txt").write_text(text)
        trees.append(with_names(scan(root), tmp_path / "names.txt"))
    one, other = (dataclasses.replace(tree, root=root) for tree in trees)
    assert one.class_names == other.class_names and one.paths == other.paths
    assert one.labels.tolist() != other.labels.tolist() and one.renamed != other.renamed
