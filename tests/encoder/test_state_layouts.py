"""CLIPs of transformers and open_clip give the same features here; every shape of OpenAI's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.encoder import hub
from pipeline.encoder.architecture import describe
from pipeline.encoder.model import encode_images, encode_prompts, import_clip, load_model
from pipeline.encoder.pixels import MEAN, STD
from pipeline.encoder.sizes import build_module, sizes_of
from pipeline.encoder.state_layouts import HUGGING_FACE, OPEN_CLIP, OPENAI, as_openais
from pipeline.encoder.towers import UNNAMED, Towers
from pipeline.encoder.weights import OPENAI_NAMES, find_weights
from pipeline.errors import WeightsError
from tests.conftest import logged
from tests.packages import need

need("clip", "torchvision", "transformers", "open_clip")
import_clip()  # repairs torchvision, which both import
import open_clip  # noqa: E402
import transformers  # noqa: E402

CPU = torch.device("cpu")
PIXELS = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8))
NAMES, PROMPT = ["dog", "alarm clock", "a"], "a photo of a {}"
ACTIVATIONS = {"quickgelu": "quick_gelu", "gelu": "gelu"}


def lively(module: torch.nn.Module) -> torch.nn.Module:
    """Redraw its weights large enough for heads and activation to affect features."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            if not name.endswith("logit_scale"):
                tensor.normal_(std=0.2, generator=generator)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_var.uniform_(0.5, 2)
    return module.eval()


def of_transformers(activation: str = "gelu", mlp: int = 4) -> torch.nn.Module:
    act = ACTIVATIONS[activation]
    common = {"num_hidden_layers": 2, "hidden_act": act}
    config = transformers.CLIPConfig(
        projection_dim=24,
        text_config={"hidden_size": 64, "intermediate_size": 64 * mlp, "num_attention_heads": 4,
                     **common},
        vision_config={"hidden_size": 80, "intermediate_size": 80 * mlp, "num_attention_heads": 5,
                       "image_size": 32, "patch_size": 16, **common},
    )  # fmt: skip
    return lively(transformers.CLIPModel(config))


def config_of_open_clip(activation: str, kind: str, mlp: float = 4.0) -> dict:
    vision = {"layers": [1, 1, 1, 1], "width": 16} if kind == "RN" else {
        "layers": 2, "width": 80, "patch_size": 16, "head_width": 16, "mlp_ratio": mlp}  # fmt: skip
    return {
        "embed_dim": 24,
        "quick_gelu": activation == "quickgelu",
        "vision_cfg": {"image_size": 32, **vision},
        "text_cfg": {"width": 64, "heads": 4, "layers": 2, "mlp_ratio": mlp},
    }


def of_open_clip(config: dict, custom: bool = False) -> torch.nn.Module:
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    return lively(kind(**config))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels / 255 - torch.tensor(MEAN)).div(torch.tensor(STD)).permute(0, 3, 1, 2).float()


def assert_same(model, images: torch.Tensor, texts: torch.Tensor) -> None:
    """Unit features equal to 1e-4, and raw ones up to float32's rounding."""
    found = (encode_images(model, PIXELS), torch.from_numpy(encode_prompts(model, NAMES, [PROMPT])))
    for ours, theirs in zip(found, (images, texts), strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def tokens() -> torch.Tensor:
    return import_clip().tokenize([PROMPT.format(name) for name in NAMES]).long()


@torch.no_grad()
def hugging_face_features(module) -> tuple[torch.Tensor, torch.Tensor]:
    images = module.get_image_features(pixel_values=normalised(PIXELS))
    texts = module.get_text_features(input_ids=tokens())
    return tuple(getattr(one, "pooler_output", one) for one in (images, texts))


@torch.no_grad()
def open_clip_features(module) -> tuple[torch.Tensor, torch.Tensor]:
    return module.encode_image(normalised(PIXELS)), module.encode_text(tokens())


@pytest.mark.parametrize("mlp", [4, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_model_of_transformers_has_its_features(activation, mlp, tmp_path):
    module = of_transformers(activation, mlp)
    expected = hugging_face_features(module)
    module.save_pretrained(tmp_path)
    with logged() as said:
        folder = load_model(str(tmp_path), CPU)  # by config.json
    assert_same(folder, *expected)
    assert any(f"5,4 heads and activation {activation}" in line for line in said)
    bare = tmp_path / "bare"
    bare.mkdir()
    torch.save(module.state_dict(), bare / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="pass --activation quickgelu or --activation gelu"):
        load_model(str(bare / "pytorch_model.bin"), CPU, Towers(5, 4))
    named = load_model(str(bare / "pytorch_model.bin"), CPU, Towers(5, 4, activation))
    assert_same(named, *expected)
    assert named.weights_sha256 == folder.weights_sha256
    assert ("mlp" in folder.architecture["image"]) == (mlp != 4)
    other = "gelu" if activation == "quickgelu" else "quickgelu"
    with pytest.raises(AssertionError):  # the features would show the wrong one
        assert_same(load_model(str(bare), CPU, Towers(5, 4, other)), *expected)


FORMS = {  # file formats of open_clip's weights; the files beside them name the rest
    "plain": lambda state: state,
    "checkpoint": lambda state: {
        "epoch": 3, "name": "x", "state_dict": {f"module.{n}": t for n, t in state.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
    },
    "nested": lambda state: {"model": {"state_dict": state}},
    "lightning": lambda state: {
        "state_dict": {"loss.w": torch.ones(1), **{f"net.clip.{n}": t for n, t in state.items()}}
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "activation"), [("ViT", "gelu"), ("RN", "quickgelu")])
def test_a_model_of_open_clip_has_its_features(kind, activation, form, tmp_path):
    config = config_of_open_clip(activation, kind, 3.5)
    module = of_open_clip(config, custom=form == "nested")
    torch.save(FORMS[form](dict(module.state_dict())), tmp_path / "epoch_3.pt")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    assert_same(load_model(str(tmp_path / "epoch_3.pt"), CPU), *open_clip_features(module))
    if form in ("checkpoint", "lightning"):
        (tmp_path / "open_clip_config.json").unlink()
        with pytest.raises(WeightsError, match="open_clip's layout.*pass --activation"):
            load_model(str(tmp_path / "epoch_3.pt"), CPU, Towers(1, 4))


def test_one_model_has_one_digest_in_every_layout(tmp_path):
    module = of_transformers()
    converted = as_openais(module.state_dict(), tmp_path)
    assert converted.layout == HUGGING_FACE
    towers = Towers(5, 4, "gelu")
    digests = set()
    prefixed = {f"module.{name}": tensor for name, tensor in converted.state.items()}
    for number, state in enumerate((module.state_dict(), converted.state, prefixed)):
        file = tmp_path / f"{number}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
        digests.add(load_model(str(file), CPU, towers).weights_sha256)
    assert len(digests) == 1


# --- every backbone of OpenAI's, by its shapes alone ------------------------------------------


def openais_module(name: str) -> torch.nn.Module:
    config = open_clip.get_model_config(OPEN_CLIP_NAMES[name])
    vision, text = config["vision_cfg"], config["text_cfg"]
    layers = vision["layers"]
    with torch.device("meta"):
        return import_clip().model.CLIP(
            config["embed_dim"], vision["image_size"],
            tuple(layers) if isinstance(layers, list) else layers,
            vision["width"], vision["patch_size"], 77, 49408,
            text["width"], text["heads"], text["layers"],
        )  # fmt: skip


OPEN_CLIP_NAMES = {
    name: name.replace("/", "-").replace("@336px", "-336") + "-quickgelu" for name in OPENAI_NAMES
}


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("name", OPENAI_NAMES)
def test_every_backbone_comes_from_open_clips_layout(name):
    config = open_clip.get_model_config(OPEN_CLIP_NAMES[name])
    with torch.device("meta"):
        theirs = open_clip.model.CLIP(**config)
    found = as_openais({f"module.{n}": t for n, t in theirs.state_dict().items()}, Path("x.pt"))
    expected = openais_module(name)
    assert found.layout == OPEN_CLIP
    assert shapes(found.state) == shapes(expected.state_dict())
    assert as_openais(expected.state_dict(), Path("x.pt")).layout == OPENAI
    sizes = sizes_of(found.state, Path("x.pt"))
    heads = (sizes.attention_width // 64, sizes.text_width // 64, "quickgelu")
    built_on_meta(found.state, heads)
    assert describe(sizes_of(found.state, Path("x")), heads)["name"] == name


@pytest.mark.parametrize("name", [name for name in OPENAI_NAMES if name.startswith("ViT")])
def test_every_vit_comes_from_hugging_faces_layout(name):
    expected = openais_module(name)
    sizes = sizes_of(expected.state_dict(), Path("x"))
    with torch.device("meta"):
        theirs = transformers.CLIPModel(transformers.CLIPConfig(
            projection_dim=sizes.width,
            text_config={"hidden_size": sizes.text_width, "intermediate_size": sizes.text_mlp,
                         "num_hidden_layers": sizes.text_layers,
                         "num_attention_heads": sizes.text_width // 64},
            vision_config={"hidden_size": sizes.image_width, "intermediate_size": sizes.image_mlp,
                           "num_hidden_layers": sizes.image_layers, "patch_size": sizes.patch,
                           "num_attention_heads": sizes.image_width // 64,
                           "image_size": sizes.resolution},
        ))  # fmt: skip
    found = as_openais(theirs.state_dict(), Path("x"))
    assert shapes(found.state) == shapes(expected.state_dict())
    heads = (sizes.image_width // 64, sizes.text_width // 64, "quickgelu")
    built_on_meta(found.state, heads)
    assert describe(sizes_of(found.state, Path("x")), heads)["name"] == name


def built_on_meta(state: dict[str, torch.Tensor], heads: tuple[int, int, str]) -> torch.nn.Module:
    """build_module without the numbers, which would take gigabytes."""
    on_meta, load = torch.nn.Module.to_empty, torch.nn.Module.load_state_dict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.Module, "to_empty", lambda self, device: on_meta(self, device="meta")
        )
        patch.setattr(torch.nn.Module, "load_state_dict",
                      lambda self, given: load(self, given, assign=True))  # fmt: skip
        sizes = sizes_of(state, Path("x"))
        return build_module(import_clip().model, state, sizes, heads, Path("x"))


# --- what is refused ----------------------------------------------------------------------------


QUERY = "text_model.encoder.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: {n: t for n, t in s.items() if n != QUERY}, f"lacks {QUERY}"),
        (lambda s: s | {QUERY: torch.zeros(3, 5)}, "differ in shape"),
        (lambda s: s | {"text_projection.weight": torch.zeros(3)}, "not two sizes"),
        (lambda s: s | {"vision_model.head.weight": torch.zeros(3)}, "vision_model.head.weight"),
        (lambda s: s | {"logit_bias": torch.zeros(1)}, "SigLIP"),
        (lambda s: {n: t for n, t in s.items() if not n.startswith("vision")}, "text tower alone"),
        (lambda s: {n: t for n, t in s.items() if not n.startswith("text_m")}, "image tower alone"),
        (lambda s: {n: t for n, t in s.items() if "visual_projection" not in n}, "visual.proj"),
        (lambda s: {f"{p}.{n}": t for n, t in s.items() for p in "ab"}, "2 models, under a., b."),
        (lambda s: {n: t for n, t in s.items() if n != "logit_scale"}, "lacks logit_scale"),
        (lambda s: s | {"visual_projection.weight": torch.full((24, 80), float("nan"))}, "NaN"),
    ],
)
def test_what_is_not_a_whole_clip_is_refused(change, said, tmp_path):
    torch.save(change(dict(of_transformers().state_dict())), tmp_path / "w.bin")
    with pytest.raises(WeightsError) as caught:
        load_model(str(tmp_path / "w.bin"), CPU, Towers(5, 4, "gelu"))
    assert said in str(caught.value) and "w.bin" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"text_cfg": {"pool_type": "last"}},
        {"text_cfg": {"no_causal_mask": True}},
        {"vision_cfg": {"norm_kwargs": {"eps": 1e-6}}},
        {"vision_cfg": {"pool_type": "avg"}},
    ],
)
def test_a_config_of_other_equations_is_refused(change, tmp_path):
    config = config_of_open_clip("gelu", "ViT")
    torch.save(dict(of_open_clip(config).state_dict()), tmp_path / "w.pt")
    for part, fields in change.items():
        config[part] |= fields
    (tmp_path / "config.json").write_text(json.dumps(config))
    field = next(iter(change[part]))
    with pytest.raises(WeightsError, match=field):
        load_model(str(tmp_path / "w.pt"), CPU)


def test_other_preprocessing_is_said(tmp_path):
    of_transformers().save_pretrained(tmp_path)
    for std, expected in ((list(STD), False), ([0.5, 0.5, 0.5], True), ("odd", False)):
        (tmp_path / "preprocessor_config.json").write_text(
            json.dumps({"image_mean": list(MEAN), "image_std": std})
        )
        with logged() as said:
            load_model(str(tmp_path), CPU)
        assert any("image_std [0.5, 0.5, 0.5]" in line for line in said) == expected


# --- names of the hub ---------------------------------------------------------------------------


def test_the_table_of_open_clips_names_is_open_clips():
    from open_clip.pretrained import _PRETRAINED

    found = hub.open_clip_models()
    assert len(found) > 10
    for name, repository in found.items():
        model, tag = name.split("/")
        assert _PRETRAINED[model][tag]["hf_hub"].rstrip("/") == repository
        assert open_clip.get_model_config(model)["text_cfg"]["vocab_size"] == 49408


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("hf:org/small-clip", "org/small-clip"),
        ("hf:org/small-clip@v1.0", "org/small-clip"),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    ],
)
def test_a_name_of_the_hub_is_downloaded_with_its_config(name, repository, fake_hub):
    folder, calls = fake_hub
    module = of_transformers()
    module.save_pretrained(folder / repository)
    found = load_model(name, CPU)
    assert found.name == name and find_weights(name) == (name, None)
    assert_same(found, *hugging_face_features(module))
    assert {call[2] for call in calls} == {"v1.0" if "@" in name else None}
    (folder / repository / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has none of model\.safetensors"):
        load_model(name, CPU)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf:clip", "expected hf:ORG/NAME"),
        ("hf:../../etc/passwd", "expected hf:ORG/NAME"),
        ("hf:a/b\x1b[2J", "expected hf:ORG/NAME"),
        ("open_clip:ViT-B-32/laion9b", "ViT-B-32/laion2b_s34b_b79k"),
        ("open_clip:ViT-SO400M-14-SigLIP/webli", "by name there are"),
    ],
)
def test_bad_names_of_the_hub_are_refused_before_a_download(name, said, fake_hub):
    with pytest.raises(WeightsError) as caught:
        load_model(name, CPU)
    assert said in str(caught.value) and str(caught.value).isprintable() and not fake_hub[1]


def test_without_network_the_way_out_is_said(fake_hub, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(WeightsError, match="cannot be reached; run again with a network"):
        load_model("hf:org/name", CPU, UNNAMED)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: 1 / 0)
    with pytest.raises(WeightsError, match="could not be downloaded: division"):
        load_model("hf:org/name", CPU)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    with pytest.raises(WeightsError, match="and it has none"):
        find_weights(str(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="is not an index of weights"):
        load_model(str(tmp_path), CPU)
