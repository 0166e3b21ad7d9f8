"""Classifies a user's images by a trained adapter and by zero-shot CLIP."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kernels.heads.plain import named, unit_images, unit_texts
from pipeline.datasets.image_files import converter, images_below, kind_of, read_folder
from pipeline.encoder.decoding import decoded_images
from pipeline.encoder.model import ClipModel, encode_images, encode_prompts
from pipeline.encoder.pixels import IMAGE_LIMITS, Limits
from pipeline.errors import ConfigError
from pipeline.machine import cores
from pipeline.runs.adapters import Trained

BATCH = {"cpu": 16, "cuda": 256}  # as extraction's


class Guess(NamedTuple):
    """A class and its softmax among the requested classes, 0 to 1."""

    class_name: str
    confidence: float


Guesses = tuple[Guess, ...]


@dataclass(frozen=True)
class Answer:
    """The answers for one image, the likeliest class first; both are empty if `error` is set."""

    image: Path
    adapter: Guesses
    zero_shot: Guesses
    error: str | None = None


def find_pictures(words: Sequence[str | PathLike[str]]) -> tuple[list[Path], list[Answer]]:
    """Files, folders (all images below them) and globs (** too) -> image files, each once.

    A folder stands for the images that `extract` finds in it (read_folder): links are followed.
    Returns the files in the order of the words, those of a folder sorted, and an Answer with an
    error for each word without files, for folders that cannot be listed, and for images in them
    that need a converter. No file is opened.
    """
    found: dict[Path, None] = {}
    lost: list[Answer] = []
    named = [words] if isinstance(words, (str, PathLike)) else words
    for word in [fspath(name) for name in named]:
        path = Path(word).expanduser()
        # os.path, unlike Path, does not raise for names that are too long.
        if not word:
            hits, why = [], "an empty path"
        elif os.path.lexists(path):
            hits, why = [path], "no image in this folder"
        else:
            hits, why = sorted(map(Path, glob.glob(str(path), recursive=True))), "no such file"
        troubled = len(lost)
        mine = [f for hit in hits for f in (_below(hit, lost) if os.path.isdir(hit) else [hit])]
        found |= dict.fromkeys(mine)
        if not mine and len(lost) == troubled:
            lost.append(Answer(Path(word or "''"), (), (), why))
    return list(found), lost


def choose_classes(trained: Trained, words: str | None) -> tuple[str, ...]:
    """The classes to choose from: the run's own, or those in "a,b,c".

    Raises ConfigError for fewer than two, for repeated ones, and, if the head is a classifier, for
    classes that it was not trained on.
    """
    if words is None:
        return trained.class_names
    names = tuple(name for word in words.split(",") if (name := word.strip()))
    if len(names) < 2:
        raise ConfigError(f"--classes {words!r}: pass two or more classes, as a,b")
    twice = [name for name in names if names.count(name) > 1 or not name.isprintable()]
    if twice:
        raise ConfigError(
            f"--classes: {twice[0]!r} is listed twice or contains unprintable characters"
        )
    unknown = [name for name in names if name not in trained.class_names]
    if unknown and trained.kind.does.classifier:
        raise ConfigError(
            f"--classes {unknown[0]}: head {trained.kind.head} was trained on "
            f"{', '.join(trained.class_names)} and knows only these; other heads take any class"
        )
    return names


def predict(
    images: Sequence[str | PathLike[str]],
    trained: Trained,
    clip: ClipModel,
    class_names: Sequence[str] | None = None,
    *,
    top: int = 1,
    limits: Limits = IMAGE_LIMITS,
) -> Iterator[Answer]:
    """Classifies image files in order by softmax_c(s <u, v_c>), with the adapter and with CLIP
    alone.

    u, v and s as in docs/methods.md; the prompts are the run's, encoded by `clip`. For zero-shot u
    is the image's feature at length 1 and v_c the prompt's. Memory does not grow with the images.

    clip         the model that the adapter belongs to (pipeline.runs.adapters.refuse_other_model)
    class_names  see choose_classes; None: the run's own
    top          guesses for each image, at most the number of classes
    limits       limits of decoding; an image beyond them is an Answer with an error

    A file that cannot be decoded is an Answer with an error. Raises WeightsError for a class name
    that is too long for a prompt, ConfigError as choose_classes.
    """
    names = tuple(class_names or trained.class_names)
    text = torch.from_numpy(encode_prompts(clip, names, trained.templates))
    parts = named(trained.kind, trained.row[None])
    own = trained.kind.does.classifier
    places = [trained.class_names.index(n) for n in names] if own else range(len(names))
    columns = unit_texts(trained.kind, parts, text, torch.tensor([list(places)]))[0]
    plain = normalize(text, dim=1)
    size = BATCH[clip.device.type]
    files = [Path(image) for image in images]
    with decoded_images(
        [*map(str, files)], clip.resolution, workers=-cores(), limits=limits
    ) as decoded:
        for block in (files[start : start + size] for start in range(0, len(files), size)):
            pixels = [next(decoded) for _ in block]
            good = [one.pixels for one in pixels if one.pixels is not None]
            guesses: Iterator[tuple[Guesses, Guesses]] = iter(())
            if good:
                x = encode_images(clip, torch.from_numpy(np.stack(good)))
                u = unit_images(trained.kind, parts, x[None])[0]
                pairs = (u @ columns.mT, normalize(x, dim=1) @ plain.mT)
                tops = [_top(z * clip.logit_scale, names, top) for z in pairs]
                guesses = zip(*tops, strict=True)
            for file, one in zip(block, pixels, strict=True):
                if one.pixels is None:
                    needs = converter(str(file)) if file.is_file() else None
                    yield Answer(file, (), (), needs or one.reason)
                else:
                    yield Answer(file, *next(guesses))


def _top(logits: Tensor, names: tuple[str, ...], top: int) -> list[Guesses]:
    # A stable sort keeps the first of equals first, as elsewhere.
    sure, at = logits.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    return [
        tuple(Guess(names[c], p) for c, p in zip(row_at[:top], row[:top], strict=True))
        for row_at, row in zip(at.tolist(), sure.tolist(), strict=True)
    ]


def _below(folder: Path, lost: list[Answer]) -> list[Path]:
    """The images in a folder and its subfolders; what cannot be read is added to `lost`."""

    def cannot(path: str, why: str) -> None:
        lost.append(Answer(Path(path), (), (), why))

    found = read_folder(str(folder), cannot)
    for path in found.left_out:
        if needs := converter(path):
            lost.append(Answer(folder / path, (), (), needs))
    # Pipes and devices with the names of images get an error each.
    odd = [path for path in found.left_out if kind_of(path) == "in no class folder"]
    return [folder / path for path in [*(p[2:] for p in images_below(found, ".")), *odd]]
