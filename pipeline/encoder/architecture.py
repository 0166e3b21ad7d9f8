"""The sizes of a CLIP as JSON, and the name of OpenAI's model with these sizes."""

from typing import Any

from pipeline.encoder.sizes import Sizes
from pipeline.encoder.towers import HEAD_WIDTH

_NAMES = {  # (patch, resolution, layers, width of the image tower, D)
    (32, 224, 12, 768, 512): "ViT-B/32",
    (16, 224, 12, 768, 512): "ViT-B/16",
    (14, 224, 24, 1024, 768): "ViT-L/14",
    (14, 336, 24, 1024, 768): "ViT-L/14@336px",
    (None, 224, (3, 4, 6, 3), 64, 1024): "RN50",
    (None, 224, (3, 4, 23, 3), 64, 512): "RN101",
    (None, 288, (4, 6, 10, 6), 80, 640): "RN50x4",
    (None, 384, (6, 8, 18, 8), 96, 768): "RN50x16",
    (None, 448, (3, 15, 36, 10), 128, 1024): "RN50x64",
}


def describe(sizes: Sizes, towers: tuple[int, int, str]) -> dict[str, Any]:
    """{"name", "width", "resolution", "image": {...}, "text": {...}} of a CLIP.

    towers  heads and activation, as build_module takes them

    The name is that of OpenAI's model of these sizes, whatever the weights; others get one made of
    their sizes. It does not depend on the file's name, so that it can be part of an identity.
    Attention heads that are not 64 wide ("heads" of "image" and "text"), an MLP that is not 4 times
    as wide as its tower ("mlp") and an activation other than QuickGELU ("activation") are included,
    also in the name, only if they differ.
    """
    name, image = _image_tower(sizes)
    text = {
        "context": sizes.context,
        "vocabulary": sizes.vocabulary,
        "width": sizes.text_width,
        "layers": sizes.text_layers,
    }
    both = (("image", image, sizes.attention_width), ("text", text, sizes.text_width))
    for (part, found, wide), heads in zip(both, towers[:2], strict=True):
        if heads * HEAD_WIDTH != wide:
            found["heads"] = heads
            name += f" {heads} {part} heads"
    for (part, found, wide), inner in zip(both, (sizes.image_mlp, sizes.text_mlp), strict=True):
        if inner not in (0, 4 * wide):
            found["mlp"] = inner
            name += f" {inner} {part} mlp"
    described: dict[str, Any] = {"name": name, "width": sizes.width, "resolution": sizes.resolution}
    described |= {"image": image, "text": text}
    if towers[2] == "gelu":
        described |= {"name": f"{name} gelu", "activation": "gelu"}
    return described


def _image_tower(sizes: Sizes) -> tuple[str, dict[str, Any]]:
    """The name that it gives the model, and its sizes."""
    patch, layers, width = sizes.patch, sizes.image_layers, sizes.image_width
    if isinstance(layers, tuple):
        made, image = f"RN-{'-'.join(map(str, layers))}x{width}", {"layers": list(layers)}
    else:
        made, image = f"ViT-{width}x{layers}/{patch}", {"patch": patch, "layers": layers}
    known = (patch, sizes.resolution, layers, width, sizes.width)
    return _NAMES.get(known, f"{made}@{sizes.resolution}px"), {**image, "width": width}
