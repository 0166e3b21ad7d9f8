"""Train the small CLIP of the built-in data: `python -m pipeline.extraction.demo_clip`.

OpenAI's own architecture and layout at toy size, the symmetric contrastive loss, and captions of
drawings that are not in the built-in data set: another seed, and a world in which things usually
appear as in scenes.HABITS (boats are white or brown, in front of blue). Zero-shot predictions rely
on these habits, which federated training on the built-in data can correct.

It took 11 minutes on two cores; other machines' arithmetic gives slightly different weights.
"""

import argparse
import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from pipeline.datasets.demo.captions import caption
from pipeline.datasets.demo.draw import ALONE, draw_picture
from pipeline.datasets.demo.scenes import HABITS
from pipeline.datasets.demo.shapes import SHAPES
from pipeline.datasets.demo.styles import STYLES
from pipeline.encoder.model import import_clip
from pipeline.encoder.pixels import MEAN, STD
from pipeline.encoder.weights import WEIGHTS
from pipeline.machine import cores

SEED = 1_000_003  # of the drawings; the built-in data set has seed 0
SHAPE = {
    "embed_dim": 128,
    "image_resolution": 48,
    "vision_layers": 3,
    "vision_width": 128,
    "vision_patch_size": 8,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 2,
}


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the weights, besides the machine's arithmetic."""

    pictures: int = 42_000
    habit: float = 0.85
    steps: int = 1800
    batch: int = 128
    lr: float = 1e-3
    warm_up: int = 60
    weight_decay: float = 0.1
    logit_scale: float = 20.0


def train(recipe: Recipe) -> dict[str, torch.Tensor]:
    """The trained weights: a state dict in OpenAI's layout, float16."""
    pixels, captions = _draw(recipe)
    torch.manual_seed(0)
    clip = import_clip()
    model = clip.model.CLIP(**SHAPE)
    with torch.no_grad():
        # Signs instead of normals of the same variance: words in no caption stay as they
        # start, differ from one another, and compress 16 times better.
        embedding = model.token_embedding.weight
        embedding.copy_(0.02 * (torch.randint(0, 2, embedding.shape) * 2 - 1))
        model.logit_scale.fill_(math.log(recipe.logit_scale))
    tokens = {text: clip.tokenize(text)[0] for texts in captions for text in texts}
    used, own_vocabulary = _shrink_vocabulary(model, tokens)
    optimizer = _optimizer(model, recipe)
    draw = np.random.default_rng(0)
    for step in tqdm(range(recipe.steps), unit="step"):
        rate = 0.5 + 0.5 * math.cos(math.pi * step / recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1.0, (step + 1) / recipe.warm_up) * rate + 1e-6
        rows = draw.choice(len(pixels), recipe.batch, replace=False)
        texts = torch.stack([tokens[captions[r][draw.integers(len(captions[r]))]] for r in rows])
        texts = texts[:, : int(texts.argmax(dim=1).max()) + 1]  # without unused positions of the 77
        by_image, by_text = model(_normalise(pixels[rows]), own_vocabulary[texts])
        target = torch.arange(len(rows))
        loss = (cross_entropy(by_image, target) + cross_entropy(by_text, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # as OpenAI's training does
    return _whole(model, used, embedding)


def main() -> None:
    """Run the command; its options shorten the training for a trial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--pictures", type=int, default=Recipe.pictures)
    given = parser.parse_args()
    weights = train(Recipe(steps=given.steps, pictures=given.pictures))
    save_file(weights, given.out)
    print(f"{given.out}: {given.out.stat().st_size:,} bytes")


def _draw(recipe: Recipe) -> tuple[torch.Tensor, list[list[str]]]:
    """Pixels (N, 3, n, n) uint8 of as many drawings of each kind, with four captions each."""
    each = max(1, recipe.pictures // (len(STYLES) * len(SHAPES)))
    kinds = [(d, c, n, recipe.habit) for n in range(each) for d in STYLES for c in SHAPES]
    if len(kinds) < ALONE:
        drawn = list(map(_picture, kinds))
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(cores(), spawn) as pool:
            found = pool.map(_picture, kinds, chunksize=100)
            drawn = list(tqdm(found, total=len(kinds), unit="picture"))
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in drawn])).permute(0, 3, 1, 2)
    return pixels.contiguous(), [captions for _, captions in drawn]


def _picture(kind: tuple[str, str, int, float]) -> tuple[np.ndarray, list[str]]:
    domain, thing, number, habit = kind
    image, words = draw_picture(domain, thing, SEED, number, HABITS, habit)
    side = SHAPE["image_resolution"]
    small = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
    key = [SEED, list(STYLES).index(domain), list(SHAPES).index(thing), number, 1]
    rng = np.random.default_rng(key)
    return small, [caption(domain, words, rng) for _ in range(4)]


def _normalise(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def _shrink_vocabulary(
    model: torch.nn.Module, tokens: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep only the tokens that occur in the model: an optimizer over all 49,408 is a third slower.

    returns  the tokens that occur, in order, and (49408,) the new position of each
    """
    used = torch.unique(torch.stack(list(tokens.values())))
    place = torch.zeros(SHAPE["vocab_size"], dtype=torch.long)
    place[used] = torch.arange(len(used))  # in order, so that the end of text stays the largest
    small = torch.nn.Embedding(len(used), SHAPE["transformer_width"])
    small.weight.data.copy_(model.token_embedding.weight[used])
    model.token_embedding = small
    return used, place


def _whole(
    model: torch.nn.Module, used: torch.Tensor, embedding: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The state dict with all tokens: those that occurred as trained, the rest untouched."""
    state = model.state_dict()
    whole = embedding.detach().clone()
    whole[used] = state["token_embedding.weight"]
    return {
        k: v.half().contiguous() for k, v in (state | {"token_embedding.weight": whole}).items()
    }


def _optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embedding" not in n]
    rest = [p for p in model.parameters() if not any(p is q for q in decayed)]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6)


if __name__ == "__main__":
    main()
