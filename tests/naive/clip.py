"""A CLIP's two encoders from their equations, in numpy, one image or prompt at a time."""

import math

import numpy as np

ERF = np.vectorize(math.erf)


def quickgelu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-1.702 * x))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + ERF(x / math.sqrt(2)))


ACTIVATIONS = {"quickgelu": quickgelu, "gelu": gelu}


def layer_norm(x: np.ndarray, w: dict, name: str) -> np.ndarray:
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, mask: bool) -> np.ndarray:
    wide = q.shape[1] // heads
    out = np.zeros(q.shape)
    for h in range(heads):
        part = slice(h * wide, (h + 1) * wide)
        scores = q[:, part] @ k[:, part].T / math.sqrt(wide)
        if mask:
            scores = np.where(np.tri(len(q), dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, part] = weights / weights.sum(axis=1, keepdims=True) @ v[:, part]
    return out


def transformer(x, w: dict, prefix: str, heads: int, activation: str, mask: bool) -> np.ndarray:
    layer = 0
    while f"{prefix}.{layer}.ln_1.weight" in w:
        at = f"{prefix}.{layer}"
        qkv = layer_norm(x, w, f"{at}.ln_1") @ w[f"{at}.attn.in_proj_weight"].T
        q, k, v = np.split(qkv + w[f"{at}.attn.in_proj_bias"], 3, axis=1)
        mixed = attend(q, k, v, heads, mask)
        x = x + mixed @ w[f"{at}.attn.out_proj.weight"].T + w[f"{at}.attn.out_proj.bias"]
        y = layer_norm(x, w, f"{at}.ln_2") @ w[f"{at}.mlp.c_fc.weight"].T
        y = ACTIVATIONS[activation](y + w[f"{at}.mlp.c_fc.bias"])
        x = x + y @ w[f"{at}.mlp.c_proj.weight"].T + w[f"{at}.mlp.c_proj.bias"]
        layer += 1
    return x


def image_feature(image: np.ndarray, w: dict, heads: int, activation: str) -> np.ndarray:
    """A ViT's feature of one normalised image (3, n, n)."""
    kernel = w["visual.conv1.weight"]
    size, n = kernel.shape[-1], image.shape[-1]
    rows = [w["visual.class_embedding"]]
    for i in range(0, n, size):
        for j in range(0, n, size):
            rows.append((kernel * image[:, i : i + size, j : j + size]).sum(axis=(1, 2, 3)))
    x = layer_norm(np.stack(rows) + w["visual.positional_embedding"], w, "visual.ln_pre")
    x = transformer(x, w, "visual.transformer.resblocks", heads, activation, mask=False)
    return layer_norm(x[0], w, "visual.ln_post") @ w["visual.proj"]


def text_feature(tokens: np.ndarray, w: dict, heads: int, activation: str) -> np.ndarray:
    """The feature of one prompt's tokens (77,), taken at the end token, the largest."""
    x = w["token_embedding.weight"][tokens] + w["positional_embedding"]
    x = transformer(x, w, "transformer.resblocks", heads, activation, mask=True)
    return layer_norm(x[tokens.argmax()], w, "ln_final") @ w["text_projection"]


def pooled(grid: np.ndarray, w: dict, heads: int) -> np.ndarray:
    """A ResNet's attention pool of its last activations (channels, n, n)."""
    at = "visual.attnpool"
    x = grid.reshape(len(grid), -1).T
    x = np.concatenate([x.mean(axis=0)[None], x]) + w[f"{at}.positional_embedding"]
    q, k, v = (x @ w[f"{at}.{n}_proj.weight"].T + w[f"{at}.{n}_proj.bias"] for n in "qkv")
    mixed = attend(q[:1], k, v, heads, mask=False)
    return (mixed @ w[f"{at}.c_proj.weight"].T + w[f"{at}.c_proj.bias"])[0]
