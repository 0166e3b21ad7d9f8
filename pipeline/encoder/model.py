"""Frozen CLIP: importing its package, loading its weights, encoding images and prompts."""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import logging
import re
import sys
import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from pipeline.encoder.architecture import describe
from pipeline.encoder.config_files import choose_towers, warn_of_other_preprocessing
from pipeline.encoder.hub import fetch
from pipeline.encoder.pixels import MEAN, STD
from pipeline.encoder.sizes import build_module, sizes_of
from pipeline.encoder.towers import UNNAMED, Towers
from pipeline.encoder.weights import (
    OPENAI_NAMES,
    WEIGHT_FILES,
    WEIGHTS,
    find_weights,
    read_state_dict,
)
from pipeline.errors import ConfigError, DataError, WeightsError
from pipeline.transfer.download import download, sha256_of

LOG = logging.getLogger(__name__)

PROMPTS_AT_ONCE = 128
MOST_BYTES = 2 << 30  # of a weights file; the largest of OpenAI's nine has 1.3 GB
NMS_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@dataclass(frozen=True)
class ClipModel:
    """A frozen CLIP on its device.

    name            one of MODEL_NAMES, or the name of the weights file
    module          clip.model.CLIP in eval mode, without gradients
    resolution      n of the (n, n) pixels it takes
    width           D, of image and text features
    logit_scale     the multiplier, about 100
    weights_sha256  over the parameters and buffers, the same for every file format
    architecture    its sizes and their name, see architecture.describe
    dtype           float32 on the CPU; float16 elsewhere, as with OpenAI's own loader
    compiled        whether torch.compile made the image tower
    """

    name: str
    module: torch.nn.Module
    resolution: int
    width: int
    logit_scale: float
    weights_sha256: str
    architecture: dict
    device: torch.device
    dtype: torch.dtype
    compiled: bool = False


def load_model(name_or_file: str, device: torch.device, towers: Towers = UNNAMED) -> ClipModel:
    """Load the CLIP of that name (MODEL_NAMES, in any case; hf:, open_clip:), file or folder.

    OpenAI's weights are downloaded once, to clip's own folder ~/.cache/clip; others by hub.fetch.
    For files see read_state_dict.

    towers  heads and activation of a file's model; see choose_towers for unnamed ones

    Raises WeightsError for an unknown name, and weights that are missing or contradict `towers`.
    """
    name, file = find_weights(name_or_file)
    clip = import_clip()
    openais = file == WEIGHTS or name in OPENAI_NAMES
    path = file or (_download(name) if openais else fetch(name, WEIGHT_FILES))
    state, layout = read_state_dict(path)
    logit_scale = float(state["logit_scale"].detach().float().exp())
    try:
        sizes = sizes_of(state, path)
        own = openais or sha256_of(path) in _openai_sha256()
        chosen = choose_towers(path, sizes, towers, None if own else layout)
        if not own:
            warn_of_other_preprocessing(path)
        module = build_module(clip.model, state, sizes, chosen, path)
    except WeightsError:
        raise
    except Exception as error:  # sizes that torch cannot handle raise nearly anything
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{path} does not make a CLIP: {type(error).__name__}: {reason}"
        ) from error
    weights_sha256 = _weights_sha256(module, path)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    if dtype == torch.float16:
        clip.model.convert_weights(module)
    return ClipModel(
        name=name,
        module=module.eval().requires_grad_(False).to(device),
        resolution=sizes.resolution,
        width=sizes.width,
        logit_scale=logit_scale,
        weights_sha256=weights_sha256,
        architecture=describe(sizes, chosen),
        device=device,
        dtype=dtype,
    )


def compiled(model: ClipModel) -> ClipModel:
    """Return the model with its image tower under torch.compile, for batches of one size.

    The compiler runs at the first batch. Features are those of the plain model but for their last
    bits (1.1e-7 of a unit feature, ViT-B/32 with random weights).
    """
    model.module.visual = torch.compile(model.module.visual, dynamic=False)
    return dataclasses.replace(model, compiled=True)


@torch.inference_mode()
def encode_images(model: ClipModel, pixels: Tensor) -> Tensor:
    """clip's encode_image of pixels scaled and normalised as by ToTensor and Normalize.

    pixels   (B, n, n, 3) uint8 on any device, n = model.resolution
    returns  (B, D) float32 on the CPU, not normalised
    """
    size = (model.resolution, model.resolution, 3)
    if pixels.dtype != torch.uint8 or pixels.shape[1:] != size:
        shape = tuple(pixels.shape)
        raise ValueError(f"pixels must be (B, {size[0]}, {size[1]}, 3) uint8; got {shape}")
    images = pixels.to(model.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
    mean, std = _mean_and_std(model.device)
    images = images.float().div_(255).sub_(mean).div_(std)
    return model.module.encode_image(images).float().cpu()


@functools.cache
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """(3, 1, 1) each, copied once: a copy from unpinned memory waits for the device."""
    mean, std = (torch.tensor(numbers).view(3, 1, 1).to(device) for numbers in (MEAN, STD))
    return mean, std


@torch.inference_mode()
def encode_prompts(
    model: ClipModel, class_names: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """Encode the prompts of each class as one text feature.

    With one template: clip's encode_text of it with the class name in place of {}, unnormalised.
    With several: the mean over templates of these features at length 1, as CLIP's authors do.

    class_names  C names, inserted unchanged (folder names, including underscores)
    templates    each with one {}
    returns      (C, D) float32
    Raises WeightsError when a prompt is too long for this model; as refuse_bad_templates.
    """
    refuse_bad_templates(templates)
    raw = [
        _encode_texts(model, [template.replace("{}", name) for name in class_names])
        for template in templates
    ]
    if len(raw) == 1:
        return raw[0].numpy()
    units = [torch.nn.functional.normalize(features, dim=1) for features in raw]
    return torch.stack(units).mean(dim=0).numpy()


def refuse_bad_templates(templates: Sequence[str]) -> None:
    """Raises ConfigError without templates, and for one without exactly one {}."""
    if not templates:
        raise ConfigError("no prompt template; the default is --prompt 'a picture of a {}'")
    for template in templates:
        if template.count("{}") != 1:
            raise ConfigError(f"--prompt {template!r}: needs one {{}}, where the class name goes")


@functools.cache
def import_clip() -> ModuleType:
    """Import OpenAI's clip package despite what breaks its import today.

    It reads pkg_resources, which setuptools 82 dropped, and torchvision, whose CUDA build fails
    beside a CPU torch until the operators it describes are declared. Where both work,
    nothing is changed. Raises WeightsError when clip is missing or is the clipboard tool.
    """
    install = "pip install -r requirements.txt"
    shim = importlib.util.find_spec("pkg_resources") is None
    if shim:
        module = types.ModuleType("pkg_resources")
        module.packaging = importlib.import_module("packaging")
        importlib.import_module("packaging.version")
        sys.modules["pkg_resources"] = module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an old pkg_resources calls itself deprecated
            _import_torchvision()
            import clip
    except ModuleNotFoundError as error:
        raise WeightsError(f"OpenAI's clip needs {error.name}, not installed; {install}") from error
    finally:
        if shim:
            sys.modules.pop("pkg_resources", None)
    if not (hasattr(clip, "load") and hasattr(clip, "tokenize")):
        raise WeightsError(
            f"the package clip at {clip.__file__} is not OpenAI's (PyPI's `clip` is a clipboard "
            f"tool); pip uninstall clip, then {install} --force-reinstall --no-deps"
        )
    return clip


def _import_torchvision() -> None:
    for _ in range(8):  # each attempt may name one more operator; 0.28 needs two
        try:
            importlib.import_module("torchvision.transforms")
            return
        except RuntimeError as error:
            missing = re.search(r"operator (torchvision::\w+) does not exist", str(error))
            if not missing:
                raise
            for loaded in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[loaded]
            torch.library.define(missing[1], NMS_SCHEMA)


def _download(name: str) -> Path:
    """Download OpenAI's file to where clip itself keeps it; its URL contains its SHA-256."""
    url = import_clip().clip._MODELS[name]
    path, sha256 = Path.home() / ".cache" / "clip" / Path(url).name, url.split("/")[-2]
    try:
        if path.is_file() and sha256_of(path) == sha256:
            return path
        return download(url, path, LOG.info, most=MOST_BYTES, sha256=sha256)
    except (DataError, OSError) as error:
        there = ", in place of the damaged or different file there" if path.exists() else ""
        raise WeightsError(
            f"--model {name}: its weights could not be downloaded: {error}{there}, or name a file "
            "you have"
        ) from error


def _openai_sha256() -> set[str]:
    return {url.split("/")[-2] for url in import_clip().clip._MODELS.values()}


def _encode_texts(model: ClipModel, texts: list[str]) -> Tensor:
    try:
        tokens = import_clip().tokenize(texts, context_length=model.module.context_length)
    except RuntimeError as error:  # names the text and the length
        raise WeightsError(f"a prompt does not fit {model.name}: {error}") from error
    if int(tokens.max()) >= model.module.vocab_size:
        raise WeightsError(
            f"{model.name} has {model.module.vocab_size} tokens, fewer than CLIP's tokenizer"
        )
    pieces = tokens.to(model.device).split(PROMPTS_AT_ONCE)
    return torch.cat([model.module.encode_text(piece).float().cpu() for piece in pieces])


def _weights_sha256(module: torch.nn.Module, path: Path) -> str:
    """SHA-256 over "name shape" lines and little-endian float32 bytes, sorted by name.

    Computed from the weights as stored, before any rounding to a device's float16.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        numbers = tensor.float().cpu()
        if not torch.isfinite(numbers).all():
            raise WeightsError(f"{path} has NaN or Inf in {name}; download or copy it again")
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(numbers.numpy(), "<f4"))
    return digest.hexdigest()
