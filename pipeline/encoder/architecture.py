"""The sizes of a CLIP as JSON, and the name of OpenAI's model with these sizes."""

import torch

# (patch, resolution, layers, width, D)
_VIT = {
    (32, 224, 12, 768, 512): "ViT-B/32",
    (16, 224, 12, 768, 512): "ViT-B/16",
    (14, 224, 24, 1024, 768): "ViT-L/14",
    (14, 336, 24, 1024, 768): "ViT-L/14@336px",
}
# (layers of the four stages, resolution, width, D)
_RESNET = {
    (3, 4, 6, 3, 224, 64, 1024): "RN50",
    (3, 4, 23, 3, 224, 64, 512): "RN101",
    (4, 6, 10, 6, 288, 80, 640): "RN50x4",
    (6, 8, 18, 8, 384, 96, 768): "RN50x16",
    (3, 15, 36, 10, 448, 128, 1024): "RN50x64",
}


def describe(module: torch.nn.Module) -> dict:
    """{"name", "width", "resolution", "image": {...}, "text": {...}} of a clip.model.CLIP.

    The name is that of OpenAI's model of these sizes, whatever the weights; others get one made of
    their sizes. It does not depend on the file's name, so that it can be part of an identity.
    Attention heads that are not 64 wide ("heads" of "image" and "text"), an MLP that is not 4 times
    as wide as its tower ("mlp") and an activation other than QuickGELU ("activation") are included,
    also in the name, only if they differ.
    """
    described, heads = _sizes(module), _heads(module)
    for part in ("image", "text"):
        if heads[part] is not None:
            described[part]["heads"] = heads[part]
            described["name"] += f" {heads[part]} {part} heads"
    towers = (("image", getattr(module.visual, "transformer", None)), ("text", module.transformer))
    for part, tower in towers:
        inner = tower and tower.resblocks[0].mlp.c_fc.out_features
        if inner and inner != 4 * tower.width:
            described[part]["mlp"] = inner
            described["name"] += f" {inner} {part} mlp"
    if isinstance(module.transformer.resblocks[0].mlp.gelu, torch.nn.GELU):
        described["activation"] = "gelu"
        described["name"] += " gelu"
    return described


def _heads(module: torch.nn.Module) -> dict[str, int | None]:
    """Heads of "image" and "text"; None if 64 wide, as OpenAI's are."""
    visual = module.visual
    text = module.transformer.resblocks[0].attn
    if hasattr(visual, "transformer"):
        attn = visual.transformer.resblocks[0].attn
        image, wide = attn.num_heads, attn.embed_dim
    else:
        image, wide = visual.attnpool.num_heads, visual.attnpool.q_proj.in_features
    return {
        "image": image if 64 * image != wide else None,
        "text": text.num_heads if 64 * text.num_heads != text.embed_dim else None,
    }


def _sizes(module: torch.nn.Module) -> dict:
    visual = module.visual
    width, resolution = int(module.text_projection.shape[1]), int(visual.input_resolution)
    if hasattr(visual, "transformer"):
        patch, blocks = visual.conv1.kernel_size[0], visual.transformer.resblocks
        sizes = (patch, resolution, len(blocks), visual.transformer.width, width)
        name = _VIT.get(sizes, f"ViT-{sizes[3]}x{sizes[2]}/{patch}@{resolution}px")
        image = {"patch": patch, "layers": len(blocks), "width": sizes[3]}
    else:
        layers = [len(getattr(visual, f"layer{number}")) for number in (1, 2, 3, 4)]
        stem = 2 * visual.conv1.out_channels
        made = f"RN-{'-'.join(map(str, layers))}x{stem}@{resolution}px"
        name = _RESNET.get((*layers, resolution, stem, width), made)
        image = {"layers": layers, "width": stem}
    text = {
        "context": module.context_length,
        "vocabulary": module.vocab_size,
        "width": module.transformer.width,
        "layers": module.transformer.layers,
    }
    return {"name": name, "width": width, "resolution": resolution, "image": image, "text": text}
