"""Encodes updates between server and clients, and counts their bytes, also of all of CLIP."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.federation.methods import METHODS
from pipeline.settings import RunConfig

PAYLOADS = ("fp32", "fp16", "int8")
BLOCK = 512  # numbers that share an int8 scale: a row of ViT-B/32's adapter; 0.8 % of the bytes

# Parameters of OpenAI's models: sum(p.numel() for p in clip.model.CLIP(...).parameters()), sizes
# as in clip_architecture.py; tests/federation/test_payload.py counts them again. BatchNorm
# statistics of the ResNets (under 0.1 %) are not among them.
CLIP_PARAMETERS = {
    "RN50": 102_007_137,
    "RN101": 119_688_033,
    "RN50x4": 178_300_601,
    "RN50x16": 290_979_217,
    "RN50x64": 623_258_305,
    "ViT-B/32": 151_277_313,
    "ViT-B/16": 149_620_737,
    "ViT-L/14": 427_616_513,
    "ViT-L/14@336px": 427_944_193,
}
_WIDTH = {"fp32": 4, "fp16": 2, "int8": 1}


class Encoded(NamedTuple):
    """P encoded numbers."""

    numbers: Tensor  # (..., P) float32, float16 or int8
    scales: Tensor  # (..., blocks) float32 for int8, else (..., 0)


def received(sent: Tensor, reference: Tensor, payload: str) -> Tensor:
    """`sent` as received: reference + decode(encode(sent - reference)); fp32 is unchanged.

    sent       (..., P) float32, adapters
    reference  (P,) or (..., P) float32 that both sides have: up, what the client received in this
    round; down, the first adapter, which everybody derives from the seed
    payload    "fp32", "fp16" or "int8"
    returns    (..., P) float32
    Differences travel, not weights: int8 errs by up to 1/254 of a block's largest number. For
    initial weights (0.044 at D 512) that is 1.7e-4, more than three Adam steps at lr 5e-5; for
    differences it is a fixed fraction of what was learned.
    """
    if payload == "fp32":
        return sent
    return reference + decode(encode(sent - reference, payload))


def payload_of(config: RunConfig) -> str:
    """The encoding of adapters; "fp32" for methods that send none (local, central)."""
    return config.payload if METHODS[config.method].averages else "fp32"


def encode(values: Tensor, payload: str) -> Encoded:
    """fp16: rounded to nearest; int8: round(value / scale), scale = max |block| / 127.

    values  (..., P) float32; what is not finite stays so, for `guard.unsound` to find
    Ties round to even in both, so the same numbers give the same bytes.
    """
    none = values.new_empty((*values.shape[:-1], 0))
    if payload == "fp32":
        return Encoded(values, none)
    if payload == "fp16":
        return Encoded(values.half(), none)
    if payload != "int8":
        raise ConfigError(f"payload {payload!r} is unknown; there are {', '.join(PAYLOADS)}")
    blocks = _blocks(values)
    scales = blocks.abs().amax(dim=-1) / 127
    steps = blocks / torch.where(scales > 0, scales, 1)[..., None]
    whole = steps.round().clamp(-127, 127).nan_to_num().to(torch.int8)
    return Encoded(whole.flatten(-2)[..., : values.shape[-1]].contiguous(), scales)


def decode(encoded: Encoded) -> Tensor:
    """The numbers of `encode`, (..., P) float32; for int8 within half a step, scale / 2."""
    if encoded.numbers.dtype != torch.int8:
        return encoded.numbers.float()
    values = _blocks(encoded.numbers.float()) * encoded.scales[..., None]
    return values.flatten(-2)[..., : encoded.numbers.shape[-1]]


def payload_bytes(count: int, payload: str) -> int:
    """Bytes of `count` numbers one way, without framing; a round sends one up and one down."""
    return _WIDTH[payload] * count + (4 * -(-count // BLOCK) if payload == "int8" else 0)


def clip_bytes(model: str) -> int | None:
    """Bytes of all parameters of one of OpenAI's CLIPs, in float32; None for other models."""
    count = CLIP_PARAMETERS.get(model)
    return None if count is None else payload_bytes(count, "fp32")


def _blocks(values: Tensor) -> Tensor:
    """(..., P) as (..., blocks, BLOCK), padded with zeros."""
    lacking = -values.shape[-1] % BLOCK
    return functional.pad(values, (0, lacking)).unflatten(-1, (-1, BLOCK))
