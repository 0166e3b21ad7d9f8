"""Weights that transformers cut into several files, and indices that lie."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.encoder.model import load_model
from pipeline.encoder.weights import find_weights, read_state_dict
from pipeline.errors import WeightsError
from tests.encoder.test_state_layouts import CPU, of_transformers


@pytest.fixture(scope="module")
def cut(tmp_path_factory) -> tuple[Path, dict]:
    """A model in several files by transformers, and what it has in one."""
    folder = tmp_path_factory.mktemp("cut")
    module = of_transformers()
    module.save_pretrained(folder / "shards", max_shard_size="100KB")
    module.save_pretrained(folder / "whole")
    assert len(list((folder / "shards").glob("*.safetensors"))) > 5
    return folder / "shards", read_state_dict(folder / "whole" / "model.safetensors").state


@pytest.mark.parametrize("form", ["safetensors", "bin", "hub"])
def test_weights_in_several_files_are_those_in_one(form, cut, fake_hub):
    folder, whole = cut
    shutil.copytree(folder, fake_hub[0] / "org" / "name")
    folder = fake_hub[0] / "org" / "name"
    if form == "bin":
        for shard in folder.glob("*.safetensors"):
            torch.save(load_file(shard), shard.with_suffix(".bin"))
            shard.unlink()
        index = folder / "model.safetensors.index.json"
        text = index.read_text().replace(".safetensors", ".bin")
        index.with_name("pytorch_model.bin.index.json").write_text(text)
        index.unlink()
    found = load_model("hf:org/name" if form == "hub" else str(folder), CPU)
    _, file = find_weights(str(folder))
    state = read_state_dict(file).state
    assert state.keys() == whole.keys()
    assert all(torch.equal(state[name], whole[name]) for name in whole)
    assert found.weights_sha256 == load_model(str(cut[0].parent / "whole"), CPU).weights_sha256


def _index(folder: Path, change) -> None:
    file = folder / "model.safetensors.index.json"
    found = json.loads(file.read_text())
    change(found)
    file.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.pop("weight_map"), "is not an index"),
        (lambda found: found.update(weight_map=[1]), "is not an index"),
        (lambda found: found["weight_map"].clear(), "lists 0 files"),
        (lambda found: found["weight_map"].update(logit_scale="../x.bin"), "the name of a file"),
        (lambda found: found["weight_map"].update(logit_scale="/etc/passwd"), "the name of a file"),
        (lambda found: found["weight_map"].update(logit_scale=None), "the name of a file"),
        (lambda found: found["weight_map"].update(logit_scale="a\x1b.bin"), "the name of a file"),
        (lambda found: found["weight_map"].update(logit_scale="y.bin"), "y.bin: is missing"),
        (lambda found: found["weight_map"].update(other=found["weight_map"]["logit_scale"]),
         "lacks other, which"),
        (lambda found: found["weight_map"].pop("logit_scale"), "it lacks logit_scale"),
        (lambda found: found["weight_map"].update(
            {f"n{n}": f"{n}.bin" for n in range(1001)}), "files; 1 to 1,000"),
    ],
    ids=["no map", "a list", "empty", "outside", "absolute", "null", "control", "missing", "lacks",
         "unlisted", "many"],
)  # fmt: skip
def test_indices_that_do_not_fit_their_files_are_refused(change, said, cut, tmp_path):
    shutil.copytree(cut[0], tmp_path / "c")
    _index(tmp_path / "c", change)
    with pytest.raises(WeightsError, match=said) as caught:
        load_model(str(tmp_path / "c"), CPU)
    assert str(caught.value).isprintable()


def test_a_damaged_shard_is_named(cut, tmp_path):
    shutil.copytree(cut[0], tmp_path / "c")
    shard = sorted((tmp_path / "c").glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(WeightsError, match=shard.name):
        load_model(str(tmp_path / "c"), CPU)
