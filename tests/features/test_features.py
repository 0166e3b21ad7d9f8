"""Features of other tools: read the same in every format, or refused with what to do."""

import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from cache.table import CacheError
from pipeline.errors import ConfigError
from pipeline.features.read import Stated
from tests.features.parts import NAMES, ONE_HOT, PARTS, ROWS, SPLITS, expected, named, read, written
from tests.packages import need

# --- labels, in every form, beside a .npy --------------------------------------------------------

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
