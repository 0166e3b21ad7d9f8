"""State dicts of transformers and open_clip -> the names and shapes of OpenAI's clip package."""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import WeightsError

LOG = logging.getLogger(__name__)

OPENAI, OPEN_CLIP, HUGGING_FACE = "OpenAI's", "open_clip's", "Hugging Face's"
STRANGERS = (  # how a name in them begins, and what they are
    ("logit_bias", "a SigLIP, not a CLIP"),
    ("visual.trunk.", "an open_clip model with an image tower of timm's, not a CLIP of OpenAI's"),
    ("visual.attn_pool.", "an open_clip model that pools by attention, not a CLIP of OpenAI's"),
    ("text_decoder.", "a CoCa, not a CLIP"),
    ("text.", "an open_clip model with a text tower that is not CLIP's"),
)
# transformers' names, without the towers' blocks -> OpenAI's; with T: the matrix is transposed.
_OUTER = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection T",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # spelled so there
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj T",
}
_TOWER = {"vision_model": "visual.transformer", "text_model": "transformer"}
_INNER = {
    "layer_norm1": "ln_1.",
    "layer_norm2": "ln_2.",
    "mlp.fc1": "mlp.c_fc.",
    "mlp.fc2": "mlp.c_proj.",
    "self_attn.out_proj": "attn.out_proj.",
}
_BLOCK = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_QKV = ("q_proj", "k_proj", "v_proj")
_COUNTED = re.compile(r"(vision_model|text_model)\.embeddings\.position_ids")  # 0, 1, 2, ...


class Converted(NamedTuple):
    """A CLIP's tensors by OpenAI's names, and whose layout they came in."""

    state: dict[str, Tensor]
    layout: str


def as_openais(found: dict[str, Tensor], path: Path) -> Converted:
    """The tensors under OpenAI's names; a state dict that has them already is returned as it is.

    A prefix of all names, such as DataParallel's "module.", is taken away. transformers' query, key
    and value matrices become one, and its projections are transposed; open_clip's "text." is
    dropped. What is none of these layouts is returned as it is, for its tensors to be missed.

    Raises WeightsError for several models in one file, half a CLIP, another kind of model, and for
    a tensor of transformers' layout that is missing, unknown or of a shape that cannot be joined.
    """
    state, prefix = _without_prefix(found, path)
    if any(name.startswith(("vision_model.", "text_model.")) for name in state):
        _refuse(state, STRANGERS[:1], path)
        return Converted(_from_hugging_face(state, path), HUGGING_FACE)
    text_inside = "text.transformer.resblocks.0.ln_1.weight" in state
    if text_inside and "text.token_embedding.weight" in state:
        state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    _refuse(state, STRANGERS, path)
    if state.get("logit_scale", torch.empty(())).shape == (1,):  # nonscalar_logit_scale
        state = {**state, "logit_scale": state["logit_scale"].reshape(())}
    is_open_clip = text_inside or prefix or path.name.startswith("open_clip")
    return Converted(state, OPEN_CLIP if is_open_clip else OPENAI)


def _without_prefix(found: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], str]:
    scales = [name for name in found if name.endswith(".logit_scale")]
    if "logit_scale" in found or not scales:
        return found, ""
    prefixes = [name.removesuffix("logit_scale") for name in scales]
    if len(prefixes) > 1:
        shown = ", ".join(prefix[:60] for prefix in prefixes[:4])
        raise WeightsError(
            f"{path} holds {len(prefixes)} models, under {shown}; save the state dict of one of "
            "them to a file of its own"
        )
    prefix = prefixes[0]
    state = {n.removeprefix(prefix): t for n, t in found.items() if n.startswith(prefix)}
    others = [name for name in found if not name.startswith(prefix)]
    left = f"; {len(others)} others are left out, first {others[0][:80]!a}" if others else ""
    LOG.info(f"{path.name}: takes the {len(state)} tensors under {prefix[:80]!a}{left}")
    return state, prefix


def _refuse(state: dict[str, Tensor], kinds: tuple[tuple[str, str], ...], path: Path) -> None:
    for beginning, what in kinds:
        first = next((name for name in state if name.startswith(beginning)), None)
        if first is not None:
            raise WeightsError(
                f"{path} is {what}: it has {first[:80]}; a CLIP is needed whose towers are "
                "those of OpenAI's clip package"
            )


def _from_hugging_face(found: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    for tower, what in (("vision_model.", "text"), ("text_model.", "image")):
        if not any(name.startswith(tower) for name in found):
            raise WeightsError(
                f"{path} is in Hugging Face's layout and holds the {what} tower alone; save a "
                "CLIPModel, which has both towers and their projections"
            )
    state: dict[str, Tensor] = {}
    for name, tensor in found.items():
        block = _BLOCK.fullmatch(name)
        if name in _OUTER:
            target, _, transposed = _OUTER[name].partition(" ")
            state[target] = _matrix(tensor, name, path).t() if transposed else tensor
        elif block and block[3] in _INNER:
            tower, number, part, kind = block.groups()
            state[f"{_TOWER[tower]}.resblocks.{number}.{_INNER[part]}{kind}"] = tensor
        elif block and block[3].removeprefix("self_attn.") in _QKV:
            tower, number, _, kind = block.groups()
            joined = f"{_TOWER[tower]}.resblocks.{number}.attn.in_proj_{kind}"
            if joined not in state:
                state[joined] = _joined(found, name, path)
        elif not _COUNTED.fullmatch(name):
            raise WeightsError(
                f"{path} is in Hugging Face's layout and not a CLIPModel: it has {name[:80]}"
            )
    return state


def _matrix(tensor: Tensor, name: str, path: Path) -> Tensor:
    if tensor.dim() != 2:
        raise WeightsError(f"{path}: {name} has the shape {tuple(tensor.shape)}, not two sizes")
    return tensor


def _joined(found: dict[str, Tensor], name: str, path: Path) -> Tensor:
    """Query, key and value of the block that `name` is of, one below the other."""
    names = [re.sub(r"\b[qkv]_proj\b", part, name) for part in _QKV]
    lacking = [one for one in names if one not in found]
    if lacking:
        raise WeightsError(
            f"{path} is in Hugging Face's layout and not a CLIPModel: it lacks {lacking[0][:80]}"
        )
    parts = [found[one] for one in names]
    if any(part.shape != parts[0].shape or part.dtype != parts[0].dtype for part in parts):
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise WeightsError(f"{path}: {', '.join(names)} differ in shape or dtype: {shapes}")
    return torch.cat(parts)
