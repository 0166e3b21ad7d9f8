"""Heads and activation of a file's CLIP: by options, from a config, or assumed with a warning."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.encoder import model as clip_model
from pipeline.encoder.model import encode_images, encode_prompts, import_clip, load_model
from pipeline.encoder.towers import OPENAI, UNNAMED, Towers, towers_fact, towers_of, words_of
from pipeline.errors import WeightsError
from tests.conftest import logged
from tests.encoder import clips
from tests.naive import clip as naive_clip

CPU = torch.device("cpu")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PIXELS = np.random.default_rng(5).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def lively(image_width: int, text_width: int, kind: str = "ViT") -> dict[str, torch.Tensor]:
    """A random state dict, rounded to fp16, whose heads and activation affect its features."""
    layers, patch = ((1, 1, 1, 1), None) if kind == "RN" else (2, 16)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        clip = import_clip().model
        module = clip.CLIP(24, 32, layers, image_width, patch, 77, 49408, text_width, 1, 2)
        for name, tensor in module.named_parameters():
            if name != "logit_scale":
                tensor.data.normal_(std=0.2)
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight.data.uniform_(0.5, 1.5)
    clip.convert_weights(module)
    return module.state_dict()


def written(folder: Path, state: dict[str, torch.Tensor], **configs: object) -> Path:
    folder.mkdir(exist_ok=True)
    for name, config in configs.items():
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / f"{name}.json").write_text(text)
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def as_numpy(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def vit():
    return lively(64, 64)


# (widths, heads): 64-wide ones, more, fewer, and widths that 64 does not divide
SHAPES = [((64, 64), (1, 1)), ((64, 64), (4, 2)), ((80, 48), (5, 3)), ((128, 64), (1, 8))]


@pytest.mark.parametrize("activation", ["quickgelu", "gelu"])
@pytest.mark.parametrize(("widths", "heads"), SHAPES)
def test_features_are_those_of_the_equations(widths, heads, activation, tmp_path):
    state = lively(*widths)
    clip = load_model(str(written(tmp_path, state)), CPU, Towers(*heads, activation))
    w = as_numpy(state)
    normal = (PIXELS / 255 - np.array(MEAN)) / np.array(STD)
    ref = np.stack(
        [naive_clip.image_feature(x.transpose(2, 0, 1), w, heads[0], activation) for x in normal]
    )
    found = encode_images(clip, torch.from_numpy(PIXELS)).numpy()
    assert abs(found - ref).max() < 1e-4 * abs(ref).max()
    names = ["dog", "alarm clock"]
    tokens = import_clip().tokenize([f"a {name}" for name in names]).numpy()
    ref = np.stack([naive_clip.text_feature(t, w, heads[1], activation) for t in tokens])
    found = encode_prompts(clip, names, ["a {}"])
    assert abs(found - ref).max() < 1e-4 * abs(ref).max()
    wrong = Towers(*heads, "gelu" if activation == "quickgelu" else "quickgelu")
    other = load_model(str(tmp_path / "weights.safetensors"), CPU, wrong)
    apart = abs(encode_prompts(other, names, ["a {}"]) - ref).max()
    assert apart > 2e-3 * abs(ref).max()  # the twin would see the wrong one


@pytest.mark.parametrize("heads", [32, 16, 64])
def test_a_resnets_attention_pool_has_the_heads_that_were_named(heads, tmp_path):
    state = lively(64, 64, "RN")
    clip = load_model(str(written(tmp_path, state)), CPU, Towers(heads, 1, "gelu"))
    grid = np.random.default_rng(1).normal(size=(1, 2048, 1, 1))
    found = clip.module.visual.attnpool(torch.from_numpy(grid).float()).detach().numpy()
    ref = naive_clip.pooled(grid[0], as_numpy(state), heads)
    assert abs(found - ref).max() < 1e-4 * abs(ref).max()
    assert clip.architecture["image"].get("heads") == (None if heads == 32 else heads)


def test_nothing_named_is_as_clip_builds_it_and_says_so(vit, tmp_path, heard):
    clip = load_model(str(written(tmp_path, vit)), CPU)
    ref = import_clip().model.build_model(dict(vit)).float()
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(clip.module.encode_image(images), ref.encode_image(images))
        tokens = import_clip().tokenize(["a", "a longer one"])
        assert torch.equal(clip.module.encode_text(tokens), ref.encode_text(tokens))
    assert len(heard) == 1 and "QuickGELU and 64-wide attention heads (1 image, 1 text)" in heard[0]
    assert "heads" not in json.dumps(clip.architecture)
    assert towers_fact(clip.architecture) == {} and clip.architecture["name"] == "ViT-64x2/16@32px"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Towers(1, 1, "quickgelu"), None),
        (Towers(activation="gelu"), "assumes 64-wide"),
        (Towers(4, 2), "assumes QuickGELU, as"),
        (Towers(4), "assumes QuickGELU and 64-wide attention heads (4 image, 1 text)"),
    ],
)
def test_only_what_nobody_named_is_said_to_be_assumed(asked, said, vit, tmp_path):
    with logged() as lines:
        load_model(str(written(tmp_path, vit)), CPU, asked)
    assert (said is None and not lines) or said in lines[0]


HF = {
    "vision_config": {"num_attention_heads": 4, "hidden_act": "gelu", "hidden_size": 64},
    "text_config": {"num_attention_heads": 2, "hidden_act": "gelu"},
}
OPEN = {
    "model_cfg": {
        "embed_dim": 24,
        "vision_cfg": {"head_width": 16, "width": 64, "layers": 2, "patch_size": 16},
        "text_cfg": {"heads": 2, "width": 64},
    }
}
QUICK = {**OPEN["model_cfg"], "quick_gelu": True}


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ({"config": HF}, Towers(4, 2, "gelu")),
        ({"open_clip_config": OPEN}, Towers(4, 2, "gelu")),
        ({"config": QUICK}, Towers(4, 2, "quickgelu")),
        ({"config": {"vision_config": {"num_attention_heads": 1}, "text_config": {}}},
         Towers(1, 8, "quickgelu")),
        ({"config": [1, 2]}, Towers(1, 1, "quickgelu")),
        ({"config": {"model_type": "bert"}}, Towers(1, 1, "quickgelu")),
    ],
)  # fmt: skip
def test_a_config_beside_the_weights_is_taken_and_said(configs, expected, vit, tmp_path, heard):
    clip = load_model(str(written(tmp_path, vit, **configs)), CPU)
    named = load_model(str(written(tmp_path / "bare", vit)), CPU, expected)
    assert clip.architecture == named.architecture
    pixels = torch.from_numpy(PIXELS)
    assert torch.equal(encode_images(clip, pixels), encode_images(named, pixels))
    assert len(heard) == 1


def test_what_is_named_goes_before_the_config(vit, tmp_path, heard):
    path = written(tmp_path, vit, config=HF)
    clip = load_model(str(path), CPU, Towers(activation="quickgelu"))
    assert towers_of(towers_fact(clip.architecture)) == Towers(4, 2, "quickgelu")
    assert "the options replace its gelu" in heard[0]
    broken = written(tmp_path, vit, config="{not json")
    load_model(str(broken), CPU, Towers(1, 1, "gelu"))


def odd(**image: object) -> dict:
    return {**HF, "vision_config": {"num_attention_heads": 4, "hidden_act": "gelu", **image}}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{not json", "JSON"),
        ("[" * 100_000, "JSON"),
        (
            {**HF, "vision_config": {"num_attention_heads": 5, "hidden_act": "gelu"}},
            "not divisible",
        ),
        (odd(num_attention_heads="4"), "positive"),
        (odd(num_attention_heads=True), "positive"),
        (odd(num_attention_heads=0), "positive"),
        ({**HF, "text_config": {"hidden_act": "quick_gelu"}}, "different activations"),
        (
            {"vision_config": {"hidden_act": "relu"}, "text_config": {"hidden_act": "relu"}},
            "'relu'",
        ),
        ({**HF, "text_config": {"hidden_size": 768, "hidden_act": "gelu"}}, "the weights beside"),
        ({**HF, "projection_dim": 512}, "projection_dim is 512"),
        ({**QUICK, "vision_cfg": {"head_width": 24}}, "head_width is 24"),
        ({**QUICK, "vision_cfg": {"layers": 12}}, "vision_cfg.layers is 12"),
        ({**QUICK, "vision_cfg": {"layers": [3, 4, 6, 3]}}, "vision_cfg.layers"),
        ({**QUICK, "text_cfg": {"heads": {"a": "\x1b[2J"}}}, "text_cfg.heads"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config, said, vit, tmp_path):
    with pytest.raises(WeightsError) as caught:
        load_model(str(written(tmp_path, vit, config=config)), CPU)
    assert said in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("asked", [Towers(3), Towers(1, 7), Towers(128, 1), Towers(65)])
def test_heads_that_do_not_divide_the_width_are_refused(asked, vit, tmp_path):
    with pytest.raises(WeightsError, match="not divisible"):
        load_model(str(written(tmp_path, vit)), CPU, asked)


@pytest.mark.parametrize("widths", [(80, 64), (64, 48), (100, 100)])
def test_widths_that_64_does_not_divide_need_named_heads(widths, tmp_path):
    with pytest.raises(WeightsError, match="pass --heads"):
        load_model(str(written(tmp_path, lively(*widths))), CPU)


def test_openais_own_weights_are_known_whatever_lies_beside(tmp_path, monkeypatch, heard):
    path = clips.save(clips.build(), tmp_path / "copy.pt", "TorchScript")
    (tmp_path / "config.json").write_text(json.dumps(HF))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(import_clip().clip._MODELS, "RN50", f"http://127.0.0.1:1/{digest}/x.pt")
    assert towers_fact(load_model(str(path), CPU).architecture) == {}
    assert not heard
    for name in (str(path), "demo"):
        with pytest.raises(WeightsError, match="are for files of other models"):
            load_model(name, CPU, Towers(activation="gelu"))
        load_model(name, CPU, OPENAI)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["vision_model.embeddings.class_embedding"], "Hugging Face's layout"),
        (["text.token_embedding.weight"], "text tower that is not CLIP's"),
        (["visual.trunk.cls_token"], "timm"),
        (["module.visual.conv1.weight"], "1 unknown tensors, first module.visual.conv1.weight"),
        (["visual.extra\x1b[2J"], "1 unknown tensors, first visual.extra\\x1b[2J"),
        (["logit_bias"], "SigLIP"),
    ],
)
def test_other_layouts_are_named(names, said, vit, tmp_path):
    state = dict.fromkeys(names, torch.zeros(3))
    for whole in (vit | state, state):
        with pytest.raises(WeightsError) as caught:
            load_model(str(written(tmp_path, whole)), CPU)
        assert str(caught.value).isprintable()
        assert said in str(caught.value) or (whole is state and "lacks" in str(caught.value))


@pytest.mark.parametrize("name", ["visual.proj", "transformer.resblocks.1.attn.in_proj_weight"])
def test_sizes_that_contradict_each_other_are_refused_before_memory_is_taken(
    name, vit, tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise AssertionError("memory was taken")

    monkeypatch.setattr(torch.nn.Module, "to_empty", refuse)
    wide = vit | {"visual.conv1.weight": torch.zeros(64 * 4096, 3, 1, 1)}  # 16 TB of a tower
    for state, asked in ((wide, UNNAMED), (vit | {name: torch.zeros(3, 5)}, Towers(1, 1))):
        with pytest.raises(WeightsError, match="has the shape"):
            load_model(str(written(tmp_path, state)), CPU, asked)
    long = vit | {"positional_embedding": torch.zeros(100_000, 64)}
    with pytest.raises(WeightsError, match="prompts of 100000 tokens"):
        load_model(str(written(tmp_path, long)), CPU)
    with pytest.raises(WeightsError, match="int8"):
        whole = vit | {"visual.proj": torch.zeros(64, 24, dtype=torch.int8)}
        load_model(str(written(tmp_path, whole)), CPU)


def test_records_leave_out_what_is_as_openais():
    assert towers_fact(None) == {} and towers_of({}) == OPENAI
    described = {"image": {"width": 64}, "text": {"heads": 3}, "activation": "gelu"}
    assert towers_of(towers_fact(described)) == Towers(0, 3, "gelu")
    for wrong in ({"image_heads": -1}, {"text_heads": "2"}, {"activation": "relu"}):
        with pytest.raises(ValueError):
            towers_of({"towers": {**OPENAI._asdict(), **wrong}})
    assert words_of(UNNAMED) == ()
    assert words_of(Towers(5, 3, "gelu")) == ("--heads", "5,3", "--activation", "gelu")


def test_no_file_is_run_by_torch_or_clip(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a file was given to torch")

    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(clip_model.import_clip(), "load", refuse)
    for form in ("state dict", "wrapped", "safetensors", "TorchScript"):
        load_model(str(clips.save(clips.build(), tmp_path / "w.pt", form)), CPU)
