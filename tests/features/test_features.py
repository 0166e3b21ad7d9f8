"""Features of other tools: read the same in every format, or refused with what to do."""

import dataclasses
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cache.npz import as_table
from cache.store import read_table
from cache.table import CacheError
from pipeline.errors import ConfigError
from pipeline.features.read import Stated, read_features
from pipeline.features.write import FORMS, write_features
from tests.cli.commands import call, refused
from tests.conftest import logged
from tests.packages import need

ROWS, WIDTH, CLASSES = 40, 6, 3
NAMES = ["cat", "dog", "owl"]


def parts() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {
        "features": random.standard_normal((ROWS, WIDTH)).astype(np.float32),
        "labels": np.arange(ROWS) % CLASSES,
        "text_features": random.standard_normal((CLASSES, WIDTH)).astype(np.float32),
        "class_names": np.array(NAMES),
    }


PARTS = parts()
SPLITS = {"train": slice(0, 20), "val": slice(20, 28), "test": slice(28, ROWS)}


def expected(**changes: object):
    return as_table(Path("x"), {**PARTS, **changes}, dataset="x")


def read(source: Path, stated: Stated | None = None, **settings: object):
    with logged() as said:
        return read_features(source, stated, dataset="x", **settings), "\n".join(said)


def named(folder: Path, **others: object) -> Stated:
    """Text features and names in separate files, beside a source without them."""
    np.save(folder / "t_e_x_t.npy", PARTS["text_features"])
    (folder / "n_a_m_e_s.txt").write_text("\n".join(NAMES) + "\n")
    files = {"text_features": folder / "t_e_x_t.npy", "class_names": folder / "n_a_m_e_s.txt"}
    return Stated(files={**files, **others.pop("files", {})}, **others)


# --- labels, in every form, beside a .npy --------------------------------------------------------

ONE_HOT = np.eye(CLASSES, dtype=np.float16)[PARTS["labels"]]
LABELS = {
    "int64.npy": PARTS["labels"],
    "uint8.npy": PARTS["labels"].astype(np.uint8),
    "float64.npy": PARTS["labels"].astype(float),
    "column.npy": PARTS["labels"][:, None],
    "one_hot.npy": ONE_HOT,
    "words.npy": np.array(NAMES)[PARTS["labels"]],
    "bytes.npy": np.array(NAMES)[PARTS["labels"]].astype("S"),
    "tensor.pt": torch.from_numpy(PARTS["labels"]),
    "one_hot.pt": torch.from_numpy(ONE_HOT),
    "list.pt": [NAMES[label] for label in PARTS["labels"]],
    "numbers.txt": "\n".join(map(str, PARTS["labels"])) + "\n\n",
    "words.txt": "\r\n".join(NAMES[label] for label in PARTS["labels"]),
    "words.json": json.dumps([NAMES[label] for label in PARTS["labels"]]),
}


def written(file: Path, content: object) -> Path:
    if isinstance(content, str):
        file.write_text(content)
    elif file.suffix == ".pt":
        torch.save(content, file)
    else:
        np.save(file, content)
    return file


@pytest.mark.parametrize("form", LABELS)
def test_labels_of_every_form_are_the_same(form, tmp_path):
    file = written(tmp_path / form, LABELS[form])
    np.save(tmp_path / "feats.npy", PARTS["features"])
    table, _ = read(tmp_path / "feats.npy", named(tmp_path, files={"labels": file}))
    assert table.fingerprint == expected().fingerprint


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (PARTS["labels"] + 1, "pass --labels-from 1"),
        (PARTS["labels"] + 0.5, "must be integers"),
        (PARTS["labels"][:-1], "labels must be (40,)"),
        (np.where(PARTS["labels"] == 0, -1, PARTS["labels"]), "labels must be 0 to 2"),
        (np.array(["cat", "dgo", "owl"])[PARTS["labels"]], "did you mean 'dog'"),
        (np.zeros((ROWS, 2)), "labels must be"),
        (np.full(ROWS, np.nan), "must be integers"),
        (np.zeros(0, int), "labels must be (40,)"),
        (np.int64(3), "one per row; got a single value"),
        (PARTS["labels"].astype(complex), "must be integers"),
    ],
)
def test_labels_that_cannot_be_are_refused_with_the_option(labels, said, tmp_path):
    np.save(tmp_path / "feats.npy", PARTS["features"])
    file = written(tmp_path / "l.npy", labels)
    with pytest.raises(CacheError) as caught:
        read(tmp_path / "feats.npy", named(tmp_path, files={"labels": file}))
    assert said in str(caught.value)
    if "--labels-from" in said:
        stated = named(tmp_path, files={"labels": file})
        table, _ = read(tmp_path / "feats.npy", stated, labels_from=1)
        assert table.fingerprint == expected().fingerprint


# --- one file, one folder ------------------------------------------------------------------------


def as_tensors(**changes: object) -> dict:
    return {
        key: torch.from_numpy(array) if array.dtype.kind != "U" else array.tolist()
        for key, array in {**PARTS, **changes}.items()
    }


def save_h5(file: Path, arrays: dict[str, np.ndarray], **settings: object) -> Path:
    with h5py.File(file, "w") as opened:
        for name, array in arrays.items():
            if array.dtype.kind == "U":
                opened.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
            else:
                opened.create_dataset(name, data=array, **settings)
    return file


def test_a_file_of_parts_by_name_is_read(tmp_path):
    torch.save(as_tensors(), tmp_path / "all.pt")
    torch.save(as_tensors(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_h5(tmp_path / "all.h5", PARTS, chunks=True, compression="gzip")
    np.savez(tmp_path / "all.npz", **PARTS)
    for name in ("all.pt", "old.pt", "all.h5", "all.npz"):
        assert read(tmp_path / name)[0].fingerprint == expected().fingerprint, name


def test_other_names_are_refused_with_the_option_that_mends_it(tmp_path):
    other = {"image_embeds": PARTS["features"], "y": PARTS["labels"]}
    rest = {key: PARTS[key] for key in ("text_features", "class_names")}
    keys = {"features": "image_embeds", "labels": "y", **{key: key for key in rest}}
    torch.save({**as_tensors(), **{}} and {
        name: torch.from_numpy(array) if array.dtype.kind != "U" else array.tolist()
        for name, array in {**other, **rest}.items()
    }, tmp_path / "a.pt")  # fmt: skip
    save_h5(tmp_path / "a.h5", {**other, **rest})
    np.savez(tmp_path / "a.npz", **other, **rest)
    for name in ("a.pt", "a.h5", "a.npz"):
        with pytest.raises(CacheError, match="looks like features"):
            read(tmp_path / name)
        some = keys if name != "a.npz" else {"features": "image_embeds", "labels": "y"}
        assert read(tmp_path / name, Stated(keys=some))[0].fingerprint == expected().fingerprint
        with pytest.raises(CacheError, match="nothing"):
            read(tmp_path / name, Stated(keys={**some, "labels": "nothing"}))


def test_data_sets_in_groups_are_named(tmp_path):
    save_h5(tmp_path / "g.h5", {"train/emb": PARTS["features"], "train/y": PARTS["labels"]})
    with pytest.raises(CacheError, match=r"train/emb \(40, 6\).*--key features=NAME"):
        read(tmp_path / "g.h5", named(tmp_path))
    keys = {"features": "train/emb", "labels": "train/y"}
    table, _ = read(tmp_path / "g.h5", named(tmp_path, keys=keys))
    assert table.fingerprint == expected().fingerprint


FOLDERS = {  # file of a split -> its content, of the rows of that split
    "CLIP_benchmark": {
        "features_{}.pt": lambda rows: torch.from_numpy(PARTS["features"][rows]),
        "targets_{}.pt": lambda rows: torch.from_numpy(PARTS["labels"][rows]),
    },
    "plain": {
        "{}_features.npy": lambda rows: PARTS["features"][rows],
        "{}_labels.npy": lambda rows: PARTS["labels"][rows],
    },
    "Tip-Adapter": {
        "{}_f.pt": lambda rows: torch.from_numpy(PARTS["features"][rows]),
        "{}_l.pt": lambda rows: torch.from_numpy(PARTS["labels"][rows]),
    },
}


@pytest.mark.parametrize("form", FOLDERS)
def test_a_folder_of_splits_becomes_the_split(form, tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    for split, rows in SPLITS.items():
        for name, content in FOLDERS[form].items():
            written(folder / name.format(split), content(rows))
    written(folder / "class_names.txt", "\n".join(NAMES))
    written(folder / "text_features.npy", PARTS["text_features"].T)  # classifiers are (D, C)
    written(folder / "features_train_cache_3.pt", torch.ones(1))
    (folder / "notes.md").write_text("x")
    split = np.repeat([0, 1, 2], [20, 8, 12])
    table, said = read(folder)
    assert table.fingerprint == expected(split=split).fingerprint
    assert "ignored files: features_train_cache_3.pt, notes.md" in said and "transposed" in said


def test_tip_adapters_cache_is_turned(tmp_path):
    unit = PARTS["features"] / np.linalg.norm(PARTS["features"], axis=1, keepdims=True)
    torch.save(
        torch.from_numpy(unit[SPLITS["train"]].T.copy()).half(), tmp_path / "keys_16shots.pt"
    )
    torch.save(torch.from_numpy(ONE_HOT[SPLITS["train"]]), tmp_path / "values_16shots.pt")
    torch.save(torch.from_numpy(unit[SPLITS["test"]]).half(), tmp_path / "test_f.pt")
    torch.save(torch.from_numpy(ONE_HOT[SPLITS["test"]]), tmp_path / "test_l.pt")
    table, said = read(tmp_path, named(tmp_path))
    rows = np.r_[SPLITS["train"], SPLITS["test"]]
    np.testing.assert_array_equal(table.features, unit[rows].astype(np.float16))
    np.testing.assert_array_equal(table.labels, PARTS["labels"][rows])
    np.testing.assert_array_equal(table.split, np.repeat([0, 2], [20, 12]))
    assert "Tip-Adapter's cache, one feature per column" in said


def save_clip_retrieval(folder: Path, columns: dict[str, list]) -> None:
    need("pyarrow")
    import pyarrow
    from pyarrow import parquet

    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    sizes = [4] * 9 + [2, 2]  # eleven files: 10 comes after 9, not after 1
    ends = np.cumsum(sizes)
    for number, end in enumerate(ends):
        rows = slice(end - sizes[number], end)
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", PARTS["features"][rows])
        table = pyarrow.table({name: values[rows] for name, values in columns.items()})
        parquet.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")


@pytest.mark.parametrize(
    ("columns", "column"),
    [
        ({"image_path": ["x"] * ROWS, "label": PARTS["labels"].tolist()}, None),
        ({"class": [NAMES[label] for label in PARTS["labels"]]}, None),
        ({"image_path": [f"a/{NAMES[n]}/{i}.jpg" for i, n in enumerate(PARTS["labels"])]},
         "image_path"),
    ],
)  # fmt: skip
def test_clip_retrievals_folder_is_read(columns, column, tmp_path):
    save_clip_retrieval(tmp_path / "e", columns)
    table, said = read(tmp_path / "e", named(tmp_path, label_column=column))
    assert table.fingerprint == expected().fingerprint
    assert "11 files in the order of their numbers" in said
    if column:
        with pytest.raises(CacheError, match="--label-column NAME"):
            read(tmp_path / "e", named(tmp_path))
        with pytest.raises(CacheError, match="no column 'key'"):
            read(tmp_path / "e", named(tmp_path, label_column="key"))


# --- text features -------------------------------------------------------------------------------


def test_text_features_are_made_by_the_model(tmp_path):
    from pipeline.encoder.model import encode_prompts, load_model

    clip = load_model("demo", torch.device("cpu"))
    text = encode_prompts(clip, NAMES, ["a {}"])
    np.save(tmp_path / "f.npy", text[PARTS["labels"]] + np.float32(0.01))
    written(tmp_path / "words.txt", LABELS["words.txt"])
    written(tmp_path / "l.npy", PARTS["labels"])
    by_words = Stated(files={"labels": tmp_path / "words.txt"}, model="demo", templates=["a {}"])
    table, said = read(tmp_path / "f.npy", by_words)
    np.testing.assert_array_equal(table.text_features, text)
    assert table.class_names == tuple(NAMES) and table.logit_scale == pytest.approx(
        clip.logit_scale
    )
    assert "zero-shot accuracy with these text features: 100.0%" in said
    by_number = Stated(files={"labels": tmp_path / "l.npy"}, model="demo", templates=["a {}"])
    with pytest.raises(CacheError, match="pass --class-names FILE"):
        read(tmp_path / "f.npy", by_number)
    np.save(tmp_path / "f.npy", text[(PARTS["labels"] + 1) % 3])
    assert "near chance" in read(tmp_path / "f.npy", by_words)[1]
    with pytest.raises(ConfigError, match="--prompt 'an owl': needs one {}"):
        read(tmp_path / "f.npy", dataclasses.replace(by_words, templates=["an owl"]))
    np.save(tmp_path / "f.npy", PARTS["features"])
    with pytest.raises(CacheError, match="6 wide, those of --model demo 128"):
        read(tmp_path / "f.npy", by_words)


# --- what is missing, and what is hostile --------------------------------------------------------


def test_what_is_missing_is_said_with_its_option(tmp_path):
    np.save(tmp_path / "f.npy", PARTS["features"])
    np.save(tmp_path / "labels.npy", PARTS["labels"])
    with pytest.raises(CacheError, match=r"has no labels; pass --labels FILE.*labels\.npy"):
        read(tmp_path / "f.npy")
    only = Stated(files={"labels": tmp_path / "labels.npy"})
    with pytest.raises(CacheError, match="--text-features FILE.*--model NAME"):
        read(tmp_path / "f.npy", only)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheError, match="no features in it"):
        read(tmp_path / "empty")
    (tmp_path / "up" / "inner").mkdir(parents=True)
    np.save(tmp_path / "up" / "inner" / "features.npy", PARTS["features"])
    with pytest.raises(CacheError, match="the folder inner in it has them"):
        read(tmp_path / "up")
    for file in ("a.csv", "nothing.npy"):
        (tmp_path / "a.csv").write_text("1,2")
        with pytest.raises(CacheError, match=file):
            read(tmp_path / file)


class Trap:
    def __reduce__(self):
        return (print, ("unpickled",))


def endless_npy(file: Path) -> None:
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 512), }"
    file.write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(64))


def endless_h5(file: Path) -> None:
    with h5py.File(file, "w") as opened:
        opened.create_dataset(
            "features", (1 << 40, 512), "f4", chunks=(1024, 512), compression="gzip"
        )


def linked_h5(file: Path) -> None:
    with h5py.File(file, "w") as opened:
        opened["features"] = h5py.ExternalLink("/etc/hostname", "/")


def outside_h5(file: Path) -> None:
    with h5py.File(file, "w") as opened:
        opened.create_dataset("features", (2, 4), "u1", external=[("/etc/hostname", 0, 8)])


def nested_h5(file: Path) -> None:
    with h5py.File(file, "w") as opened:
        opened.create_group("a")["loop"] = opened["/"]


def renamed(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02cos\nsystem\nq\x00.")


HOSTILE = {
    "pickle.npy": lambda file: np.save(file, np.array([Trap()], object), allow_pickle=True),
    "trap.pt": lambda file: torch.save(Trap(), file),
    "dict.pt": lambda file: torch.save({"features": Trap()}, file),
    "module.pt": lambda file: torch.save(torch.nn.Linear(2, 2), file),
    "system.pt": renamed,
    "endless.npy": endless_npy,
    "endless.h5": endless_h5,
    "linked.h5": linked_h5,
    "outside.h5": outside_h5,
    "nested.h5": nested_h5,
    "noise.npy": lambda file: file.write_bytes(bytes(range(256)) * 8),
    "noise.pt": lambda file: file.write_bytes(bytes(range(256)) * 8),
    "noise.h5": lambda file: file.write_bytes(bytes(range(256)) * 8),
    "noise.safetensors": lambda file: file.write_bytes(bytes(range(256)) * 8),
    "empty.npy": lambda file: file.write_bytes(b""),
    "empty.pt": lambda file: file.write_bytes(b""),
    "nan.npy": lambda file: np.save(file, np.full((ROWS, WIDTH), np.nan)),
    "none.npy": lambda file: np.save(file, np.zeros((0, WIDTH))),
    "flat.npy": lambda file: np.save(file, np.zeros(ROWS)),
    "whole.npy": lambda file: np.save(file, np.ones((ROWS, WIDTH), int)),
    "mixed.pt": lambda file: torch.save({"features": [1, "a"]}, file),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_to_be_trusted_is_refused_in_one_line(name, tmp_path, capfd):
    file = tmp_path / name
    HOSTILE[name](file)
    np.save(tmp_path / "y.npy", PARTS["labels"])
    with pytest.raises(CacheError) as caught:
        read(file, named(tmp_path, files={"labels": tmp_path / "y.npy"}))
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert "unpickled" not in "".join(capfd.readouterr())


# --- export --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", [None, np.repeat([0, 1, 2], [20, 8, 12])])
def test_what_is_exported_is_imported_again(form, split, tmp_path):
    table = expected(**({} if split is None else {"split": split}), model=np.array("ViT-B/32"))
    out = write_features(table, tmp_path / f"a{form}")
    assert read(out)[0].fingerprint == table.fingerprint
    with pytest.raises(CacheError, match="--force"):
        write_features(table, tmp_path / f"a{form}")
    write_features(table, tmp_path / f"a{form}", force=True)
    with pytest.raises(CacheError, match="written as .xyz"):
        write_features(table, tmp_path / "a.xyz")


def test_the_commands(tmp_path):
    np.save(tmp_path / "f.npy", PARTS["features"])
    np.save(tmp_path / "y.npy", PARTS["labels"] + 1)
    named(tmp_path)
    words = ("cache", "import", tmp_path / "f.npy", "--out", tmp_path / "c.h5",
             "--labels", tmp_path / "y.npy", "--class-names", tmp_path / "n_a_m_e_s.txt",
             "--text-features", tmp_path / "t_e_x_t.npy", "--dataset-name", "x")  # fmt: skip
    refused(*words, code=4, match="--labels-from 1")
    call(*words, "--labels-from", 1)
    assert read_table(tmp_path / "c.h5").fingerprint == expected().fingerprint
    call("cache", "export", tmp_path / "c.h5", "--out", tmp_path / "again.pt")
    call("cache", "import", tmp_path / "again.pt", "--out", tmp_path / "d.h5")
    assert read_table(tmp_path / "d.h5").fingerprint == expected().fingerprint
    refused("cache", "import", tmp_path / "f.npy", "--key", "features", code=2, match="KEY=NAME")
    refused("cache", "import", tmp_path / "c.h5", "--out", tmp_path / "e.h5", code=4, match="c.h5")
