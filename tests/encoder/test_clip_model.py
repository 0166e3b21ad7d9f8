"""The CLIP package and its weights: one result for every form, one line for every failure."""

import hashlib
import socket
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.encoder.model import (
    encode_images,
    encode_prompts,
    import_clip,
    load_model,
)
from pipeline.encoder.weights import OPENAI_NAMES
from pipeline.errors import ConfigError, WeightsError
from tests.conftest import ROOT
from tests.datasets.loopback import head, replying
from tests.encoder import clips

CPU = torch.device("cpu")
FORMS = ["state dict", "wrapped", "safetensors", "TorchScript"]


@pytest.fixture(scope="module", params=["ViT", "RN"])
def module(request):
    return clips.build(request.param)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    file = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    return load_model(str(clips.save(clips.build(), file, "safetensors")), CPU)


def test_every_form_of_the_same_weights_is_the_same_model(module, tmp_path):
    # The content decides, not the suffix.
    models = [load_model(str(clips.save(module, tmp_path / f"{n}.pt", f)), CPU)
              for n, f in enumerate(FORMS)]  # fmt: skip
    assert len({model.weights_sha256 for model in models}) == 1
    assert all(model.architecture == models[0].architecture for model in models)
    pixels = torch.randint(0, 256, (3, clips.RESOLUTION, clips.RESOLUTION, 3), dtype=torch.uint8)
    features = [encode_images(model, pixels) for model in models]
    assert all(torch.equal(feature, features[0]) for feature in features)


def test_a_legacy_state_dict_and_float32_weights_load_to_the_same_hash(vit, tmp_path):
    state = clips.build().state_dict()
    old = {"_use_new_zipfile_serialization": False}
    torch.save(state, tmp_path / "old.pt", **old)
    torch.save({name: tensor.float() for name, tensor in state.items()}, tmp_path / "wide.pt")
    for name in ("old.pt", "wide.pt"):
        assert load_model(str(tmp_path / name), CPU).weights_sha256 == vit.weights_sha256


def test_one_changed_weight_is_another_hash(vit, tmp_path):
    module = clips.build()
    module.visual.proj.data[0, 0] += 0.25
    file = clips.save(module, tmp_path / "other.pt", "state dict")
    assert load_model(str(file), CPU).weights_sha256 != vit.weights_sha256


def test_the_model_is_frozen_float32_and_in_eval_mode(module, tmp_path):
    model = load_model(str(clips.save(module, tmp_path / "clip.pt", "state dict")), CPU)
    assert not any(part.training for part in model.module.modules())
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
    assert (model.resolution, model.width, model.dtype) == (32, clips.WIDTH, torch.float32)
    assert model.logit_scale == pytest.approx(module.logit_scale.exp().item(), rel=1e-6)


def test_pixels_are_scaled_as_totensor_and_normalize_do_bit_for_bit(vit):
    import_clip()
    from torchvision.transforms import Compose, Normalize, ToTensor

    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    transform = Compose([ToTensor(), Normalize(mean, std)])
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    images = torch.stack([transform(Image.fromarray(image)) for image in pixels])
    seen = []
    hook = vit.module.visual.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    comp = encode_images(vit, torch.from_numpy(pixels))
    hook.remove()
    assert torch.equal(seen[0], images)
    with torch.no_grad():
        assert torch.equal(comp, vit.module.encode_image(images))
    assert comp.dtype == torch.float32 and comp.shape == (5, clips.WIDTH)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 31, 32, 3), (32, 32, 3)])
def test_pixels_of_another_shape_are_refused(vit, shape):
    with pytest.raises(ValueError, match="uint8"):
        encode_images(vit, torch.zeros(shape, dtype=torch.uint8))


def test_one_template_gives_the_raw_feature_and_several_the_mean_of_unit_ones(vit):
    clip, names = import_clip(), ["dog", "alarm_clock", "{odd}"]
    templates = ("a picture of a {}", "a sketch of a {}.")
    with torch.no_grad():
        ref = [
            torch.stack(
                [vit.module.encode_text(clip.tokenize(t.replace("{}", n)))[0] for n in names]
            )
            for t in templates
        ]
    one = encode_prompts(vit, names, templates[:1])
    assert one.dtype == np.float32 and one.shape == (3, clips.WIDTH)
    np.testing.assert_allclose(one, ref[0], rtol=0, atol=2e-5 * abs(ref[0]).max())
    units = [feature / feature.norm(dim=1, keepdim=True) for feature in ref]
    both = encode_prompts(vit, names, templates)
    np.testing.assert_allclose(both, (units[0] + units[1]) / 2, rtol=0, atol=2e-5)


def test_more_prompts_than_fit_one_piece(vit):
    names = [f"thing {number}" for number in range(300)]
    many = encode_prompts(vit, names, ["a {}"])
    few = encode_prompts(vit, names[250:260], ["a {}"])
    np.testing.assert_allclose(many[250:260], few, rtol=0, atol=2e-5 * abs(few).max())


def test_a_prompt_that_is_too_long_is_named(vit):
    with pytest.raises(WeightsError, match="too long for context length 77"):
        encode_prompts(vit, ["word " * 80], ["a {}"])


@pytest.mark.parametrize("template", ["a picture", "{} and {}"])
def test_a_template_without_its_one_place_is_refused(vit, template):
    with pytest.raises(ConfigError, match="prompt"):
        encode_prompts(vit, ["dog"], [template])


def test_the_clipboard_tool_is_told_from_clip(monkeypatch):
    wrong = types.ModuleType("clip")
    wrong.__file__ = "site-packages/clip/__init__.py"
    monkeypatch.setitem(sys.modules, "clip", wrong)
    with pytest.raises(WeightsError, match="clipboard"):
        import_clip.__wrapped__()


def test_a_missing_clip_is_said_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "clip", None)
    with pytest.raises(WeightsError, match="requirements.txt"):
        import_clip.__wrapped__()


def test_loading_leaves_no_trace_and_no_warning(tmp_path):
    file = clips.save(clips.build(), tmp_path / "clip.pt", "TorchScript")
    code = (
        "import sys, torch; from pipeline.encoder.model import load_model; "
        f"load_model({str(file)!r}, torch.device('cpu')); "
        "print(getattr(sys.modules.get('pkg_resources'), '__file__', 'absent') is not None)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning", "-c", code],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", "True")


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    """A home folder without weights; returns where clip keeps them."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / ".cache" / "clip"


def test_weights_that_cannot_be_had_say_from_where_and_to_where(home, monkeypatch):
    def silent(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    for name in OPENAI_NAMES:
        with pytest.raises(WeightsError) as caught:
            load_model(name.lower(), CPU)
        said, file = str(caught.value), home / Path(import_clip().clip._MODELS[name]).name
        assert f"--model {name}: " in said and import_clip().clip._MODELS[name] in said
        assert f"put it at {file}, or" in said and "cannot be reached" in said
        assert "name resolution" in said and "--url" not in said
    file.write_bytes(b"half")
    with pytest.raises(WeightsError, match="in place of the damaged or different file"):
        load_model(name, CPU)
    assert file.read_bytes() == b"half"


@pytest.fixture
def weights_file(tmp_path) -> bytes:
    return clips.save(clips.build(), tmp_path / "made.pt", "state dict").read_bytes()


def served(server, content: bytes, monkeypatch) -> None:
    """Make ViT-B/32 a file on a local server."""
    url = f"{server.url.rsplit('/', 1)[0]}/{hashlib.sha256(content).hexdigest()}/small.pt"
    monkeypatch.setitem(import_clip().clip._MODELS, "ViT-B/32", url)


@pytest.mark.parametrize("there", [None, b"", b"half a file"])
def test_weights_arrive_once_and_replace_what_is_damaged(
    home, weights_file, monkeypatch, there, heard
):
    if there is not None:
        home.mkdir(parents=True)
        (home / "small.pt").write_bytes(there)
    with replying(lambda *_: [head(Content_Length=len(weights_file)), weights_file]) as server:
        served(server, weights_file, monkeypatch)
        for _ in range(2):
            assert load_model("ViT-B/32", CPU).width == clips.WIDTH
        assert len(server.asked) == 1
    assert (home / "small.pt").read_bytes() == weights_file
    assert any("damaged" in line for line in heard) == (there is not None)


LIES = {
    "other content": lambda good: [head(Content_Length=len(good)), bytes(len(good))],
    "cut": lambda good: [head(Content_Length=len(good) // 2), good[: len(good) // 2]],
    "empty": lambda good: [head(Content_Length=0)],
    "a web page": lambda good: [head(), b"<html>sign in</html>"],
    "no such file": lambda good: [head("404 Not Found", Content_Length=0)],
    "too long": lambda good: [head(Content_Length=10**15), bytes(1000)],
    "ftp": lambda good: [head("302 Found", Location="ftp://127.0.0.1/x", Content_Length=0)],
    "packed": lambda good: [head(Content_Encoding="gzip"), good],
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_server_sends_instead_of_weights_is_not_kept(home, weights_file, monkeypatch, lie):
    with replying(lambda *_: LIES[lie](weights_file)) as server:
        served(server, weights_file, monkeypatch)
        with pytest.raises(WeightsError, match="could not be downloaded") as caught:
            load_model("ViT-B/32", CPU)
    assert f"put it at {home / 'small.pt'}" in str(caught.value) or lie == "too long"
    assert not (home / "small.pt").exists() and "\n" not in str(caught.value)
