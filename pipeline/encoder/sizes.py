"""The sizes of a CLIP from its state dict, and a module of these sizes with its weights."""

from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import WeightsError

# Far above any public CLIP. Attention takes the square of either length.
LONGEST_CONTEXT, LARGEST_RESOLUTION = 4096, 4096
MLP = "transformer.resblocks.0.mlp.c_fc.weight"
ARCHIVE_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # of OpenAI's archives


class Sizes(NamedTuple):
    """The sizes that the shapes of a CLIP's tensors show.

    width            D, of image and text features
    resolution       n of its (n, n) input pixels;   patch  of a ViT; None: a ResNet
    image_layers     of a ViT, or of the four stages of a ResNet
    image_width      of a ViT's tokens, or of a ResNet's first stage
    attention_width  of the image tower's tokens in attention
    image_mlp, text_mlp  between the two layers of a block's MLP; 4 times the width in OpenAI's
                     models; 0 for a ResNet
    """

    width: int
    resolution: int
    patch: int | None
    image_layers: int | tuple[int, ...]
    image_width: int
    attention_width: int
    context: int
    vocabulary: int
    text_width: int
    text_layers: int
    image_mlp: int
    text_mlp: int


def sizes_of(state: dict[str, Tensor], path: Path) -> Sizes:
    """The sizes as clip.model.build_model derives them from the tensors.

    Raises WeightsError naming the tensor when one is missing or has another number of dimensions,
    and for a model beyond LONGEST_CONTEXT or LARGEST_RESOLUTION.
    """

    def shape(name: str, dims: int) -> torch.Size:
        found = state[name].shape if name in state else None
        if found is None or len(found) != dims or 0 in found:
            there = "is missing" if found is None else f"has the shape {tuple(found)}"
            raise WeightsError(f"{path} is not a CLIP: {name} {there}")
        return found

    def blocks(prefix: str) -> int:
        at = prefix.count(".")
        return len({name.split(".")[at] for name in state if name.startswith(prefix)})

    if "visual.proj" in state or "visual.class_embedding" in state:
        image_width, _, _, patch = shape("visual.conv1.weight", 4)
        grid = round((shape("visual.positional_embedding", 2)[0] - 1) ** 0.5)
        image_layers: int | tuple[int, ...] = blocks("visual.transformer.resblocks.")
        resolution, attention_width = patch * grid, image_width
    else:
        image_width, patch = shape("visual.layer1.0.conv1.weight", 4)[0], None
        tokens, attention_width = shape("visual.attnpool.positional_embedding", 2)
        image_layers = tuple(blocks(f"visual.layer{number}.") for number in (1, 2, 3, 4))
        resolution = 32 * round((tokens - 1) ** 0.5)
    context, _ = shape("positional_embedding", 2)
    if context > LONGEST_CONTEXT or resolution > LARGEST_RESOLUTION:
        raise WeightsError(
            f"{path}: prompts of {context} tokens and images of {resolution} pixels are more than "
            f"the supported {LONGEST_CONTEXT} and {LARGEST_RESOLUTION}"
        )
    return Sizes(
        width=shape("text_projection", 2)[1],
        resolution=resolution,
        patch=patch,
        image_layers=image_layers,
        image_width=image_width,
        attention_width=attention_width,
        context=context,
        vocabulary=shape("token_embedding.weight", 2)[0],
        text_width=shape("ln_final.weight", 1)[0],
        text_layers=blocks("transformer.resblocks."),
        image_mlp=patch and shape(f"visual.{MLP}", 2)[0] or 0,
        text_mlp=shape(MLP, 2)[0],
    )


def build_module(
    model: ModuleType,
    state: dict[str, Tensor],
    sizes: Sizes,
    towers: tuple[int, int, str],
    path: Path,
) -> torch.nn.Module:
    """clip.model.build_model(state).float(), with the heads of both towers and the activation.

    model   clip.model
    towers  heads of the image and the text tower; the activation of transformers, "quickgelu" or
            "gelu" for x * Phi(x): a ResNet's own stay ReLU

    Memory is allocated only once every tensor is known to have the right shape.
    Raises WeightsError naming the tensor when one is missing, superfluous, or has another shape.
    """
    with torch.device("meta"):
        module = _empty(model, sizes, towers[:2])
    if towers[2] == "gelu":
        for block in module.modules():
            if isinstance(block, model.ResidualAttentionBlock):
                block.mlp.gelu = torch.nn.GELU()
    state = {name: tensor for name, tensor in state.items() if name not in ARCHIVE_NUMBERS}
    for name in module.state_dict():
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.tensor(0))  # of BatchNorm; old torch saved none
    _refuse_other_tensors(module, state, path)
    module = module.to_empty(device="cpu")
    mask = module.build_attention_mask()  # type: ignore[operator]
    for block in module.transformer.resblocks:  # type: ignore[union-attr]
        block.attn_mask = mask
    module.load_state_dict(state)
    return module.eval()


def _empty(model: ModuleType, sizes: Sizes, heads: tuple[int, int]) -> torch.nn.Module:
    # CLIP creates an image tower of 64-wide heads: the smallest one, which is then replaced.
    module = model.CLIP(
        *(sizes.width, 1, 1, 64, 1),
        *(sizes.context, sizes.vocabulary, sizes.text_width, heads[1], sizes.text_layers),
    )
    if sizes.patch is None:
        module.visual = model.ModifiedResNet(
            sizes.image_layers, sizes.width, heads[0], sizes.resolution, sizes.image_width
        )
    else:
        module.visual = model.VisionTransformer(
            *(sizes.resolution, sizes.patch, sizes.image_width, sizes.image_layers),
            *(heads[0], sizes.width),
        )
        _resize_mlps(module.visual.transformer, sizes.image_width, sizes.image_mlp)
    _resize_mlps(module.transformer, sizes.text_width, sizes.text_mlp)
    return module


def _resize_mlps(transformer: torch.nn.Module, width: int, inner: int) -> None:
    if inner == 4 * width:  # as CLIP makes them
        return
    for block in transformer.resblocks:  # type: ignore[union-attr]
        block.mlp.c_fc = torch.nn.Linear(width, inner)
        block.mlp.c_proj = torch.nn.Linear(inner, width)


def _refuse_other_tensors(module: torch.nn.Module, state: dict[str, Tensor], path: Path) -> None:
    needed = module.state_dict()
    for name, tensor in needed.items():
        found = state.get(name)
        if found is None:
            raise WeightsError(f"{path} is not a CLIP: {name} is missing")
        if found.shape != tensor.shape:
            raise WeightsError(
                f"{path} is not a CLIP: {name} has the shape "
                f"{tuple(found.shape)}, where the other tensors need {tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() != found.is_floating_point():
            kind = str(found.dtype).removeprefix("torch.")
            raise WeightsError(f"{path}: {name} is {kind}; quantised weights are not supported")
    more = [name for name in state if name not in needed]
    if more:
        raise WeightsError(
            f"{path} is not a CLIP: it has {len(more)} unknown tensors, first {more[0][:80]}"
        )
