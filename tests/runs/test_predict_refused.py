"""What predict refuses: the wrong run, the wrong CLIP, forged and damaged adapters."""

import json

import numpy as np
import pytest
import torch

from cache.table import StaleCache
from kernels.heads.plain import named
from pipeline.errors import ConfigError
from pipeline.runs.adapters import load_its_model, read_trained
from pipeline.runs.federate import federate
from pipeline.runs.folder import read_adapters, write_adapters
from pipeline.settings import RunConfig
from tests.runs.predictions import CPU, PROMPTS
from tests.runs.small_runs import small


def test_which_adapter_of_several(made):
    with pytest.raises(ConfigError, match="--held-out art or photo"):
        read_trained(made / "released")
    with pytest.raises(ConfigError, match="--held-out sketch: .* has art, photo"):
        read_trained(made / "released", "sketch")
    with pytest.raises(ConfigError, match="--client art or photo"):
        read_trained(made / "local")
    with pytest.raises(ConfigError, match="--client nobody: .* has art, photo"):
        read_trained(made / "local", "none", "nobody")
    tensors, facts = read_adapters(made / "local" / "adapter.safetensors")
    at = [one["clients"] for one in facts["adapters"]].index(["photo"])
    mine = read_trained(made / "local", client="photo")
    assert torch.equal(named(mine.kind, mine.row)["w1"], tensors["best.w1"][at])
    for_all = read_trained(made / "ditto")  # the federated one; a client's own by its name
    assert not torch.equal(for_all.row, read_trained(made / "ditto", client="art").row)
    assert torch.equal(for_all.row, read_trained(made / "ditto" / "adapter.safetensors").row)


def test_what_holds_no_adapter_is_named(made, tmp_path):
    for path, match in (
        (made / "zero-shot", "contains no adapter"),
        (tmp_path / "nowhere", "no such run"),
        (tmp_path, "not a run folder"),
        (made / "small.pt", "cannot be read as an adapter file"),
    ):
        with pytest.raises(ConfigError, match=match):
            read_trained(path)
    (tmp_path / "trials.jsonl").touch()
    with pytest.raises(ConfigError, match="a sweep keeps no adapters"):
        read_trained(tmp_path)


def test_another_clip_prompts_of_it_or_preprocessing_is_refused(made, monkeypatch, heard):
    trained = read_trained(made / "released", "art")
    with pytest.raises(StaleCache, match="weights_sha256.*with --model"):
        load_its_model(trained, str(made / "other.pt"), CPU)
    with pytest.raises(StaleCache, match="made with model"):  # before 300 MB are downloaded
        load_its_model(trained, "vit-b/32", CPU)
    with pytest.raises(StaleCache, match="weights_sha256"):  # the built-in one is the default
        load_its_model(trained, None, CPU)
    heard.clear()
    load_its_model(trained, str(made / "small.pt"), CPU)
    assert not heard
    monkeypatch.setitem(trained.preprocessing, "resize", "Pillow 1.0")
    load_its_model(trained, str(made / "small.pt"), CPU)
    assert len(heard) == 1 and "Pillow 1.0" in heard[0]
    monkeypatch.setitem(trained.preprocessing, "interpolation", "nearest")
    with pytest.raises(StaleCache, match="preprocessing.interpolation"):
        load_its_model(trained, str(made / "small.pt"), CPU)
    assert trained.templates == PROMPTS


def test_a_run_on_imported_features_says_why_it_cannot(tmp_path):
    config = RunConfig(held_out=(("a",),), rounds=1, batch=8)
    federate(small(), config, runs=tmp_path, out=tmp_path / "run", device="cpu")
    with pytest.raises(ConfigError, match="does not record which CLIP.*extract"):
        read_trained(tmp_path / "run")


def forged(made, tmp_path, change):
    tensors, facts = read_adapters(made / "released" / "adapter.safetensors")
    facts = json.loads(json.dumps(facts))
    change(tensors, facts)
    write_adapters(tmp_path / "forged.safetensors", tensors, facts)
    return tmp_path / "forged.safetensors"


def _poison(tensors, facts):
    tensors["best.w1"][0, 0, 0] = float("nan")


FORGERIES = {
    "no facts of the cache": lambda t, f: f.pop("belongs_to"),
    "settings a list": lambda t, f: f["belongs_to"].update(settings=[1]),
    "setting unknown": lambda t, f: f["belongs_to"]["settings"].update(fangs=2),
    "rank of text": lambda t, f: f["belongs_to"]["settings"].update(rank="8"),
    "width": lambda t, f: f["belongs_to"]["cache"].update(width=10**9),
    "width of text": lambda t, f: f["belongs_to"]["cache"].update(width="wide"),
    "classes a number": lambda t, f: f["belongs_to"]["cache"]["encoder"].update(class_names=7),
    "encoder a list": lambda t, f: f["belongs_to"]["cache"].update(encoder=[1]),
    "classes that steer": lambda t, f: f["belongs_to"]["cache"]["encoder"].update(
        class_names=["cat", "\x1b]0;owned\x07"]
    ),
    "a client that steers": lambda t, f: f["adapters"][0].update(clients=["\x1b[2J"]),
    "adapters fewer than told": lambda t, f: f["adapters"].append(f["adapters"][0]),
    "no adapters": lambda t, f: f.update(adapters=[]),
    "adapters a text": lambda t, f: f.update(adapters="art"),
    "a part missing": lambda t, f: t.pop("best.w2"),
    "not finite": _poison,
}


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES)
def test_forged_adapter_files_end_as_one_line(made, tmp_path, change):
    file = forged(made, tmp_path, change)
    with pytest.raises(ConfigError, match=r"forged\.safetensors|rank"):
        read_trained(file, "art")


def test_damaged_adapter_files_end_as_one_line(made, tmp_path):
    whole = (made / "released" / "adapter.safetensors").read_bytes()
    file, draw = tmp_path / "cut.safetensors", np.random.default_rng(0)
    for cut in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(ConfigError, match="cut.safetensors"):
            read_trained(file, "art")
    for _ in range(60):
        raw = bytearray(whole)
        raw[draw.integers(0, 3000)] ^= 1 << draw.integers(0, 8)
        file.write_bytes(raw)
        with pytest.raises(ConfigError) as error:
            read_trained(file, "art")
        assert "\n" not in str(error.value).strip()
