"""Names and files of weights; invalid ones are refused in one line that says what to do."""

import socket
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.encoder.architecture import describe
from pipeline.encoder.model import (
    import_clip,
    load_model,
)
from pipeline.encoder.sizes import sizes_of
from pipeline.encoder.weights import MODEL_NAMES, OPENAI_NAMES, find_weights
from pipeline.errors import WeightsError
from tests.encoder import clips
from tests.encoder.hostile_pickles import Trap

CPU = torch.device("cpu")


def saved(module: torch.nn.Module, form: str, folder: Path) -> bytes:
    return clips.save(module, folder / "sound", form).read_bytes()


def bad_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    module = clips.build()
    state = module.state_dict()

    def torch_saved(value: object) -> bytes:
        torch.save(value, folder / "value")
        return (folder / "value").read_bytes()

    lacking = {name: tensor for name, tensor in state.items() if name != "ln_final.bias"}
    narrow = state | {"visual.proj": torch.zeros(3, 3)}
    nan = state | {"logit_scale": torch.tensor(float("nan"))}
    head = b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    return {
        "empty": (b"", "0 bytes"),
        "page": (b"<!DOCTYPE html><html>404</html>", "web page"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        "noise": (np.random.default_rng(1).bytes(5000), "begins with"),
        "text": (b"these are not the weights", "begins with"),
        "half zip": (saved(module, "state dict", folder)[:-5000], "incomplete"),
        "half archive": (saved(module, "TorchScript", folder)[:60_000], "incomplete"),
        "half safetensors": (saved(module, "safetensors", folder)[:-5000], "safetensors"),
        "lying safetensors": (struct.pack("<Q", len(head)) + head, "safetensors"),
        "endless safetensors": (struct.pack("<Q", 1 << 60) + head, "safetensors"),
        "half pickle": (b"\x80\x02\x8a\nl\xfc\x9cF", "torch"),
        "whole model": (torch_saved(module.visual), "model.state_dict()"),
        "trap": (torch_saved({"state_dict": Trap()}), "model.state_dict()"),
        "a list": (torch_saved([1, 2]), "list"),
        "other model": (torch_saved({"fc.weight": torch.zeros(3)}), "fc.weight"),
        "no tensor": (torch_saved(state | {"odd": 3}), "'odd'"),
        "lacking": (torch_saved(lacking), "ln_final.bias"),
        "narrow": (torch_saved(narrow), "visual.proj"),
        "nan": (torch_saved(nan), "logit_scale"),
    }


def test_what_is_no_weights_is_refused_in_one_line(tmp_path, capfd):
    for name, (content, reason) in bad_files(tmp_path).items():
        file = tmp_path / "weights.pt"
        file.write_bytes(content)
        with pytest.raises(WeightsError) as caught:
            load_model(str(file), CPU)
        assert reason in str(caught.value) and "weights.pt" in str(caught.value), name
        assert "\n" not in str(caught.value), name
    assert "unpickled" not in "".join(capfd.readouterr())


def test_names_are_found_in_any_case():
    assert [find_weights(name.lower())[0] for name in MODEL_NAMES] == list(MODEL_NAMES)
    assert find_weights("DEMO")[1].name == "demo_clip.safetensors"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("ViT-B-32", "Did you mean ViT-B/32?"),
        ("rn5", "Did you mean RN50?"),
        ("zzz", "there are RN50"),
        ("weights.pt", "no such file"),
        (".", "folder"),
    ],
)
def test_an_unknown_name_says_what_there_is(asked, said):
    with pytest.raises(WeightsError) as caught:
        load_model(asked, CPU)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_the_names_are_those_of_clip():
    assert list(OPENAI_NAMES) == import_clip().available_models()


@pytest.mark.parametrize("name", OPENAI_NAMES)
def test_every_backbone_of_openai_is_known_by_its_sizes(name):
    sizes = {  # embed_dim, image_resolution, vision_layers, vision_width, patch, text width, heads
        "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 512, 8),
        "RN101": (512, 224, (3, 4, 23, 3), 64, None, 512, 8),
        "RN50x4": (640, 288, (4, 6, 10, 6), 80, None, 640, 10),
        "RN50x16": (768, 384, (6, 8, 18, 8), 96, None, 768, 12),
        "RN50x64": (1024, 448, (3, 15, 36, 10), 128, None, 1024, 16),
        "ViT-B/32": (512, 224, 12, 768, 32, 512, 8),
        "ViT-B/16": (512, 224, 12, 768, 16, 512, 8),
        "ViT-L/14": (768, 224, 24, 1024, 14, 768, 12),
        "ViT-L/14@336px": (768, 336, 24, 1024, 14, 768, 12),
    }
    width, resolution, layers, image_width, patch, text_width, heads = sizes[name]
    with torch.device("meta"):
        module = import_clip().model.CLIP(
            *(width, resolution, layers, image_width, patch), 77, 49408, text_width, heads, 12
        )
    found = sizes_of(module.state_dict(), Path("x.pt"))
    described = describe(found, (found.attention_width // 64, heads, "quickgelu"))
    image = {"layers": list(layers)} if patch is None else {"patch": patch, "layers": layers}
    assert described == {
        "name": name,
        "width": width,
        "resolution": resolution,
        "image": {**image, "width": image_width},
        "text": {"context": 77, "vocabulary": 49408, "width": text_width, "layers": 12},
    }


def test_without_network_the_address_and_the_place_are_said(tmp_path, monkeypatch):
    clip = import_clip().clip
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/clip/{'0' * 64}/ViT-B-32.pt"
    monkeypatch.setitem(clip._MODELS, "ViT-B/32", url)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with pytest.raises(WeightsError) as caught:
        load_model("vit-b/32", CPU)
    place = tmp_path / ".cache" / "clip" / "ViT-B-32.pt"
    assert url in str(caught.value) and str(place) in str(caught.value)
    assert "\n" not in str(caught.value) and not place.exists()


def test_weights_put_by_hand_are_used_without_network(tmp_path, monkeypatch):
    import hashlib

    clip = import_clip().clip
    folder = tmp_path / ".cache" / "clip"
    folder.mkdir(parents=True)
    file = clips.save(clips.build(), folder / "ViT-B-32.pt", "TorchScript")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(clip._MODELS, "ViT-B/32", f"http://127.0.0.1:1/{digest}/ViT-B-32.pt")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    model = load_model("ViT-B/32", CPU)
    assert (model.name, model.width) == ("ViT-B/32", clips.WIDTH)
