"""The sizes of a CLIP as JSON, and the name they have among OpenAI's."""

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

    The name is OpenAI's for a model of those sizes, whatever its weights; others get one made of
    their sizes. It does not depend on what a file is called, so that it may be part of an identity.
    """
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
